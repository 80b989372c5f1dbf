"""``damro.generate``: methods by name, each with the negative view it stands for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_cases import FAMILIES, inputs_of, model_of

import damro
from damro import DAMROProcessor, outlier_view
from damro.decoding.families import family_of
from damro.decoding.rules import ContrastRule
from damro.errors import ParameterError
from damro.methods.patches import least_patches, random_patches
from damro.methods.presets import preset
from damro.speed.timing import counted
from tests.told import contrast_of, generate

CONTRASTS = ("damro", "random-k", "least-k", "no-image")


@pytest.mark.parametrize("variant", ["reference", "corrected"])
@pytest.mark.parametrize("family", FAMILIES)
def test_damro_is_the_processor(family: str, variant: Any) -> None:
    model, inputs = model_of(family), inputs_of(f"{family}_batch2")
    strengths: dict[str, Any] = {"alpha": 0.8, "beta": 0.05, "top_k": 4, "variant": variant}
    options: dict[str, Any] = {"max_new_tokens": 10, "do_sample": False}
    expected = model.generate(**inputs, logits_processor=DAMROProcessor(model, inputs, **strengths), **options)
    assert torch.equal(generate(model, inputs, **strengths, **options), expected)


@pytest.mark.parametrize("method", ["greedy", None])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_plain_generate_sampling_included(family: str, method: str | None) -> None:
    model, inputs = model_of(family), inputs_of(f"{family}_batch2")
    for do_sample in (False, True):
        torch.manual_seed(2)
        expected = model.generate(**inputs, max_new_tokens=8, do_sample=do_sample)
        torch.manual_seed(2)
        got = generate(model, inputs, method=method, max_new_tokens=8, do_sample=do_sample)
        assert torch.equal(got, expected)


@pytest.mark.parametrize("strategy", ["fused", "lazy", "auto"])
@pytest.mark.parametrize("method", [*CONTRASTS, "greedy"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_vision_tower_runs_once(family: str, method: str, strategy: Any) -> None:
    model, inputs = model_of(family), inputs_of(f"{family}_batch2")
    with counted(family_of(model).vision_tower(model)) as passes:
        generate(model, inputs, method=method, top_k=4, strategy=strategy, max_new_tokens=2)
    assert len(passes) == 1


@pytest.mark.parametrize("beams", [1, 3])
def test_the_vision_tower_runs_once_also_where_the_stock_loops_serve(beams: int) -> None:
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    with counted(family_of(model).vision_tower(model)) as passes:
        generate(model, inputs, top_k=4, num_beams=beams, output_attentions=True, max_new_tokens=2)
    assert len(passes) == 1


def test_strengths_come_from_the_preset_of_family_and_task() -> None:
    model, inputs = model_of("instructblip"), inputs_of("instructblip_img0")
    for method in CONTRASTS:
        for task in (None, "chair"):
            rule = contrast_of(method, model, inputs, task=task).rule
            chosen = preset("instructblip", task)  # type: ignore[arg-type]
            assert rule == ContrastRule(chosen.alpha, chosen.beta)
        assert contrast_of(method, model, inputs, alpha=0.25).rule == ContrastRule(0.25, 0.1)


def test_controls_differ_in_the_patches_only() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    view = outlier_view(model, inputs, top_k=3)
    full = view.contrast.full
    image = full.inputs_embeds[0, full.image_mask[0]]
    weights = view.attention.weights

    def patches(method: str, **options: Any) -> list[int]:
        negative = contrast_of(method, model, inputs, top_k=3, **options).negative
        kept = negative.inputs_embeds[0, negative.image_mask[0]]
        text = negative.inputs_embeds[0, ~negative.image_mask[0]]
        assert torch.equal(text, full.inputs_embeds[0, ~full.image_mask[0]])
        return [int((image == column).all(dim=-1).nonzero()) for column in kept]

    ranked = weights[0].argsort(descending=True).tolist()
    assert patches("damro") == ranked[:3] == view.outliers[0].tolist()
    assert patches("least-k") == ranked[:-4:-1]
    drawn = patches("random-k", seed=1)
    assert len(set(drawn)) == 3 and drawn == random_patches(1)(weights, 3)[0].tolist()
    assert patches("no-image") == []


def test_random_patches_are_distinct_and_differ_by_seed_and_tile() -> None:
    weights = torch.zeros(40, 16)
    drawn = random_patches(0)(weights, 5)
    assert drawn.shape == (40, 5) and all(len(set(row)) == 5 for row in drawn.tolist())
    assert len({tuple(row) for row in drawn.tolist()}) > 30
    assert not torch.equal(drawn, random_patches(1)(weights, 5))
    assert set(drawn.flatten().tolist()) == set(range(16))


def test_least_patches_take_the_first_of_equals() -> None:
    assert least_patches(torch.tensor([[0.2, 0.1, 0.1, 0.6]]), 3).tolist() == [[1, 2, 0]]


def test_without_alpha_greedy_search_is_plain() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_batch2")
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}
    plain = model.generate(**inputs, **options)
    for strategy in ("fused", "lazy"):
        chosen: Any = strategy
        assert torch.equal(generate(model, inputs, alpha=0.0, top_k=3, strategy=chosen, **options), plain)


def test_unknown_methods_are_named() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    with pytest.raises(ParameterError, match="'magic'"):
        damro.generate(model, inputs, method="magic")
    with pytest.raises(ParameterError, match="alpha must be a finite number"):
        generate(model, inputs, alpha=-1.0)


def test_public_names_are_found_whatever_was_imported_before() -> None:
    import damro.generation  # noqa: F401  a module of the function's name would hide it here

    assert callable(damro.generate) and callable(damro.outlier_view)
