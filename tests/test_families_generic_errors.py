"""Inputs that do not fit a model without a module of its own, and towers whose attention is out of reach."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers as hf

import damro
from damro.decoding.errors import InputsError, UnsupportedModelError
from damro.decoding.families import family_of
from damro.decoding.families.generic.support import NO_PATCHES, why_not
from tests.zoo import zoo_inputs, zoo_model
from tests.zoo_images import IMAGE

DAMRO = "damro:alpha=2,beta=0.1,top_k=3"
NEW: dict[str, Any] = {"max_new_tokens": 2, "do_sample": False}
EACH = pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl", "smolvlm", "gemma3"])


def asked(name: str, method: str, **changed: Any) -> None:
    damro.generate(zoo_model(name), {**zoo_inputs(name), **changed}, method, **NEW)


@EACH
@pytest.mark.parametrize("method", [DAMRO, "vcd:alpha=1,beta=0.1", "no-image:alpha=1,beta=0.1"])
def test_the_image_token_of_another_model_is_told(name: str, method: str) -> None:
    ids = zoo_inputs(name)["input_ids"]
    with pytest.raises(InputsError, match=f"processor of this very model, whose image token is {IMAGE}"):
        asked(name, method, input_ids=ids.where(ids != IMAGE, 77))


@EACH
def test_an_image_without_tokens_is_told_by_its_row(name: str) -> None:
    ids = zoo_inputs(name)["input_ids"]
    ids[1] = ids[1].where(ids[1] != IMAGE, 77)
    with pytest.raises(InputsError, match=r"got none in rows \[1\] \(1 in all\).*out of the batch$"):
        asked(name, DAMRO, input_ids=ids)


@EACH
@pytest.mark.parametrize("more", [1, -1])
def test_tokens_must_be_as_many_as_features(name: str, more: int) -> None:
    ids = zoo_inputs(name)["input_ids"]
    number = int((ids == IMAGE).sum())
    place = -1 if more > 0 else int((ids[1] == IMAGE).nonzero()[0])
    ids[1, place] = IMAGE if more > 0 else 77
    for method in (DAMRO, "random-k:alpha=2,beta=0.1,top_k=3,seed=0", "vcd:alpha=1,beta=0.1"):
        with pytest.raises(InputsError, match=f"got {number + more} tokens for {number} features; pass what"):
            asked(name, method, input_ids=ids)


@EACH
def test_tokens_without_pixels_are_told(name: str) -> None:
    inputs = {key: value for key, value in zoo_inputs(name).items() if key != "pixel_values"}
    with pytest.raises(InputsError, match="must hold 'pixel_values' as a tensor, got the keys"):
        damro.generate(zoo_model(name), inputs, DAMRO, **NEW)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl", "smolvlm"])
def test_a_tower_is_recorded_under_any_attention(name: str) -> None:
    """While it is looked at a tower attends by a function that can be, and afterwards by its own again."""
    model, inputs = copy.deepcopy(zoo_model(name)), zoo_inputs(name)
    model.set_attn_implementation("eager")
    source: Any = "cls" if name == "internvl" else "received"
    expected = damro.cls_attention(zoo_model(name), inputs, source=source).weights
    ours = damro.cls_attention(model, inputs, source=source).weights
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    assert model.get_encoder(modality="image").config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (hf.JanusForConditionalGeneration, "drops logits processors"),
        (hf.Llama4ForConditionalGeneration, "only where its language model reads them"),
        (hf.Granite4VisionForConditionalGeneration, "in deeper layers alone"),
        (hf.FuyuForCausalLM, "has no vision tower"),
        (hf.MllamaForConditionalGeneration, "cross-attention"),
    ],
)
def test_a_model_that_cannot_be_served_is_told_why(kind: type[Any], reason: str) -> None:
    model = kind.__new__(kind)  # without weights: its class is enough to tell
    torch.nn.Module.__init__(model)
    model.config = kind.config_class()
    with pytest.raises(UnsupportedModelError, match=f"got model_type '{model.config.model_type}', which .*{reason}"):
        family_of(model)
    assert reason in str(why_not(kind))


@pytest.mark.parametrize("name", sorted(NO_PATCHES))
def test_what_has_no_patches_is_served_otherwise(name: str) -> None:
    kind = hf.AutoModelForImageTextToText._model_mapping[type(hf.AutoConfig.for_model(name))]
    assert why_not(kind) is None, "methods that choose none must be served"
