"""Passes that are changed or looked into, against stock eager models in which the same is done by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers.models.llama import modeling_llama

import damro
from damro.decoding.altering import Alteration, Columns, layers_of
from damro.decoding.branches.readout import LayerHead, Readout
from damro.decoding.errors import ParameterError, UnsupportedModelError
from damro.decoding.families import family_of
from damro.decoding.rules import Contrast, ContrastRule
from damro.methods import Method, Scene
from tests.family_models import encoder_inputs, family_model
from tests.golden_cases import Inputs
from tests.llava_models import llava_inputs, llava_of

BOOST = 3.0


def boosted(logits: Tensor, layer: int, columns: Columns) -> Tensor:
    """Layer 1 looks at the image more."""
    if layer != 1:
        return logits
    image = torch.nn.functional.pad(columns.image, (0, logits.shape[-1] - columns.image.shape[1]))
    return logits + BOOST * image[:, None, None]


@dataclass(frozen=True)
class Boost(Method):
    """Attention changed in the full prompt; contrasted with the text alone, or with nothing."""

    name: ClassVar = "boost"
    source: ClassVar = "test"

    alone: bool = True

    def contrast(self, model: Any, inputs: Any, scene: Scene) -> Any:
        full: Any = scene.full_prompt(model, inputs, scene.look(model, inputs))
        altered = replace(full, altered=Alteration(attention=boosted))
        return altered if self.alone else Contrast(altered, full.drop_image(), ContrastRule(1.0, 0.1))


@dataclass(frozen=True)
class Steered(Method):
    """Something is added to what a layer puts out, in the second prompt alone."""

    name: ClassVar = "steered"
    source: ClassVar = "test"

    def contrast(self, model: Any, inputs: Any, scene: Scene) -> Any:
        full: Any = scene.full_prompt(model, inputs, scene.look(model, inputs))
        layer = layers_of(family_of(model).decoder(model))[0]
        steered = replace(full, altered=Alteration(outputs=((layer, lambda states, columns: states + 0.3),)))
        return Contrast(full, steered, ContrastRule(1.0, 0.1))


class _Early(Readout):
    layers = (0,)

    def logits(self, states: Sequence[Tensor], full: Tensor, head: LayerHead) -> Tensor:
        return head(states[0])


@dataclass(frozen=True)
class Early(Method):
    """The first layer's logits are subtracted."""

    name: ClassVar = "early"
    source: ClassVar = "test"

    def contrast(self, model: Any, inputs: Any, scene: Scene) -> Any:
        return Contrast(scene.full_prompt(model, inputs, scene.look(model, inputs)), _Early(), ContrastRule(1.0, 0.1))


def plain_logits(model: Any, inputs: Inputs, rows: Tensor, image: bool = True) -> Tensor:
    """`(R, V)`: stock logits behind whole rows of tokens, read anew without a cache."""
    copies = len(rows) // len(inputs["input_ids"])
    pad = rows.shape[1] - inputs["input_ids"].shape[1]
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, pad), value=1).repeat_interleave(copies, dim=0)
    pixels = inputs["pixel_values"].repeat_interleave(copies, dim=0)
    if image:
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        return model(input_ids=rows, attention_mask=mask, pixel_values=pixels, position_ids=positions).logits[:, -1]
    kept = [row[read.bool() & (row != model.config.image_token_id)] for row, read in zip(rows, mask, strict=True)]
    return torch.cat([model(input_ids=row[None]).logits[:, -1] for row in kept])


class _ByHand:
    """Eager attention of transformers with a mask that is raised in layer 1 at image columns."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, inputs: Inputs, image_token: int) -> None:
        eager, self.on, self.rows = modeling_llama.eager_attention_forward, False, inputs["input_ids"]

        def forward(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **kwargs: Any) -> Any:
            if self.on and module.layer_idx == 1:
                mask = mask + BOOST * (self.rows == image_token)[:, None, None]
            return eager(module, query, key, value, mask, **kwargs)

        monkeypatch.setattr(modeling_llama, "eager_attention_forward", forward)


def write_by_hand(model: Any, inputs: Inputs, hand: _ByHand | None, contrast: str, steps: int) -> Tensor:
    """Greedy search by the definition, everything read anew at every step."""
    rows = inputs["input_ids"]
    for _ in range(steps):
        if hand is not None:
            hand.on, hand.rows = True, rows
        full = plain_logits(model, inputs, rows)
        if hand is not None:
            hand.on = False
        scores = full.log_softmax(-1)
        if contrast:
            other = _other(model, inputs, rows, contrast)
            keep = full >= full.amax(-1, keepdim=True) + torch.tensor(0.1).log()
            scores = (2 * full - other).masked_fill(~keep, -torch.inf)
        rows = torch.cat([rows, scores.argmax(-1, keepdim=True)], dim=-1)
    return rows


def _other(model: Any, inputs: Inputs, rows: Tensor, contrast: str) -> Tensor:
    layer = model.get_decoder().layers[0]
    if contrast == "text":
        return plain_logits(model, inputs, rows, image=False)
    if contrast == "steered":
        handle = layer.register_forward_hook(lambda module, args, output: output + 0.3)
        other = plain_logits(model, inputs, rows)
        handle.remove()
        return other
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, args, output: seen.append(output[:, -1]))
    plain_logits(model, inputs, rows)
    handle.remove()
    return model.get_output_embeddings()(model.get_decoder().norm(seen[0]))


def two_prompts() -> Inputs:
    """Two prompts about two images, the second shorter and padded on the left."""
    return llava_inputs(rows=2)


def hooks_of(model: Any) -> list[tuple[int, int]]:
    """How many hooks every module has."""
    return [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in model.modules()]


ENCODER_DECODER = "blip-2-t5"
OPTIONS: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
CASES = [(Boost(), ""), (Boost(alone=False), "text"), (Steered(), "steered"), (Early(), "early")]


@pytest.mark.parametrize(("method", "contrast"), CASES)
def test_tokens_are_those_of_the_definition(method: Method, contrast: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = llava_of(), two_prompts()
    model.set_attn_implementation("eager")
    hand = _ByHand(monkeypatch, inputs, model.config.image_token_id)
    with torch.no_grad():
        expected = write_by_hand(model, inputs, hand if isinstance(method, Boost) else None, contrast, 6)
        plain = write_by_hand(model, inputs, None, "", 6)
    assert not torch.equal(expected, plain)  # the method does something here
    model.set_attn_implementation("sdpa")
    hooks = hooks_of(model)
    assert torch.equal(damro.generate(model, inputs, method, **OPTIONS), expected)
    assert torch.equal(damro.generate(model, inputs, method, strategy="lazy", **OPTIONS), expected)
    # No trace: neither in the model nor in what comes after.
    assert torch.equal(damro.generate(model, inputs, "greedy", **OPTIONS), plain)
    assert torch.equal(model.generate(**inputs, **OPTIONS), plain)
    assert hooks_of(model) == hooks


@pytest.mark.parametrize("method", [method for method, _ in CASES])
def test_samples_and_beams(method: Method) -> None:
    """Beams and returned sequences repeat the rows; one row is the same alone."""
    model, inputs = llava_of(), two_prompts()
    alone = {key: value[:1] for key, value in inputs.items()}
    torch.manual_seed(0)
    several = damro.generate(model, inputs, method, **{**OPTIONS, "do_sample": True}, num_return_sequences=2)
    assert len(several) == 4
    beams = {**OPTIONS, "num_beams": 3}
    both, first = damro.generate(model, inputs, method, **beams), damro.generate(model, alone, method, **beams)
    assert torch.equal(both[0], first[0])
    assert torch.equal(
        damro.generate(model, inputs, method, **{**OPTIONS, "num_beams": 1})[0],
        damro.generate(model, alone, method, **OPTIONS)[0],
    )


def test_what_cannot_be_had_is_refused() -> None:
    model, inputs = llava_of(), llava_inputs()
    with pytest.raises(ParameterError, match="strategy must be 'auto' or 'lazy' .* got 'fused'"):
        damro.generate(model, inputs, Boost(), strategy="fused", **OPTIONS)
    with pytest.raises(ParameterError, match="prompt_lookup_num_tokens must be left out .* inside"):
        damro.generate(model, inputs, Early(), prompt_lookup_num_tokens=3, **OPTIONS)
    with pytest.raises(ParameterError, match="output_attentions must be left out"):
        damro.generate(model, inputs, Boost(), output_attentions=True, return_dict_in_generate=True, **OPTIONS)
    with pytest.raises(ParameterError, match="works inside of the language model; use damro.generate"):
        damro.contrast_processor(model, inputs, Early())
    encoder_decoder, text = family_model(ENCODER_DECODER), encoder_inputs(ENCODER_DECODER, 1)
    for method in (Boost(), Steered(), Early()):
        with pytest.raises(UnsupportedModelError, match="left to right|list"):
            damro.generate(encoder_decoder, text, method, max_new_tokens=2)
    windowed = llava_of(text={"model_type": "mistral", "sliding_window": 4})
    with pytest.raises(UnsupportedModelError, match="sliding window"):
        damro.generate(windowed, inputs, Boost(), **OPTIONS)


def test_a_model_that_does_more_behind_its_layers_is_told() -> None:
    model, inputs = llava_of(), llava_inputs()
    head = model.lm_head
    head.register_forward_hook(lambda module, args, output: output)  # harmless
    damro.generate(model, inputs, Early(), **OPTIONS)
    model.register_forward_hook(lambda module, args, output: output.__setitem__("logits", output.logits * 2) or output)
    with pytest.raises(UnsupportedModelError, match="by a norm and an output layer"):
        damro.generate(model, inputs, Early(), **OPTIONS)
