"""A cache that grows in place holds what a dynamic cache holds, whatever is done to it."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from damro.decoding.branches.kv import ROOM, roomy_cache


def columns(rows: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    random_numbers = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 2, count, 4, generator=random_numbers), torch.randn(
        rows, 2, count, 4, generator=random_numbers
    )


@pytest.mark.parametrize("seed", range(6))
def test_any_course_of_things_leaves_what_a_dynamic_cache_holds(seed: int) -> None:
    draw = random.Random(seed)
    ours, stock, rows = roomy_cache(), DynamicCache(), 3
    for turn in range(60):
        deed = draw.choice(["grow", "grow", "grow", "choose", "reorder", "repeat", "crop"])
        if deed == "grow" or not stock.get_seq_length():
            for layer in range(2):
                new = columns(rows, draw.choice([1, 1, 1, 7, ROOM]), 100 * seed + turn)
                got, expected = ours.update(*new, layer), stock.update(*new, layer)
                assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])
        elif deed in ("choose", "reorder"):
            chosen = torch.tensor([draw.randrange(rows) for _ in range(draw.choice([rows, 2]))])
            for cache in (ours, stock):
                cache.batch_select_indices(chosen) if deed == "choose" else cache.reorder_cache(chosen)
            rows = len(chosen)
        elif deed == "repeat" and rows < 5:
            for cache in (ours, stock):
                cache.batch_repeat_interleave(2)
            rows *= 2
        elif deed == "crop":
            surplus = draw.randrange(1, 1 + min(3, stock.get_seq_length()))
            for cache in (ours, stock):
                cache.crop(-surplus)
        assert ours.get_seq_length() == stock.get_seq_length()
    for mine, theirs in zip(ours.layers, stock.layers, strict=True):
        assert torch.equal(mine.keys, theirs.keys) and torch.equal(mine.values, theirs.values)


def test_columns_are_copied_once_in_a_room_of_tokens() -> None:
    cache, places = roomy_cache(), []
    for turn in range(2 * ROOM):
        places.append(cache.update(*columns(1, 1, turn), 0)[0].data_ptr())
    assert len(set(places)) == 2


def test_what_was_returned_earlier_stays_as_it_was() -> None:
    cache = roomy_cache()
    first = cache.update(*columns(1, 3, 0), 0)[0]
    before = first.clone()
    cache.update(*columns(1, 3, 1), 0)
    assert torch.equal(first, before)


def test_reset_forgets() -> None:
    cache = roomy_cache()
    cache.update(*columns(1, 3, 0), 0)
    cache.reset()
    assert cache.get_seq_length() == 0
    new = columns(2, 2, 1)
    assert torch.equal(cache.update(*new, 0)[0], new[0])


def test_what_was_read_in_inference_mode_is_continued_outside_of_it() -> None:
    cache, prompt, new = roomy_cache(), columns(1, 3, 0), columns(1, 1, 1)
    with torch.inference_mode():
        cache.update(*prompt, 0)
    keys, values = cache.update(*new, 0)
    assert torch.equal(keys, torch.cat([prompt[0], new[0]], dim=-2))
    assert torch.equal(values, torch.cat([prompt[1], new[1]], dim=-2))
