"""Bad input: each error names the argument, the rule, the value received and the remedy, and is a ValueError."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

import damro
from damro import DAMROProcessor, cls_attention
from damro.decoding.errors import NonFiniteScoresError
from damro.errors import InputsError, NoClsTokenError, ParameterError, UnsupportedModelError
from damro.inspection import inspect_vit
from tests.family_models import family_inputs, family_model
from tests.golden_cases import FAMILIES, Inputs, fresh_model, inputs_of, model_of

TINY = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
ENTRIES = pytest.mark.parametrize("entry", [DAMROProcessor, cls_attention], ids=lambda entry: entry.__name__)
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)


def rejected(error: type[Exception], message: str, entry: Any, *arguments: Any, **options: Any) -> None:
    assert issubclass(error, ValueError)
    with pytest.raises(error, match=message):
        entry(*arguments, **options)


def hooks_of(model: Any) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


# Models


@ENTRIES
def test_a_model_of_another_family(entry):
    clip = CLIPModel(CLIPConfig(text_config={**TINY, "vocab_size": 10}, vision_config={**TINY, "image_size": 28}))
    message = r"supported family \(llava, llava_next, .*\), got model_type 'clip'"
    rejected(UnsupportedModelError, message, entry, clip, inputs_of("llava_img0"))


@ENTRIES
@EVERY_FAMILY
def test_a_model_without_a_head(entry, family):
    bare = model_of(family)
    bare = bare.model if family != "instructblip" else bare.vision_model
    message = "ForConditionalGeneration" if family != "instructblip" else "supported family"
    rejected(UnsupportedModelError, message, entry, bare, inputs_of(f"{family}_img0"))


@ENTRIES
@pytest.mark.parametrize("model", [None, "llava-hf/llava-1.5-7b-hf"])
def test_what_is_no_model(entry, model):
    message = "model must be of a supported family .* got model_type None"
    rejected(UnsupportedModelError, message, entry, model, inputs_of("llava_img0"))


def test_a_vit_without_cls():
    """DAMRO ranks by the attention that patches receive, and says so; what is asked of [CLS] by name is refused."""
    model, inputs = family_model("llava_siglip"), family_inputs("llava_siglip")
    model.generate(**inputs, max_new_tokens=1)  # transformers' own hooks come with the first run
    hooks = hooks_of(model)
    message = r"must have a \[CLS\] token, got Siglip.*, which has none; source='received' reads the attention"
    rejected(NoClsTokenError, message, cls_attention, model, inputs)
    rejected(NoClsTokenError, message, inspect_vit, model, inputs, source="cls")
    rejected(NoClsTokenError, r"must have a \[CLS\] token", generate_pruned, model, inputs)
    assert issubclass(NoClsTokenError, UnsupportedModelError)
    assert DAMROProcessor(model, inputs).attention.source == "received"
    assert hooks_of(model) == hooks


def generate_pruned(model: Any, inputs: Any) -> None:
    damro.generate(model, inputs, keep_tokens=4, max_new_tokens=1)


def test_a_source_of_attention_that_there_is_not():
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    message = "source must be 'cls' for a vision tower with a .* token, got 'received' for CLIPVision"
    rejected(ParameterError, message, cls_attention, model, inputs, source="received")
    rejected(ParameterError, message, inspect_vit, model, inputs, source="received")
    message = "source must be one of cls, received, got 'rollout'"
    rejected(ParameterError, message, cls_attention, model, inputs, source="rollout")


# Inputs


@ENTRIES
@EVERY_FAMILY
def test_text_only(entry, family):
    inputs = inputs_of(f"{family}_img0")
    del inputs["pixel_values"]
    message = r"inputs must hold 'pixel_values' as a tensor, got the keys .*input_ids.*; call processor\(images="
    rejected(InputsError, message, entry, model_of(family), inputs)
    rejected(InputsError, "pixel_values", entry, model_of(family), inputs | {"pixel_values": None})


@ENTRIES
@EVERY_FAMILY
def test_an_image_only(entry, family):
    inputs = inputs_of(f"{family}_img0")
    del inputs["input_ids"]
    rejected(InputsError, "inputs must hold 'input_ids' as a tensor", entry, model_of(family), inputs)


@ENTRIES
def test_lists_instead_of_tensors(entry):
    inputs: dict[str, Any] = dict(inputs_of("llava_img0"))
    inputs["input_ids"] = inputs["input_ids"].tolist()
    rejected(InputsError, "'input_ids' as a tensor.*return_tensors='pt'", entry, model_of("llava"), inputs)


@ENTRIES
@pytest.mark.parametrize("inputs", [None, torch.zeros(1, 3), [("input_ids", 1)]], ids=["none", "tensor", "list"])
def test_what_is_no_mapping(entry, inputs):
    rejected(InputsError, "inputs must be the mapping a processor returned, got", entry, model_of("llava"), inputs)


@ENTRIES
@pytest.mark.parametrize(("family", "key"), [("llava_next", "image_sizes"), ("instructblip", "qformer_input_ids")])
def test_a_key_the_family_needs(entry, family, key):
    inputs = inputs_of(f"{family}_img0")
    del inputs[key]
    rejected(InputsError, f"inputs of {family} must hold '{key}', got", entry, model_of(family), inputs)


@ENTRIES
@EVERY_FAMILY
def test_a_prompt_without_an_image_token(entry, family):
    inputs = inputs_of(f"{family}_batch2")
    inputs["input_ids"][1][inputs["input_ids"][1] == 199] = 5
    message = r"every prompt must hold an image token, got none in rows \[1\] \(1 in all\); put"
    rejected(InputsError, message, entry, model_of(family), inputs)


def right_padded(family: str) -> Inputs:
    inputs = inputs_of(f"{family}_batch2")
    read = inputs["attention_mask"][1].bool()
    ids = inputs["input_ids"][1][read]
    inputs["input_ids"][1] = torch.cat([ids, ids.new_zeros(int((~read).sum()))])
    inputs["attention_mask"][1] = read.long().sort(descending=True).values
    return inputs


@ENTRIES
@EVERY_FAMILY
@pytest.mark.parametrize("with_mask", [True, False])
def test_padding_on_the_right(entry, family, with_mask):
    inputs = right_padded(family)
    if not with_mask:
        del inputs["attention_mask"]
    message = "padded on the left, got padding at the end of a row; set processor.tokenizer.padding_side = 'left'"
    rejected(InputsError, message, entry, model_of(family), inputs)


@ENTRIES
def test_a_mask_of_another_shape(entry):
    inputs = inputs_of("llava_img0")
    inputs["attention_mask"] = inputs["attention_mask"][:, 1:]
    message = r"attention_mask must have the shape of input_ids \(1, 25\), got \(1, 24\)"
    rejected(InputsError, message, entry, model_of("llava"), inputs)


@ENTRIES
def test_ids_without_a_batch(entry):
    inputs = inputs_of("llava_img0")
    inputs["input_ids"] = inputs["input_ids"][0]
    rejected(InputsError, r"input_ids must be \(prompts, tokens\), got shape \(25,\)", entry, model_of("llava"), inputs)


@EVERY_FAMILY
@pytest.mark.parametrize("change", [-1, 1])
def test_image_tokens_that_do_not_match_the_image(family, change):
    inputs = inputs_of(f"{family}_img0")
    ids = inputs["input_ids"][0].tolist()
    place = ids.index(199)
    ids = ids[:place] + ids[place + 1 :] if change < 0 else [*ids[:place], 199, *ids[place:]]
    inputs["input_ids"] = torch.tensor([ids])
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    columns = {"llava": 16, "llava_next": 88, "instructblip": 6}[family]
    message = f"got {columns + change} tokens for {columns} features; pass what the model's own processor returned"
    rejected(InputsError, message, DAMROProcessor, model_of(family), inputs)


@EVERY_FAMILY
def test_image_tokens_of_one_row_that_do_not_match(family):
    inputs = inputs_of(f"{family}_batch2")
    place = int((inputs["input_ids"][0] == 199).nonzero()[0])
    inputs["input_ids"][0, place] = 5
    rejected(InputsError, "no room for the .* columns of image 0; pass what", DAMROProcessor, model_of(family), inputs)


def test_more_images_than_prompts_hold():
    inputs = inputs_of("llava_batch2")
    inputs["pixel_values"] = inputs["pixel_values"][[0, 1, 1]]
    rejected(InputsError, "no room for the 16 columns of image 2", DAMROProcessor, model_of("llava"), inputs)


@ENTRIES
def test_features_from_the_embeddings(entry):
    model = fresh_model("llava")
    model.config.vision_feature_layer = 0
    message = "vision_feature_layer must name the output of one of the ViT's 4 layers, got 0"
    rejected(InputsError, message, entry, model, inputs_of("llava_img0"))


# Parameters


@EVERY_FAMILY
@pytest.mark.parametrize("top_k", [0, -1, True, 2.5, 17, "4", math.nan])
def test_top_k(family, top_k):
    message = "top_k must be a whole number (from 1 to the 16 patches of a tile|of at least 1), got"
    rejected(ParameterError, message, DAMROProcessor, model_of(family), inputs_of(f"{family}_img0"), top_k=top_k)


@pytest.mark.parametrize("alpha", [-0.5, math.nan, math.inf, -math.inf, "1"])
def test_alpha(alpha):
    message = "alpha must be a finite number >= 0, got"
    rejected(ParameterError, message, DAMROProcessor, model_of("llava"), inputs_of("llava_img0"), alpha=alpha)


@pytest.mark.parametrize("beta", [0, 0.0, 1.5, -0.1, math.nan, "0.1"])
def test_beta(beta):
    message = r"beta must be in \(0, 1\], got"
    rejected(ParameterError, message, DAMROProcessor, model_of("llava"), inputs_of("llava_img0"), beta=beta)


@pytest.mark.parametrize(
    ("name", "allowed"), [("variant", "reference, corrected"), ("task", "pope, chair, mme or None")]
)
def test_names_that_are_not_known(name, allowed):
    message = f"{name} must be one of {allowed}, got 'vqa'"
    rejected(ParameterError, message, DAMROProcessor, model_of("llava"), inputs_of("llava_img0"), **{name: "vqa"})


def test_bad_parameters_are_found_before_the_vision_tower_runs():
    model, runs = model_of("llava"), []
    handle = model.model.vision_tower.register_forward_hook(lambda *_: runs.append(1))
    try:
        for bad in ({"alpha": -1}, {"beta": 0}, {"task": "vqa"}, {"variant": "vqa"}):
            with pytest.raises(ParameterError):
                DAMROProcessor(model, inputs_of("llava_img0"), **bad)
    finally:
        handle.remove()
    assert runs == []


# Use


def generate(family: str, inputs: Inputs, processor: DAMROProcessor) -> None:
    model_of(family).generate(**inputs, logits_processor=processor, max_new_tokens=2, do_sample=False)


@EVERY_FAMILY
def test_a_processor_of_one_call_in_another(family):
    one, two = inputs_of(f"{family}_img0"), inputs_of(f"{family}_batch2")
    model = model_of(family)
    message = "input_ids must .* this processor was made for, got .*; make one processor for each call's inputs"
    rejected(InputsError, message, generate, family, two, DAMROProcessor(model, one))
    rejected(InputsError, message, generate, family, one, DAMROProcessor(model, two))


def test_another_question_about_the_same_image():
    """Of the same length, shorter and longer: a longer one must not pass for the old one with a history."""
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    processor = DAMROProcessor(model, inputs)
    ids = inputs["input_ids"]
    for other in (
        torch.cat([ids[:, :-1], torch.tensor([[7]])], dim=1),
        ids[:, :-1],
        torch.cat([ids[:, :-1], torch.tensor([[7, 8, 9]])], dim=1),
    ):
        changed = inputs | {"input_ids": other, "attention_mask": torch.ones_like(other)}
        rejected(InputsError, "make one processor", generate, "llava", changed, processor)


def test_a_model_that_overflows():
    """NaN weights in the head: generate would go on with nonsense."""
    model, inputs = fresh_model("llava"), inputs_of("llava_img0")
    with torch.no_grad():
        model.lm_head.weight[3] = math.nan
    processor = DAMROProcessor(model, inputs)
    message = "scores must .* got NaN or infinity; .* try bfloat16 or float32 instead of float16"
    with pytest.raises(NonFiniteScoresError, match=message):
        model.generate(**inputs, logits_processor=processor, max_new_tokens=2, do_sample=False)
    assert issubclass(NonFiniteScoresError, ValueError)


def test_an_image_of_nan():
    """Nothing useful can be ranked; it must not be decoded silently."""
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    inputs["pixel_values"] = torch.full_like(inputs["pixel_values"], math.nan)
    with pytest.raises(ValueError, match="NaN"):
        model.generate(**inputs, logits_processor=DAMROProcessor(model, inputs), max_new_tokens=2, do_sample=False)
