"""Several prompts about one image: the same answers as one by one, for less work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_cases import FAMILIES, Inputs, inputs_of, model_of, row_alone
from torch import Tensor, nn

from damro import outlier_view
from damro.decoding.branches.fused import prefill
from damro.decoding.branches.prefix import encode_shared, prefill_shared, shared_columns
from damro.decoding.errors import InputsError
from damro.decoding.families import family_of
from damro.decoding.prompts import VisualPrompt
from damro.speed.timing import counted
from tests.told import generate

LENGTHS = (3, 6, 1)


def questions(family: str, lengths: tuple[int, ...] = LENGTHS) -> Inputs:
    """The golden prompt with a tail of its own in each row; one image, once a row; InstructBLIP's questions differ."""
    one = inputs_of(f"{family}_img0")
    random = torch.Generator().manual_seed(5)
    prompts = [torch.cat([one["input_ids"][0], torch.randint(5, 190, (n,), generator=random)]) for n in lengths]
    width, rows = max(map(len, prompts)), len(lengths)
    inputs = {key: torch.cat([value] * rows) for key, value in one.items()}
    inputs["input_ids"] = torch.stack([nn.functional.pad(prompt, (width - len(prompt), 0)) for prompt in prompts])
    inputs["attention_mask"] = torch.stack([torch.arange(width) >= width - len(prompt) for prompt in prompts]).long()
    if "qformer_input_ids" in one:
        inputs["qformer_input_ids"] = torch.randint(5, 40, (rows, 5), generator=random)
        inputs["qformer_attention_mask"] = torch.ones(rows, 5, dtype=torch.long)
    return inputs


def written(ids: Tensor, prompt: Inputs) -> list[list[int]]:
    return ids[:, prompt["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("method", ["damro", "greedy", "no-image", "random-k", "least-k"])
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_asking_one_by_one(family: str, method: str) -> None:
    model, inputs = model_of(family), questions(family)
    options: dict[str, Any] = {"method": method, "alpha": 1.0, "top_k": 3, "max_new_tokens": 4, "do_sample": False}
    together = written(generate(model, inputs, shared_prefix=True, **options), inputs)
    for row, answer in enumerate(together):
        alone = row_alone(inputs, row)
        assert written(generate(model, alone, **options), alone) == [answer]
    assert len({tuple(answer) for answer in together}) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_vision_tower_sees_the_image_once(family: str) -> None:
    model, inputs = model_of(family), questions(family)
    tower = family_of(model).vision_tower(model)
    images: list[int] = []
    handle = tower.register_forward_pre_hook(
        lambda module, args, kwargs: images.append(len((args or tuple(kwargs.values()))[0])), with_kwargs=True
    )
    with counted(tower) as passes:
        generate(model, inputs, top_k=3, shared_prefix=True, max_new_tokens=2)
    handle.remove()
    assert len(passes) == 1
    assert images == [5 if family == "llava_next" else 1]  # LLaVA-NeXT: a base tile and four more


@pytest.mark.parametrize("copies", ["every", "one"])
@pytest.mark.parametrize("family", FAMILIES)
def test_encoding_is_that_of_all_copies(family: str, copies: str) -> None:
    model, inputs = model_of(family), questions(family)
    module = family_of(model)
    with torch.no_grad():
        expected = module.encode(model, inputs)
        if copies == "one":
            for key in ("pixel_values", "image_sizes"):
                inputs |= {key: inputs[key][:1]} if key in inputs else {}
        shared = encode_shared(model, inputs)
    assert (shared.rows, shared.tiles, shared.grid) == (tuple(range(3)), tuple(expected.tiles), expected.grid)
    for one, other in zip(shared.features, expected.features, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_both_branches_share_everything_before_the_question(family: str) -> None:
    model, inputs = model_of(family), questions(family)
    contrast = outlier_view(model, inputs, top_k=3, shared_image=True).contrast
    golden = inputs_of(f"{family}_img0")["input_ids"].shape[1]
    assert shared_columns(contrast.full) == golden
    image = int(contrast.full.image_mask[0].sum() - contrast.negative.image_mask[0].sum())
    assert shared_columns(contrast.negative) == golden - image


@pytest.mark.parametrize("lengths", [LENGTHS, (5, 5), (0, 2)])
def test_shared_prefill_is_prefill(lengths: tuple[int, ...]) -> None:
    model, inputs = model_of("llava"), questions("llava", lengths)
    for prompt in outlier_view(model, inputs, top_k=3, shared_image=True).contrast.full, questions_only(model, inputs):
        read, expected = prefill_shared(model, prompt), prefill(model, prompt)
        torch.testing.assert_close(read.logits, expected.logits, atol=1e-4, rtol=1e-4)
        assert read.mask.sum(dim=-1).tolist() == prompt.lengths.tolist()


def questions_only(model: Any, inputs: Inputs) -> VisualPrompt:
    return outlier_view(model, inputs, top_k=3).contrast.full.drop_image()


def test_the_prefix_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = model_of("llava"), questions("llava")
    contrast = outlier_view(model, inputs, top_k=3, shared_image=True).contrast
    read: list[tuple[int, int]] = []
    handle = model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: read.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    prefill_shared(model, contrast.full)
    handle.remove()
    assert read == [(1, shared_columns(contrast.full)), (3, max(LENGTHS))]


def test_rows_without_anything_in_common_are_read_as_they_are() -> None:
    model = model_of("llava")
    mask = torch.ones(2, 3, dtype=torch.long)
    prompt = VisualPrompt(torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0)), mask, mask == 0)
    assert shared_columns(prompt) == 0
    torch.testing.assert_close(prefill_shared(model, prompt).logits, prefill(model, prompt).logits)


def test_different_images_cannot_be_shared() -> None:
    model, inputs = model_of("llava"), questions("llava")
    inputs["pixel_values"] = inputs["pixel_values"].clone()
    inputs["pixel_values"][2, 0, 0, 0] += 1
    with pytest.raises(InputsError, match="same image"):
        generate(model, inputs, shared_prefix=True)
    inputs["pixel_values"] = inputs["pixel_values"][:1].repeat(2, 1, 1, 1)
    with pytest.raises(InputsError, match="got 2 pixel_values"):
        encode_shared(model, inputs)
