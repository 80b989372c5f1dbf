"""A `PeftModel` is decoded as the model with the adapter's layers inside is; needs peft."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import damro
from damro import DAMROProcessor, cls_attention
from damro.decoding.errors import UnsupportedModelError
from tests.golden_cases import FAMILIES, fresh_model, inputs_of
from tests.stateless import StatelessDAMRO
from tests.told import generate

peft = pytest.importorskip("peft", reason="peft is not installed")
STRENGTHS: dict[str, Any] = {"alpha": 1.0, "beta": 0.1, "top_k": 4}
OPTIONS: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}


def wrapped(family: str) -> Any:
    """LoRA on all attention, of the language model and of the ViT, with weights that change answers."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "k_proj", "v_proj", "qkv"])
    model = peft.get_peft_model(fresh_model(family), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_counts_in_both_prompts_and_in_the_vision_tower(family: str) -> None:
    model, inputs = wrapped(family), inputs_of(f"{family}_batch2")
    inside = model.get_base_model()
    reference = StatelessDAMRO(inside, inputs, **STRENGTHS)
    expected = inside.generate(**inputs, logits_processor=[reference], **OPTIONS)
    for strategy in ("fused", "lazy"):
        assert torch.equal(generate(model, inputs, strategy=strategy, **STRENGTHS, **OPTIONS), expected)
    processor = DAMROProcessor(model, inputs, **STRENGTHS)
    assert torch.equal(model.generate(**inputs, logits_processor=processor, **OPTIONS), expected)
    plain = generate(model, inputs, method="greedy", **OPTIONS)
    assert torch.equal(plain, model.generate(**inputs, **OPTIONS)) and not torch.equal(plain, expected)
    untouched = cls_attention(fresh_model(family), inputs).weights
    assert not torch.allclose(cls_attention(model, inputs).weights, untouched, atol=1e-3)
    with model.disable_adapter():
        assert torch.equal(cls_attention(model, inputs).weights, untouched)


def test_other_ways_to_look_at_a_wrapped_model() -> None:
    model, inputs = wrapped("llava"), inputs_of("llava_img0")
    inside = model.get_base_model()
    assert torch.equal(damro.prune(model, inputs, 4).inputs_embeds, damro.prune(inside, inputs, 4).inputs_embeds)
    one, other = (damro.patch_features(any_model, inputs).patches for any_model in (model, inside))
    assert torch.equal(one, other)


def test_a_bare_vision_tower_may_be_wrapped_too() -> None:
    tower = fresh_model("llava").model.vision_tower
    pixels = {"pixel_values": inputs_of("llava_img0")["pixel_values"]}
    expected = cls_attention(tower, pixels).weights
    model = peft.get_peft_model(tower, peft.LoraConfig(r=2, target_modules=["q_proj"])).eval()  # B is 0 at first
    assert torch.equal(cls_attention(model, pixels).weights, expected)


def test_virtual_tokens_are_refused() -> None:
    inside = fresh_model("llava")
    config = peft.PromptTuningConfig(num_virtual_tokens=2, task_type=None, num_layers=2, token_dim=32,
                                     num_transformer_submodules=1, num_attention_heads=4)  # fmt: skip
    model = peft.PeftModel(inside, config)
    for call in (DAMROProcessor, generate):
        with pytest.raises(UnsupportedModelError, match="adapters that are layers, such as LoRA, got PROMPT_TUNING"):
            call(model, inputs_of("llava_img0"), **STRENGTHS)
