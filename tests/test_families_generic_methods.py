"""All methods on image-text models without a module of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import damro
from damro.decoding.errors import UnsupportedModelError
from damro.decoding.families import family_of
from damro.methods import Scene
from damro.methods.icd import disturb_text
from damro.methods.vcd import VCD, noisy_pixels
from tests.golden_models import word_tokenizer
from tests.told import generate
from tests.zoo import NEVER, TWO_IMAGES, ZOO, zoo_inputs, zoo_model
from tests.zoo_reference import Stateless, text_rows

SOME = ("internvl_tiles", "qwen2_5_vl", "qwen3_vl", "smolvlm", "gemma3", "mistral3", "lfm2_vl", "kimi_k25")
MODELS = pytest.mark.parametrize(
    "name", [name if name in SOME else pytest.param(name, marks=pytest.mark.slow) for name in ZOO]
)
GREEDY: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": NEVER}
METHODS = (
    "random-k:alpha=2,beta=0.1,top_k=3,seed=4", "least-k:alpha=2,beta=0.1,top_k=3", "vcd:alpha=3,noise_step=700,seed=1",
    "icd:alpha=4", "m3id:forgetting=0.5,confidence=1",
)  # fmt: skip


@MODELS
def test_both_ways_of_decoding_agree_for_every_method(name: str) -> None:
    model, inputs, processor = zoo_model(name), zoo_inputs(name, TWO_IMAGES), word_tokenizer(200)
    plain = model.generate(**inputs, **GREEDY)
    assert torch.equal(damro.generate(model, inputs, "greedy", **GREEDY), plain)
    for method in METHODS:
        lazy, fused = (
            damro.generate(model, inputs, method, strategy=strategy, processor=processor, **GREEDY)
            for strategy in ("lazy", "fused")
        )
        assert torch.equal(lazy, fused), method
        contrast = damro.contrast_processor(model, inputs, method, processor=processor)
        assert torch.equal(model.generate(**inputs, logits_processor=contrast, **GREEDY), lazy), method


@MODELS
def test_without_image_is_the_text_alone(name: str) -> None:
    """Read by the stock model as a text, with positions one behind the other."""
    model, inputs = zoo_model(name), zoo_inputs(name)
    rule = Stateless(model, text_rows(model, inputs), inputs["input_ids"].shape[1], 2.0, 0.1)
    expected = model.generate(**inputs, logits_processor=[rule], **GREEDY)
    assert torch.equal(damro.generate(model, inputs, "no-image:alpha=2,beta=0.1", **GREEDY), expected)


@MODELS
@torch.no_grad()
def test_other_images_and_texts_are_read_as_the_model_reads_them(name: str) -> None:
    """The negative prompts of "vcd" and "icd" are stock prompts: of a noisy image, of a longer text."""
    model, inputs = zoo_model(name), zoo_inputs(name)
    family = family_of(model)
    noisy = {**inputs, "pixel_values": noisy_pixels(model, inputs, "pixel_values", 700, 3)}
    longer = disturb_text(model, inputs, word_tokenizer(200), "What is a cat.")
    stock = {"max_new_tokens": 1, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    for told in (noisy, longer):
        prompt = family.full_prompt(model, told, family.encode(model, told))
        expected = model.generate(**told, **stock).logits[0]
        ours = model(**prompt.first_inputs(), use_cache=False).logits[:, -1]
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    contrast = VCD(noise_step=700, seed=3).prepare(model, inputs, Scene())
    assert torch.equal(contrast.negative.features.pooled, family.full_prompt(
        model, noisy, family.encode(model, noisy)).features.pooled)  # fmt: skip


def test_noise_of_a_still_image_is_the_same_in_both_frames() -> None:
    model, inputs = zoo_model("qwen2_vl"), zoo_inputs("qwen2_vl")
    still = inputs["pixel_values"].view(-1, 3, 2, 49)
    still[:, :, 1] = still[:, :, 0]
    noisy = noisy_pixels(model, inputs, "pixel_values", 500, 0)
    frames = noisy.view(-1, 3, 2, 49)
    assert torch.equal(frames[:, :, 0], frames[:, :, 1])
    assert not torch.equal(noisy[0] - inputs["pixel_values"][0], noisy[1] - inputs["pixel_values"][1])


def test_tiles_that_fill_up_stay_empty() -> None:
    model, inputs = zoo_model("smolvlm"), zoo_inputs("smolvlm")
    noisy = noisy_pixels(model, inputs, "pixel_values", 500, 0)
    assert not bool(noisy[1, 1:].any()) and bool(noisy[1, 0].any())


def test_random_patches_depend_on_the_image_alone() -> None:
    """In a run they are drawn by the image's name, not by what else is in the batch."""
    model = zoo_model("qwen2_vl")
    method = damro.methods.RandomK(alpha=1.0, beta=0.1, top_k=4, seed=1)
    both = method.prepare(model, zoo_inputs("qwen2_vl"), Scene(images=("a", "b")))
    chosen = both.outliers.tolist()  # type: ignore[union-attr]
    assert chosen[0] != chosen[1]
    alone = zoo_inputs("qwen2_vl", [(1, 9, "image", 30)])
    assert method.prepare(model, alone, Scene(images=("a",))).outliers.tolist() == chosen[:1]  # type: ignore[union-attr]


def test_values_without_a_preset_must_be_told() -> None:
    message = (
        r"damro must be told alpha, top_k .* got none for 'qwen2_vl'; .* run pope --model \.\.\. --methods greedy "
        r"damro:beta=0\.2,alpha=0\.5,top_k=10 damro:beta=0\.2,alpha=1,top_k=10 damro:beta=0\.2,alpha=2,top_k=10"
    )
    with pytest.raises(UnsupportedModelError, match=message):
        damro.generate(zoo_model("qwen2_vl"), zoo_inputs("qwen2_vl"), "damro:beta=0.2", **GREEDY)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl", "mistral3"])
def test_prompts_about_one_image_may_share_it(name: str) -> None:
    model = zoo_model(name)
    prompts = ((1, 9, "image", 30, 31), (1, "image", 40), (1, 8, "image", 41, 42, 43))
    alone = [zoo_inputs(name, [prompt]) for prompt in prompts]
    inputs = zoo_inputs(name, prompts)
    once = {key: value for key, value in alone[0].items() if key not in ("input_ids", "attention_mask")}
    same = {key: inputs[key] for key in inputs if "ids" in key or key == "attention_mask"}
    if "image_grid_thw" in once or "image_sizes" in once:
        first = zoo_inputs(name, [(1, "image")])
        tokens = first["input_ids"][0, 1:].tolist()
        rows = [[t for part in prompt for t in (tokens if part == "image" else [part])] for prompt in prompts]
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        same = {"input_ids": ids, "attention_mask": (ids != 0).long()}
        if "mm_token_type_ids" in once:
            same["mm_token_type_ids"] = (ids == 199).long()
    shared = {**once, **same}
    told = {"alpha": 2.0, "beta": 0.1, "top_k": 3}
    together = generate(model, shared, shared_prefix=True, **told, **GREEDY)
    for row, one in enumerate(alone):
        length = one["input_ids"].shape[1]
        ids = generate(model, one, **told, **GREEDY)
        assert torch.equal(together[row, -5:], ids[0, length:])
