"""DoLa against its equations on stock eager models, and against what its authors' code computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import damro
from damro.decoding.errors import ParameterError, UnsupportedModelError
from damro.methods import DoLa
from damro.methods.dola import Divergence, candidate_layers, most_different
from tests.family_models import encoder_inputs, family_model
from tests.golden_cases import Inputs
from tests.llava_models import llava_inputs, llava_of

DEPTH, NEW = 6, 8
OPTIONS: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def row_alone(inputs: Inputs, row: int) -> Inputs:
    """One prompt without its padding."""
    read = inputs["attention_mask"][row].bool()
    return {
        "input_ids": inputs["input_ids"][row : row + 1, read],
        "attention_mask": inputs["attention_mask"][row : row + 1, read],
        "pixel_values": inputs["pixel_values"][row : row + 1],
    }


def kl(p: Tensor, q: Tensor) -> float:
    return float((p * (p / q).log()).sum())


def write_by_hand(model: Any, inputs: Inputs, layers: list[int], divergence: Divergence, beta: float) -> list[int]:
    """Greedy search over probabilities, everything read anew at every token; one prompt."""
    rows, written = inputs["input_ids"], list[int]()
    for _ in range(NEW):
        output = model(input_ids=rows, pixel_values=inputs["pixel_values"], output_hidden_states=True)
        last = output.logits[0, -1].double().softmax(-1)
        others = [model.lm_head(output.hidden_states[layer][0, -1]).double().softmax(-1) for layer in layers]
        middles = [(last + other) / 2 for other in others]
        if divergence == "released":
            far = [kl(middle, last) + kl(middle, other) for middle, other in zip(middles, others, strict=True)]
        else:
            far = [kl(last, middle) + kl(other, middle) for middle, other in zip(middles, others, strict=True)]
        ratio = last / others[far.index(max(far))]
        written.append(int(ratio.masked_fill(last < beta * last.max(), 0).argmax()))
        rows = torch.cat([rows, torch.tensor([written[-1:]])], dim=-1)
    return written


@pytest.mark.parametrize("divergence", ["released", "jensen-shannon"])
@pytest.mark.parametrize(("layers", "beta"), [("low", 0.1), ("high", 0.3), ("0,1,5", 0.1), ("2", 0.3)])
@torch.no_grad()
def test_tokens_are_those_of_the_equations(layers: str, beta: float, divergence: Divergence) -> None:
    model, inputs = llava_of(text={"num_hidden_layers": DEPTH}), llava_inputs(rows=2)
    model.set_attn_implementation("eager")
    numbers = {"low": [0, 2], "high": [3, 5]}.get(layers) or [int(one) for one in layers.split(",")]
    expected = [write_by_hand(model, row_alone(inputs, row), numbers, divergence, beta) for row in range(2)]
    model.set_attn_implementation("sdpa")
    method = DoLa(layers=layers, beta=beta, divergence=divergence)
    assert damro.generate(model, inputs, method, **OPTIONS)[:, inputs["input_ids"].shape[1] :].tolist() == expected


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("low", [[123, 133, 53, 64, 98, 52, 103, 150], [52, 170, 29, 182, 127, 70, 113, 84]]),
        ("0,2,4", [[123, 133, 126, 30, 29, 122, 70, 123], [6, 194, 22, 45, 164, 127, 179, 42]]),
        ("1,3,5", [[107, 130, 123, 127, 64, 123, 56, 22], [24, 37, 115, 128, 197, 115, 194, 83]]),
        ("high", [[107, 130, 123, 127, 30, 179, 131, 123], [24, 37, 115, 128, 63, 170, 104, 179]]),
    ],
)
def test_tokens_are_those_of_the_authors_code(layers: str, expected: list[list[int]]) -> None:
    """Of one prompt at a time by the choice and the filter in `dola_greedy_decode` of voidism/DoLa."""
    model, inputs = llava_of(text={"num_hidden_layers": DEPTH}), llava_inputs(rows=2)
    found = damro.generate(model, inputs, DoLa(layers=layers), **OPTIONS)
    assert found[:, inputs["input_ids"].shape[1] :].tolist() == expected


def test_the_two_divergences_may_choose_differently() -> None:
    random = torch.Generator().manual_seed(0)
    full, early = torch.randn(64, 5, generator=random) * 3, torch.randn(4, 64, 5, generator=random) * 3
    released, paper = most_different(full, early), most_different(full, early, "jensen-shannon")
    same = (released == paper).all(dim=-1)
    assert 0 < int(same.sum()) < 64
    assert torch.equal(most_different(full[:3], early[:, :3]), released[:3])  # a row by itself


@pytest.mark.parametrize(
    ("layers", "depth", "tied", "expected"),
    [
        ("low", 40, False, list(range(0, 20, 2))),
        ("low", 60, False, list(range(0, 20, 2))),
        ("high", 60, False, list(range(40, 60, 2))),
        ("low", 4, True, [2]),
        ("low", 3, True, [2]),
        ("low", 2, True, [1]),
        ("low", 2, False, [0]),
        ("high", 2, True, [1]),
        ("low", 32, True, [2, 4, 6, 8, 10, 12, 14]),
        ("5,1-3,5", 6, True, [1, 2, 3, 5]),
    ],
)
def test_which_layers_are_candidates(layers: str, depth: int, tied: bool, expected: list[int]) -> None:
    assert candidate_layers(layers, depth, tied=tied) == expected


def test_tied_embeddings_are_seen() -> None:
    model, inputs = llava_of(text={"num_hidden_layers": DEPTH}), llava_inputs()
    apart = damro.generate(model, inputs, "dola", **OPTIONS)
    assert torch.equal(apart, damro.generate(model, inputs, 'dola:layers="0,2"', **OPTIONS))
    model.lm_head.weight = model.get_input_embeddings().weight
    tied = damro.generate(model, inputs, "dola", **OPTIONS)
    assert torch.equal(tied, damro.generate(model, inputs, 'dola:layers="2"', **OPTIONS))


def test_what_is_refused() -> None:
    for wrong in ("middle", "1;2", "-1", "1,", ""):
        with pytest.raises(ParameterError, match="layers must be"):
            DoLa(layers=wrong)
    with pytest.raises(ParameterError, match="layers must be numbers from 0 to 1, .* got '0,2'; 0 is the embeddings"):
        damro.generate(llava_of(), llava_inputs(), 'dola:layers="0,2"', **OPTIONS)
    with pytest.raises(ParameterError, match="divergence must be one of released, jensen-shannon"):
        damro.generate(llava_of(), llava_inputs(), "dola:divergence=own", **OPTIONS)
    with pytest.raises(UnsupportedModelError, match="left to right|list"):
        damro.generate(family_model("blip-2-t5"), encoder_inputs("blip-2-t5", 1), "dola", max_new_tokens=2)
