"""Which column a patch fills, counted in what the model made of the image; images of other sizes than the ViT's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
)

from damro import DAMROProcessor
from damro.decoding.compat import older_than
from damro.decoding.errors import UnsupportedModelError
from damro.decoding.families import family_of
from tests.family_models import IMAGE, QUERIES, family_inputs, family_model
from tests.llava_models import TEXT, llava_inputs, llava_of
from tests.told import generate

STRENGTHS: dict[str, Any] = {"alpha": 2.0, "beta": 0.1, "top_k": 4}
REGISTERS = {"model_type": "dinov2_with_registers", "mlp_ratio": 2}  # four of them
SIGLIP = {"model_type": "siglip_vision_model", "vision_use_head": False}
PIXTRAL = {"model_type": "pixtral", "head_dim": 16}


def columns_used(model: Any, inputs: Any, processor: DAMROProcessor) -> list[int]:
    """The columns of the image that the negative prompt consists of, found by their vectors."""
    features = model.model.get_image_features(pixel_values=inputs["pixel_values"], return_dict=True).pooler_output[0]
    negative = processor.branch.prompt
    kept = negative.inputs_embeds[0][negative.image_mask[0]]
    return [int((features == vector).all(-1).nonzero()[0]) for vector in kept]


@pytest.mark.parametrize(
    ("vit", "strategy", "before"),
    [(REGISTERS, "default", 4), (REGISTERS, "full", 5), ({}, "default", 0), ({}, "full", 1), (SIGLIP, "full", 0)],
    ids=["registers-default", "registers-full", "clip-default", "clip-full", "siglip-full"],
)
def test_patches_stand_behind_what_the_model_keeps_of_other_tokens(vit: Any, strategy: str, before: int) -> None:
    model = llava_of(vit=vit, vision_feature_select_strategy=strategy, vision_feature_layer=-1)
    inputs = llava_inputs(columns=before + 16)
    processor = DAMROProcessor(model, inputs, **STRENGTHS)
    ranked = processor.attention.weights[0].argsort(descending=True)[:4]
    assert columns_used(model, inputs, processor) == [patch + before for patch in ranked.tolist()]
    family = family_of(model)
    (columns,) = family.column_patches(model, inputs, family.encode(model, inputs))
    assert columns.patch.tolist() == [-1] * before + list(range(16))


def test_a_patch_without_a_column_is_refused() -> None:
    """Of a ViT without [CLS], "default" takes the first patch for one."""
    model, inputs = llava_of(vit=SIGLIP, vision_feature_layer=-1), llava_inputs(columns=15)
    message = r"column for each of the 4x4 patches of a tile, got 15 .*vision_feature_select_strategy='full'"
    with pytest.raises(UnsupportedModelError, match=message):
        DAMROProcessor(model, inputs, **STRENGTHS)
    plain = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert torch.equal(generate(model, inputs, method="greedy", max_new_tokens=3, do_sample=False), plain)


def test_frames_of_a_video_have_as_many_other_columns_as_the_model_makes() -> None:
    model, inputs = family_model("video_llava_video"), family_inputs("video_llava_video")
    family = family_of(model)
    encoding = family.encode(model, inputs)
    chosen = torch.tensor([[3, 0]]).expand(sum(encoding.tiles), -1)
    prompt = family.prompt_of_patches(model, inputs, encoding, chosen)
    frames = encoding.features[0].unflatten(0, (encoding.tiles[0], -1))  # [CLS] and 16 patches each
    expected = frames[:, [1 + 3, 1 + 0]].flatten(0, 1)
    assert torch.equal(prompt.inputs_embeds[0][prompt.image_mask[0]], expected)


SIZES = {"one": [[56, 56]], "two of a size": [[56, 56], [56, 56]], "two sizes": [[56, 56], [28, 56]]}


def pixtral_inputs(sizes: list[list[int]], rows: int) -> dict[str, Tensor]:
    """One prompt with all images or a prompt an image."""
    images = [[IMAGE] * (height // 14 * (width // 14)) for height, width in sizes]
    prompts = [[1, 9, *image, 30, 31] for image in images] if rows > 1 else [[1, 9, *sum(images, []), 30, 31]]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    pixels = torch.randn((len(sizes), 3, 56, 56), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": pixels,
            "image_sizes": torch.tensor(sizes)}  # fmt: skip


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("name", SIZES)
def test_pixtral_reads_several_images(name: str, rows: int) -> None:
    model = llava_of(vit=PIXTRAL, vision_feature_select_strategy="full", vision_feature_layer=-1)
    inputs, options = pixtral_inputs(SIZES[name], rows), {"max_new_tokens": 4, "do_sample": False}
    expected = model.generate(**inputs, **options)
    for method in ("greedy", "no-image"):
        strengths = {} if method == "greedy" else {"alpha": 0.0, "beta": 0.1}
        assert torch.equal(generate(model, inputs, method=method, **strengths, **options), expected)
    if not older_than("5.20"):
        assert DAMROProcessor(model, inputs, **STRENGTHS).outliers.shape == (len(SIZES[name]), STRENGTHS["top_k"])
        return
    with pytest.raises(UnsupportedModelError, match="PixtralVisionModel"):
        DAMROProcessor(model, inputs, **STRENGTHS)


def q_former_model(name: str) -> Any:
    torch.manual_seed(0)
    shapes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 3}
    settings: dict[str, Any] = {
        "vision_config": {**shapes, "num_hidden_layers": 3, "image_size": 56, "patch_size": 14},
        "qformer_config": {**shapes, "encoder_hidden_size": 24, "vocab_size": 120},
        "text_config": dict(TEXT), "num_query_tokens": QUERIES, "image_token_index": IMAGE,
    }  # fmt: skip
    if name == "instructblip":
        return InstructBlipForConditionalGeneration(InstructBlipConfig(**settings)).eval()
    return Blip2ForConditionalGeneration(Blip2Config(**settings)).eval()


@pytest.mark.parametrize("name", ["instructblip", "blip-2"])
@pytest.mark.parametrize("side", [56, 84])
def test_images_of_another_size_have_their_positions_interpolated(name: str, side: int) -> None:
    model = q_former_model(name)
    inputs = llava_inputs(2, columns=QUERIES, side=side)
    if name == "instructblip":
        inputs |= {"qformer_input_ids": torch.tensor([[1, 60, 61]] * 2)}
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    expected = model.generate(**inputs, interpolate_pos_encoding=True, **options)
    for asked in ({}, {"interpolate_pos_encoding": True}):
        assert torch.equal(generate(model, inputs, method="greedy", **asked, **options), expected)
    processor = DAMROProcessor(model, inputs, **STRENGTHS)
    assert processor.attention.grid == (side // 14, side // 14)
    contrasted = model.generate(**inputs, interpolate_pos_encoding=True, logits_processor=processor, **options)
    for strategy in ("fused", "lazy"):
        ids = generate(model, inputs, strategy=strategy, interpolate_pos_encoding=True, **STRENGTHS, **options)
        assert torch.equal(ids, contrasted)


@pytest.mark.parametrize("alpha", [1e38, 1.1e30, 10**40])
def test_an_alpha_with_which_scores_overflow_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"alpha must be at most 1e\+30, where scores overflow, got 1"):
        generate(family_model("llava_siglip"), family_inputs("llava_siglip"), alpha=alpha, beta=0.1, top_k=2)


def test_the_largest_alpha_gives_numbers() -> None:
    model, inputs = llava_of(), llava_inputs()
    options: dict[str, Any] = {"beta": 0.1, "top_k": 4, "max_new_tokens": 4, "do_sample": True}
    assert generate(model, inputs, alpha=1e30, **options).shape == (1, 22 + 4)
