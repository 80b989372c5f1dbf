"""Four threads that ask one model by different methods, again and again: each gets what it gets alone."""

from __future__ import annotations

import pytest
import torch

from tests.golden_cases import inputs_of, model_of
from tests.test_threads import other_images, state, together, write_fused, write_lazily

THREADS, ROUNDS, SLOW_ROUNDS = 4, 2, 25
FAULTS = THREADS * (ROUNDS + SLOW_ROUNDS)
"""Generations in threads that the tests run, taking turns fifty times as often as they would."""


pytestmark = pytest.mark.usefixtures("switching")


def run(rounds: int) -> None:
    model = model_of("llava")
    images = [*other_images(inputs_of("llava_img0")), inputs_of("llava_img0")]
    works = [write_fused, write_lazily, write_fused, write_lazily]
    alone = [work(model, inputs) for work, inputs in zip(works, images, strict=True)]
    before = state(model)
    found = together(
        *[
            lambda work=work, inputs=inputs: [work(model, inputs) for _ in range(rounds)]
            for work, inputs in zip(works, images, strict=True)
        ]
    )
    for expected, results in zip(alone, found, strict=True):
        assert isinstance(results, list), results
        assert all(torch.equal(result, expected) for result in results)
    assert state(model) == before


def test_four_threads_at_once() -> None:
    run(ROUNDS)


@pytest.mark.slow
def test_four_threads_for_long() -> None:
    run(SLOW_ROUNDS)
