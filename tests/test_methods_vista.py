"""VISTA against its equations on stock eager models, and against what its authors' code computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import damro
from damro.decoding.errors import ParameterError, UnsupportedModelError
from damro.methods import Scene, Vista
from damro.methods.vista import steer
from tests.family_models import encoder_inputs, family_inputs, family_model
from tests.golden_cases import Inputs
from tests.llava_models import llava_inputs, llava_of
from tests.test_methods_dola import row_alone

DEPTH, NEW = 6, 8
OPTIONS: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def steered_by_hand(x: Tensor, v: Tensor, strength: float) -> Tensor:
    """One vector, in numbers."""
    cosine = float(x @ v / x.norm() / v.norm())
    turned = x / x.norm() + strength * (1 + max(0.0, -cosine)) * v / v.norm()
    return turned / turned.norm() * x.norm()


def write_by_hand(model: Any, inputs: Inputs, strength: float, mix: float, earlier: list[int]) -> list[int]:
    """Greedy search over one prompt, everything read anew at every token."""
    rows, layers = inputs["input_ids"], model.get_decoder().layers
    seen: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda module, args, output: seen.append(output[0, -1])) for layer in layers]
    model(input_ids=rows, pixel_values=inputs["pixel_values"])
    model(input_ids=rows[rows != model.config.image_token_id][None])
    for hook in hooks:
        hook.remove()
    vectors = [seen[number] - seen[number + DEPTH] for number in range(DEPTH)]

    def turn(vector: Tensor) -> Any:
        return lambda module, args, output: torch.stack(
            [torch.stack([steered_by_hand(x, vector, strength) for x in row]) for row in output]
        )

    hooks = [layer.mlp.register_forward_hook(turn(vector)) for layer, vector in zip(layers, vectors, strict=True)]
    for _ in range(NEW):
        output = model(input_ids=rows, pixel_values=inputs["pixel_values"], output_hidden_states=True)
        others = [model.lm_head(output.hidden_states[number + 1][:, -1]) for number in earlier]
        logits = (1 - mix) * output.logits[:, -1] + mix * sum(others) / len(others)
        rows = torch.cat([rows, logits.argmax(dim=-1, keepdim=True)], dim=-1)
    for hook in hooks:
        hook.remove()
    return rows[0, -NEW:].tolist()


@torch.no_grad()
def test_tokens_are_those_of_the_equations() -> None:
    model, inputs = llava_of(text={"num_hidden_layers": DEPTH}), llava_inputs(rows=2)
    model.set_attn_implementation("eager")
    expected = [write_by_hand(model, row_alone(inputs, row), 0.3, 0.4, [2, 3, 4]) for row in range(2)]
    model.set_attn_implementation("sdpa")
    found = damro.generate(model, inputs, Vista(strength=0.3, mix=0.4, window=3), **OPTIONS)
    assert found[:, -NEW:].tolist() == expected
    assert damro.generate(model, inputs, "greedy", **OPTIONS)[:, -NEW:].tolist() != expected


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (Vista(0.3, 0.3, 2), [[115, 37, 172, 74, 74, 74, 73, 37], [41, 90, 90, 90, 90, 90, 90, 90]]),
        (Vista(), [[4, 164, 37, 187, 178, 127, 97, 172], [53, 170, 182, 74, 103, 12, 53, 170]]),
        (Vista(0.0, 0.5, 3), [[115, 37, 172, 37, 172, 73, 13, 80], [12, 88, 54, 37, 73, 90, 115, 37]]),
        (Vista(0.5, 0.0), [[4, 37, 64, 140, 98, 74, 37, 64], [90, 90, 90, 90, 90, 90, 90, 90]]),
    ],
    ids=str,
)
def test_tokens_are_those_of_the_authors_code(method: Vista, expected: list[list[int]]) -> None:
    """Of `VSVLayer` and the rule for logits in LzVv123456/VISTA, in float32, a prompt at a time."""
    model, inputs = llava_of(text={"num_hidden_layers": DEPTH}), llava_inputs(rows=2)
    assert damro.generate(model, inputs, method, **OPTIONS)[:, -NEW:].tolist() == expected


def test_steering_keeps_lengths_and_turns_more_where_states_point_away() -> None:
    vector = torch.tensor([1.0, 0.0, 0.0])
    states = torch.tensor([[[3.0, 4.0, 0.0], [-3.0, 4.0, 0.0], [-3.0, 4.0, 0.0]]])
    turned = steer(states, vector, 0.2)
    assert torch.allclose(turned.norm(dim=-1), torch.full((1, 3), 5.0))
    expected = [[steered_by_hand(one, vector, 0.2).tolist() for one in states[0]]]
    assert torch.allclose(turned, torch.tensor(expected), atol=1e-6)


def test_the_strength_is_the_task_s() -> None:
    assert Vista().settle("llava", "chair").strength == 0.17
    assert Vista().settle("llava", "pope").strength == 0.01
    assert Vista().settle("llava", "mme").strength == Vista().settle("llava").strength == 0.1
    assert Vista(strength=0.0).settle("llava", "chair").strength == 0.0


def test_with_nothing_to_do_it_is_plain_decoding() -> None:
    model, inputs = llava_of(), llava_inputs(rows=2)
    plain = damro.generate(model, inputs, "greedy", **OPTIONS)
    assert torch.equal(damro.generate(model, inputs, "vista:strength=0,mix=0", **OPTIONS), plain)
    contrast = Vista(strength=0.0, mix=0.0).prepare(model, inputs, Scene())
    assert contrast.altered is None  # type: ignore[union-attr]


def test_what_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"mix must be in \[0, 1\], got 1.5"):
        Vista(mix=1.5)
    with pytest.raises(ParameterError, match="window must be a whole number of at least 1"):
        Vista(window=0)
    with pytest.raises(UnsupportedModelError, match="left to right"):
        damro.generate(family_model("blip-2-t5"), encoder_inputs("blip-2-t5", 1), "vista", max_new_tokens=2)
    with pytest.raises(UnsupportedModelError, match="an MLP module in each layer .* got none in OPTDecoderLayer"):
        damro.generate(family_model("blip-2"), family_inputs("blip-2"), "vista", max_new_tokens=2)
    with pytest.raises(ParameterError, match="strategy must be 'auto' or 'lazy'"):
        damro.generate(llava_of(), llava_inputs(), "vista", strategy="fused", max_new_tokens=2)
