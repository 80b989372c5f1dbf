"""Families without a golden recording, each on a tiny random model against what the model itself computes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import Blip2Processor, LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import damro
from damro.decoding.branches.fused import can_branch
from damro.decoding.errors import InputsError
from damro.decoding.families import family_of
from damro.errors import UnsupportedModelError
from damro.loading import prepare_inputs
from damro.processor import contrast_processor
from tests.family_models import (
    FRAMES,
    IMAGE,
    MORE_FAMILIES,
    PATCHES,
    QUERIES,
    VIDEO,
    Inputs,
    family_inputs,
    family_model,
)
from tests.golden_models import word_tokenizer
from tests.told import generate

EVERY_FAMILY = pytest.mark.parametrize("name", MORE_FAMILIES)
STRENGTHS: dict[str, Any] = {"alpha": 1.0, "beta": 0.1, "top_k": 3}
GREEDY: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
METHOD_OPTIONS: dict[str, dict[str, Any]] = {
    "damro": STRENGTHS,
    "vcd": {"seed": 2},
    "icd": {"processor": word_tokenizer(200), "disturbance": "What is a cat.", "alpha": 4.0},
    "m3id": {"forgetting": 0.5, "confidence": 1.0},
}


def both(name: str) -> tuple[Any, Inputs, Any]:
    model = family_model(name)
    return model, family_inputs(name), family_of(model)


@EVERY_FAMILY
@torch.no_grad()
def test_the_image_columns_are_found_and_filled(name: str) -> None:
    """Embeds and mask, given to the bare decoder, give the model's own logits."""
    model, inputs, family = both(name)
    prompt = family.full_prompt(model, inputs, family.encode(model, inputs))
    token = VIDEO if name in ("video_llava_video", "instructblipvideo") else IMAGE
    assert torch.equal(prompt.image_mask, inputs["input_ids"] == token)
    ours = family.decoder(model)(
        inputs_embeds=prompt.inputs_embeds,
        attention_mask=prompt.attention_mask,
        position_ids=prompt.position_ids,
        **prompt.reading(),
    ).logits[:, -1]
    theirs = model.generate(
        **inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
    ).logits[0]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def kept_columns(name: str) -> list[Tensor]:
    """Which image columns patches 7, 2 and 11 of every tile are, row by row; in LLaVA-OneVision of the base tile."""
    chosen = torch.tensor([7, 2, 11])
    if name == "video_llava_video":
        return [torch.cat([frame * (1 + PATCHES) + 1 + chosen for frame in range(FRAMES)])] * 2
    if name == "llava_onevision":
        return [torch.cat([chosen, torch.tensor([PATCHES + lines * 4 - 1])]) for lines in (9, 5)]
    return [chosen] * 2


@EVERY_FAMILY
@torch.no_grad()
def test_the_outlier_prompt_holds_the_chosen_patches_in_their_order(name: str) -> None:
    model, inputs, family = both(name)
    encoding = family.encode(model, inputs)
    full = family.full_prompt(model, inputs, encoding)
    patches = torch.tensor([[7, 2, 11]]).expand(sum(encoding.tiles), -1)
    negative = family.prompt_of_patches(model, inputs, encoding, patches)
    for row in (0, 1):
        text = ~full.image_mask[row] & full.attention_mask[row].bool()
        own = ~negative.image_mask[row] & negative.attention_mask[row].bool()
        assert torch.equal(negative.inputs_embeds[row, own], full.inputs_embeds[row, text])
        shown = negative.inputs_embeds[row, negative.image_mask[row]]
        if name == "blip-2":
            expected = queries_of(model, encoding.outputs.last_hidden_state[row, [8, 3, 12]])
        elif name == "instructblipvideo":
            frames = encoding.outputs.last_hidden_state[row * FRAMES : (row + 1) * FRAMES, [8, 3, 12]]
            expected = torch.cat([asked_of(model, frame, inputs["qformer_input_ids"][row]) for frame in frames])
        else:
            expected = full.inputs_embeds[row, full.image_mask[row]][kept_columns(name)[row]]
        torch.testing.assert_close(shown, expected, atol=1e-5, rtol=0)


def queries_of(model: Any, tokens: Tensor) -> Tensor:
    """BLIP-2's columns for some ViT outputs, by the model's own modules."""
    outputs = model.qformer(query_embeds=model.query_tokens, encoder_hidden_states=tokens[None])
    columns: Tensor = model.language_projection(outputs.last_hidden_state)[0]
    assert len(columns) == QUERIES
    return columns


def asked_of(model: Any, tokens: Tensor, question: Tensor) -> Tensor:
    """The columns of one of InstructBLIP's frames for some ViT outputs, by the model's own modules."""
    read = question[question != 0][None]
    hidden = model.qformer(
        input_ids=read,
        attention_mask=torch.ones(1, QUERIES + read.shape[1], dtype=torch.long),
        query_embeds=model.query_tokens,
        encoder_hidden_states=tokens[None],
    )[0]
    columns: Tensor = model.language_projection(hidden[:, :QUERIES])[0]
    return columns


@pytest.mark.parametrize(("name", "columns"), [("vipllava", PATCHES), ("blip-2", QUERIES)])
def test_inputs_of_the_real_processors(name: str, columns: int) -> None:
    model, size = family_model(name), {"height": 56, "width": 56}
    processor: Any
    if name == "blip-2":
        words = word_tokenizer(200).backend_tokenizer
        plain = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", bos_token="<s>", padding_side="left")
        processor = Blip2Processor(BlipImageProcessorPil(size=size), plain, num_query_tokens=QUERIES)
    else:
        words = word_tokenizer(200)
        words.padding_side = "left"
        pixels = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=size)
        processor = LlavaProcessor(pixels, words, 14, "default", num_additional_image_tokens=1)
    images = [Image.new("RGB", (80, 60), color) for color in ("red", "blue")]
    inputs = prepare_inputs(processor, images, ["What is this?", "What is a cat."], model)
    assert (inputs["input_ids"] == IMAGE).sum(-1).tolist() == [columns] * 2
    for method, options in (("damro", STRENGTHS), ("icd", {"processor": processor})):
        answers = generate(model, inputs, method=method, **options, **GREEDY)
        stock = model.generate(
            **inputs, logits_processor=contrast_processor(model, inputs, method=method, **options), **GREEDY
        )
        assert torch.equal(answers, stock)


def test_llava_onevision_ends_in_a_newline() -> None:
    model, inputs, family = both("llava_onevision")
    with torch.no_grad():
        for feature in family.encode(model, inputs).features:
            torch.testing.assert_close(feature[-1], model.model.image_newline)


@EVERY_FAMILY
@pytest.mark.parametrize("method", ["damro", "vcd", "icd", "m3id"])
def test_fused_equals_the_processor(name: str, method: str) -> None:
    model, inputs, family = both(name)
    assert can_branch(family.decoder(model))
    options = METHOD_OPTIONS[method]
    if method == "icd" and name == "instructblipvideo":  # whose Q-Former reads the question, too
        both_texts = SimpleNamespace(tokenizer=word_tokenizer(200), qformer_tokenizer=word_tokenizer(120))
        options = options | {"processor": both_texts}
    fused = generate(model, inputs, method=method, strategy="fused", **options, **GREEDY)
    processor = contrast_processor(model, inputs, method=method, **options)
    assert torch.equal(model.generate(**inputs, logits_processor=processor, **GREEDY), fused)
    assert processor.branch.passes > 0
    plain = model.generate(**inputs, **GREEDY)
    assert not torch.equal(fused, plain)
    assert torch.equal(generate(model, inputs, method=None, strategy="fused", **GREEDY), plain)


@EVERY_FAMILY
def test_a_question_is_answered_as_on_its_own(name: str) -> None:
    model, inputs, _ = both(name)
    together = generate(model, inputs, **STRENGTHS, **GREEDY)[:, inputs["input_ids"].shape[1] :]
    for row in (0, 1):
        read = inputs["attention_mask"][row].bool()
        alone = {key: value[row : row + 1] for key, value in inputs.items()}
        texts = [key for key in alone if key in ("input_ids", "attention_mask", "token_type_ids")]
        alone |= {key: alone[key][:, read] for key in texts}
        answer = generate(model, alone, strategy="lazy", **STRENGTHS, **GREEDY)
        assert torch.equal(answer[0, alone["input_ids"].shape[1] :], together[row])


@EVERY_FAMILY
def test_questions_about_one_image(name: str) -> None:
    model, inputs, _ = both(name)
    one = {key: value[:1] for key, value in inputs.items()}
    two = {key: torch.cat([value, value]) for key, value in one.items()}
    two["input_ids"][1, -1] = 9
    shared = generate(model, two, shared_prefix=True, **STRENGTHS, **GREEDY)
    assert torch.equal(shared, generate(model, two, strategy="lazy", **STRENGTHS, **GREEDY))


@EVERY_FAMILY
def test_there_is_no_preset_to_take_parameters_from(name: str) -> None:
    model, inputs, _ = both(name)
    if model.config.model_type == "llava":
        assert damro.DAMROProcessor(model, inputs).alpha == 2.0
        return
    for missing in STRENGTHS:
        given = {key: value for key, value in STRENGTHS.items() if key != missing}
        with pytest.raises(
            UnsupportedModelError,
            match=f"told {missing} .* without a preset, got none for '{model.config.model_type}'; pass {missing}",
        ):
            damro.DAMROProcessor(model, inputs, **given)


def test_columns_that_are_patches() -> None:
    model, inputs, family = both("vipllava")
    (first, _) = family.column_patches(model, inputs, family.encode(model, inputs))
    assert first.patch.tolist() == list(range(PATCHES))
    model, inputs, family = both("paligemma")
    (first, _) = family.column_patches(model, inputs, family.encode(model, inputs))
    assert first.patch.tolist() == list(range(PATCHES))
    model, inputs, family = both("video_llava_video")
    (first, _) = family.column_patches(model, inputs, family.encode(model, inputs))
    frames = [[-1, *range(frame * PATCHES, (frame + 1) * PATCHES)] for frame in range(FRAMES)]
    assert first.patch.tolist() == sum(frames, [])
    assert first.line.tolist() == sum([[frame] * (1 + PATCHES) for frame in range(FRAMES)], [])
    model, inputs, family = both("llava_siglip")
    (first, _) = family.column_patches(model, inputs, family.encode(model, inputs))
    assert first.patch.tolist() == list(range(PATCHES))  # the strategy "full" keeps no [CLS] where there is none


@pytest.mark.parametrize("name", ["blip-2", "llava_onevision"])
def test_columns_that_are_not_patches(name: str) -> None:
    model, inputs, family = both(name)
    with pytest.raises(UnsupportedModelError, match=f"must have image columns that are patches, got {name}"):
        family.column_patches(model, inputs, family.encode(model, inputs))


def test_images_and_videos_in_one_call() -> None:
    model, inputs, _ = both("video_llava_video")
    mixed = inputs | {"pixel_values": torch.zeros(1, 3, 56, 56)}
    with pytest.raises(
        InputsError, match="inputs must hold images or videos, got pixel_values and pixel_values_videos"
    ):
        damro.DAMROProcessor(model, mixed, **STRENGTHS)
    del mixed["pixel_values"], mixed["pixel_values_videos"]
    with pytest.raises(InputsError, match="must hold 'pixel_values' or .* or 'pixel_values_videos' as a tensor, got"):
        damro.DAMROProcessor(model, mixed, **STRENGTHS)


def test_images_by_the_name_that_the_image_processor_gives_them() -> None:
    model, inputs, _ = both("video_llava")
    inputs["pixel_values"] = inputs.pop("pixel_values_images", inputs.get("pixel_values"))
    legacy = {"pixel_values_images" if key == "pixel_values" else key: value for key, value in inputs.items()}
    for method in ("damro", "vcd"):
        options = STRENGTHS if method == "damro" else {}
        expected = generate(model, inputs, method=method, **options, **GREEDY)
        assert torch.equal(generate(model, legacy, method=method, **options, **GREEDY), expected)


def test_several_images_in_one_prompt_of_llava_onevision() -> None:
    model, inputs, _ = both("llava_onevision")
    two = {key: inputs[key] for key in ("pixel_values", "image_sizes")}
    two |= {key: inputs[key][:1] for key in ("input_ids", "attention_mask")}
    with pytest.raises(InputsError, match="must hold one image a prompt, got 2 images for 1 prompts"):
        damro.DAMROProcessor(model, two, **STRENGTHS)
