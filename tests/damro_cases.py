"""DAMRO on the golden models, in the few words that its tests share."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from damro import DAMROProcessor
from tests.golden_cases import FAMILIES, Inputs, inputs_of, model_of, prompt_length
from tests.stateless import StatelessDAMRO

STRENGTHS: dict[str, Any] = {"alpha": 1.0, "beta": 0.1, "top_k": 4}
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)


def damro(family: str, name: str = "img0", **changes: Any) -> tuple[Any, Inputs, DAMROProcessor]:
    model, inputs = model_of(family), inputs_of(f"{family}_{name}")
    return model, inputs, DAMROProcessor(model, inputs, **STRENGTHS | changes)


def write(model: Any, inputs: Any, processor: Any, **options: Any) -> Tensor:
    """The tokens behind the prompt; greedy unless told otherwise."""
    options = {"max_new_tokens": 8, "do_sample": False} | options
    return model.generate(**inputs, logits_processor=processor, **options)[:, prompt_length(inputs) :]


def stateless(model: Any, inputs: Inputs) -> list[StatelessDAMRO]:
    return [StatelessDAMRO(model, inputs, **STRENGTHS)]


def tower_of(model: Any) -> Any:
    return model.vision_model if model.config.model_type == "instructblip" else model.model.vision_tower
