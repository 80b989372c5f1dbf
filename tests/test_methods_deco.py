"""DeCo against its equations on stock eager models, and against what its authors' code computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import damro
from damro.decoding.errors import ParameterError, UnsupportedModelError
from damro.methods import DeCo, Scene
from damro.methods.deco import DeCoRule
from tests.family_models import encoder_inputs, family_model
from tests.golden_cases import Inputs
from tests.llava_models import llava_inputs, llava_of
from tests.test_methods_dola import row_alone

DEPTH, NEW = 6, 8
OPTIONS: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def write_by_hand(model: Any, inputs: Inputs, method: DeCo, layers: list[int]) -> list[int]:
    """Greedy search over one prompt, everything read anew at every token; token by token in plain numbers."""
    rows, end = inputs["input_ids"], model.get_decoder().norm
    for _ in range(NEW):
        output = model(input_ids=rows, pixel_values=inputs["pixel_values"], output_hidden_states=True)
        logits = output.logits[0, -1].tolist()
        likely = output.logits[0, -1].softmax(-1).tolist()
        candidates, held = list[int](), 0.0
        for token in sorted(range(len(likely)), key=lambda token: -likely[token])[: method.threshold_top_k]:
            if held < method.threshold_top_p:
                candidates.append(token)
                held += likely[token]
        early = [model.lm_head(end(output.hidden_states[layer][0, -1])) for layer in layers]
        best, chosen = max((max(one.softmax(-1)[candidates].tolist()), -number) for number, one in enumerate(early))
        scores = {token: logits[token] + method.alpha * best * float(early[-chosen][token]) for token in candidates}
        rows = torch.cat([rows, torch.tensor([[max(scores, key=lambda token: scores[token])]])], dim=-1)
    return rows[0, -NEW:].tolist()


@torch.no_grad()
def test_tokens_are_those_of_the_equations() -> None:
    model, inputs = llava_of(text={"num_hidden_layers": DEPTH}), llava_inputs(rows=2)
    model.set_attn_implementation("eager")
    method = DeCo(alpha=4.0, threshold_top_k=8, threshold_top_p=0.6, layers="0-2,4")
    expected = [write_by_hand(model, row_alone(inputs, row), method, [0, 1, 2, 4]) for row in range(2)]
    model.set_attn_implementation("sdpa")
    assert damro.generate(model, inputs, method, **OPTIONS)[:, -NEW:].tolist() == expected
    assert damro.generate(model, inputs, "greedy", **OPTIONS)[:, -NEW:].tolist() != expected


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (DeCo(), [[4, 164, 161, 37, 172, 37, 172, 37], [12, 88, 83, 12, 53, 170, 103, 170]]),
        (DeCo(2.0, layers="0,2,4"), [[4, 164, 161, 37, 172, 37, 172, 37], [12, 88, 83, 12, 53, 170, 103, 172]]),
        (DeCo(5.0, 5, 0.3, "1-5"), [[26, 26, 26, 26, 97, 98, 4, 195], [53, 170, 182, 73, 73, 37, 179, 4]]),
    ],
    ids=str,
)
def test_tokens_are_those_of_the_authors_code(method: DeCo, expected: list[list[int]]) -> None:
    """Of the steps of `deco_greedy_search` in zjunlp/Deco, a prompt at a time."""
    model, inputs = llava_of(text={"num_hidden_layers": DEPTH}), llava_inputs(rows=2)
    assert damro.generate(model, inputs, method, **OPTIONS)[:, -NEW:].tolist() == expected


@pytest.mark.parametrize(("depth", "first", "last"), [(32, 20, 28), (40, 25, 35), (6, 3, 5), (4, 2, 3), (2, 1, 1)])
def test_layers_are_as_deep_as_the_released_ones(depth: int, first: int, last: int) -> None:
    model: Any = llava_of(text={"num_hidden_layers": depth})
    contrast: Any = DeCo().prepare(model, llava_inputs(), Scene())
    assert list(contrast.negative.layers) == [number - 1 for number in range(first, last + 1)]


def test_a_rule_that_needs_no_other_logits_for_the_rest() -> None:
    full = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.97, 0.01, 0.01, 0.01]]).log()
    rule = DeCoRule(top_k=20, top_p=0.7)
    assert rule.needed(full, 0).tolist() == [[True, True, False, False], [False] * 4]
    noise = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    scores = rule(full, noise, 0)
    assert torch.allclose(scores[0, :2], (full + noise)[0, :2].log_softmax(-1))
    assert scores[1].tolist() == rule(full, None, 0)[1].tolist() == [0.0] + [-torch.inf] * 3


def test_what_is_refused() -> None:
    for wrong, message in (
        ({"threshold_top_k": 0}, "threshold_top_k must be a whole number of at least 1"),
        ({"threshold_top_p": 0.0}, r"threshold_top_p must be in \(0, 1\]"),
        ({"alpha": -1.0}, "alpha must be a finite number >= 0"),
        ({"layers": "low"}, "layers must be numbers or ranges with commas between, got 'low'"),
    ):
        with pytest.raises(ParameterError, match=message):
            DeCo(**wrong)
    for layers in ("1-2", "5-3"):
        with pytest.raises(ParameterError, match="layers must be numbers from 0 to 1"):
            damro.generate(llava_of(), llava_inputs(), DeCo(layers=layers), max_new_tokens=2)
    with pytest.raises(UnsupportedModelError, match="left to right|list"):
        damro.generate(family_model("blip-2-t5"), encoder_inputs("blip-2-t5", 1), "deco", max_new_tokens=2)
