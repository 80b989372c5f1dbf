"""What the bench measures of the analysis; nothing here looks at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from damro.decoding.families import check_inputs, family_of, generic
from damro.decoding.families.generic.maps import forget
from damro.speed.analysis import measure_analysis
from damro.speed.shapes import SHAPES, random_inputs, random_model, with_grid
from damro.speed.timing import counted, methods
from damro.vision.attention import cls_attention


@pytest.mark.parametrize(("name", "looks_up"), [("micro", 0), ("micro-qwen2.5-vl", 1)])
def test_every_round_runs_the_tower_with_and_without_the_analysis(name: str, looks_up: int) -> None:
    """The map of columns is looked up in every round anew, in one run."""
    model = random_model(SHAPES[name])
    with counted(family_of(model).vision_tower(model)) as runs:
        speed = measure_analysis(model, random_inputs(model, 2), repeats=3)
    first = 1 if looks_up else 0  # the run whose columns are looked up again and again
    assert len(runs) == first + (3 + 1) * (2 + looks_up) + looks_up
    assert (speed.verifying is None) == (looks_up == 0)


def test_a_model_that_was_forgotten_is_looked_at_again() -> None:
    model = random_model(SHAPES["micro-qwen2.5-vl"])
    inputs = random_inputs(model, 1)
    numbers = []
    for again in (False, False, True):
        if again:
            forget(model)
        with counted(family_of(model).vision_tower(model)) as runs:
            cls_attention(model, inputs, source="received")
        numbers.append(len(runs))
    assert numbers == [2, 1, 2]


@torch.no_grad()
def test_a_windowed_shape_is_a_qwen_of_so_many_columns() -> None:
    model = random_model(with_grid(SHAPES["micro-qwen2.5-vl"], 8))
    assert model.config.model_type == "qwen2_5_vl" and family_of(model) is generic
    inputs = random_inputs(model, 2, images=2)
    check_inputs(model, inputs)
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 2 * 2 * 64
    assert inputs["image_grid_thw"].tolist() == [[1, 16, 16]] * 4 and len(inputs["pixel_values"]) == 4 * 256
    attention = cls_attention(model, inputs, source="received")
    assert attention.grid == (8, 8) and attention.row.tolist() == [0, 0, 1, 1]
    same = random_inputs(model, 2, same_image=True)["pixel_values"]
    assert torch.equal(*same.chunk(2))


def test_what_is_measured_writes_the_same() -> None:
    # With tied weights a model of so few layers would repeat its last token.
    model = random_model(replace(SHAPES["micro-qwen2.5-vl"], tied=False))
    inputs = random_inputs(model, 2)
    calls = methods(model, inputs, None, "damro:alpha=2,beta=0.1,top_k=5")
    written = {name: call(max_new_tokens=6, do_sample=False) for name, call in calls.items()}
    assert torch.equal(written["lazy"], written["fused"]) and not torch.equal(written["lazy"], written["greedy"])
    assert torch.equal(written["lazy-idle"], written["greedy"])
