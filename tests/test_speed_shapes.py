"""Random models of real shapes: what benchmarks rely on."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch

from damro.decoding.rules import plausible_tokens
from damro.speed.shapes import SHAPES, random_inputs, random_model


@pytest.mark.parametrize("hidden", [64, 256])
def test_a_few_tokens_are_plausible_whatever_the_width(hidden: int) -> None:
    # With tied weights a model of so few layers would repeat its last token.
    model = random_model(replace(SHAPES["micro"], hidden=hidden, tied=False))
    options: dict[str, Any] = {"max_new_tokens": 24, "output_logits": True, "return_dict_in_generate": True}
    logits = torch.stack(model.generate(**random_inputs(model, 4), do_sample=True, top_k=0, **options).logits)
    counts = plausible_tokens(logits, 0.1).sum(dim=-1).flatten().tolist()
    assert 2 <= statistics.median(counts) <= 20
    assert logits.std().item() == pytest.approx(3.84, rel=0.2)


def test_it_never_ends_an_answer_by_itself() -> None:
    model = random_model(SHAPES["micro"])
    inputs = random_inputs(model, 2)
    assert model.generate(**inputs, max_new_tokens=40).shape[1] == inputs["input_ids"].shape[1] + 40
