"""Bounds from shapes: beside the models that transformers makes, operations that torch counts, and sums by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from damro.speed.roofline import LOADS, Accelerator, Load, bound, language_weights, table, vision_weights
from damro.speed.shapes import SHAPES, random_model
from damro.speed.timing import weight_bytes

SHAPE = SHAPES["llava-1.5-7b"]
PAGE = Path(__file__).parents[1] / "docs/scale.md"


@pytest.mark.parametrize("name", ["micro", "small", "llava-1.5-7b"])
def test_weights_are_those_of_the_model(name: str) -> None:
    model = random_model(SHAPES[name], device="meta", dtype=torch.bfloat16)
    assert 2 * sum(language_weights(SHAPES[name])) == weight_bytes(model)
    tower = model.model.vision_tower
    positions = SHAPES[name].grid ** 2 + 1
    matrices = [weight for weight in tower.parameters() if weight.ndim > 1 and len(weight) != positions]
    assert vision_weights(SHAPES[name]) == sum(map(torch.numel, matrices))


def test_operations_are_those_that_torch_counts() -> None:
    shape = replace(SHAPES["micro"], hidden=256, intermediate=1024)
    model, columns = random_model(shape), 32
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        states = model.get_decoder()(inputs_embeds=torch.zeros(1, columns, shape.hidden), use_cache=False)
        model.lm_head(states.last_hidden_state[:, -1:])
    layers, head = language_weights(shape)
    computed = 2 * (layers * columns + head)
    assert counter.get_total_flops() == pytest.approx(computed, rel=0.02)  # no norms; here attention is next to nothing


def test_a_bound_is_its_sums_by_hand() -> None:
    shape = replace(SHAPES["micro"], grid=3)
    layers, head = language_weights(shape)
    assert layers == 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64) + 64  # 2 of 4 heads have keys
    kv = 2 * 2 * 32  # numbers a column
    reading = Accelerator(bandwidth=1.0, flops=1e30)
    shared = Load(groups=3, images=1, questions=6, tokens=3, before=5, after=20)
    read = bound(shape, reading, shared)
    assert read.vision == 3 * 2 * vision_weights(shape)
    assert read.prompts == 3 * 2 * (layers + layers + head + kv * 14)
    assert read.steps == 3 * 2 * (2 * (layers + head) + kv * (14 + 120) + kv * (14 + 120 + 6))
    computing = Accelerator(bandwidth=1e30, flops=1.0)
    done = bound(shape, computing, shared)
    assert done.prompts == 3 * 2 * (layers * 14 + layers * 120 + head * 6)
    assert done.steps == 3 * 2 * 2 * (layers * 6 + head * 6)
    assert bound(shape, computing, replace(shared, negative=2)).prompts == 3 * 2 * (
        layers * (14 + 7) + layers * 240 + head * 12
    )
    alone = bound(shape, computing, Load(groups=1, images=4, questions=4, tokens=1))
    assert (alone.prompts, alone.steps) == (2 * (layers * 4 * 34 + head * 4), 0)
    assert done.total == done.vision + done.prompts + done.steps


def test_the_page_shows_what_is_computed() -> None:
    assert table(SHAPE) in PAGE.read_text()


def test_the_loads_are_the_benchmarks() -> None:
    assert {load.groups * load.questions for name, load in LOADS.items() if name.startswith("POPE")} == {9000}
    assert {load.groups * load.questions for name, load in LOADS.items() if name.startswith("CHAIR")} == {500}
