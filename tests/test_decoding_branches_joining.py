"""Rows that join and leave: at every step the logits are those of reading each row's columns anew, by itself."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from damro.decoding.branches.fused import prefill
from damro.decoding.branches.joining import OpenBranches
from damro.decoding.branches.kv import ROOM
from damro.decoding.prompts import VisualPrompt, stack_rows
from tests.llava_models import llava_of

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.lists(st.integers(1, 40), min_size=1, max_size=3)),
        st.tuples(st.just("leave"), st.integers(0, 9)),
        st.tuples(st.just("keep"), st.none()),
        st.tuples(st.just("step"), st.integers(1, 3)),
    ),
    min_size=4,
    max_size=14,
)


@lru_cache
def model() -> Any:
    return llava_of()


def prompt_of(length: int, seed: int) -> VisualPrompt:
    embeds = torch.randn(1, length, 32, generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(1, length, dtype=torch.long)
    return VisualPrompt(embeds, mask, torch.zeros_like(mask, dtype=torch.bool))


class Followed:
    """Open branches of two prompts a row, and beside them what each row has been given."""

    def __init__(self) -> None:
        self.branches = OpenBranches(model())
        self.rows: dict[int, tuple[list[VisualPrompt], list[int]]] = {}
        self.seed = 0

    def join(self, lengths: list[int]) -> None:
        free = [place for place in range(self.branches.rows) if place not in self.rows]
        places = [*free, *range(self.branches.rows, 99)][: len(lengths)]
        pairs = [
            [prompt_of(length, self.seed + n), prompt_of(5, self.seed + 50 + n)] for n, length in enumerate(lengths)
        ]
        self.seed += 100
        read = [prefill(model(), stack_rows(list(branch))) for branch in zip(*pairs, strict=True)]
        self.branches.join(places, read)
        self.rows |= {place: (pair, []) for place, pair in zip(places, pairs, strict=True)}

    def leave(self, place: int) -> None:
        if place in self.rows:
            del self.rows[place]
            self.branches.leave([place])

    def keep(self) -> None:
        live = sorted(self.rows)
        self.branches.keep(torch.tensor(live))
        self.rows = {new: self.rows[old] for new, old in enumerate(live)}

    def step(self) -> None:
        tokens = [
            (7 * place + len(self.rows[place][1]) * 3) % 90 if place in self.rows else 0
            for place in range(self.branches.rows)
        ]
        for place, (_, history) in self.rows.items():
            history.append(tokens[place])
        self.branches.step(torch.tensor(tokens))

    @torch.no_grad()
    def check(self) -> None:
        for place, (pair, history) in self.rows.items():
            for branch, prompt in enumerate(pair):
                more: Tensor = model().get_input_embeddings()(torch.tensor([history], dtype=torch.long))
                columns = torch.cat([prompt.inputs_embeds, more], dim=1)
                alone = model()(inputs_embeds=columns, use_cache=False).logits[0, -1]
                torch.testing.assert_close(self.branches.logits[branch, place], alone, atol=1e-5, rtol=1e-5)


@given(STEPS)
@settings(max_examples=25, deadline=None)
@torch.no_grad()
def test_logits_are_those_of_each_row_alone(steps: list[tuple[str, Any]]) -> None:
    followed = Followed()
    followed.join([3, 20])
    for what, value in steps:
        if what == "join":
            followed.join(value)
        elif what == "leave":
            followed.leave(value)
        elif what == "keep" and followed.rows:
            followed.keep()
        elif what == "step" and followed.rows:
            for _ in range(value):
                followed.step()
        followed.check()


@torch.no_grad()
def test_columns_are_bounded_by_the_widest_row_and_its_room() -> None:
    """A chain of rows, each of which begins before the last one ends, goes on for ever in the same room."""
    followed = Followed()
    followed.join([30, 4])
    for turn in range(40):
        for _ in range(6):
            followed.step()
        followed.leave(turn % 2)
        followed.join([30 if turn % 5 == 0 else 4])
        if turn % 8 == 0:
            followed.check()
        (seen, room), (seen_other, room_other) = followed.branches.columns
        assert seen <= 30 + 12 and seen_other <= 5 + 12  # a prompt, and the longest answer
        assert room <= 30 + 12 + ROOM and room_other <= 5 + 12 + ROOM
    assert followed.branches.rows == 2
    followed.check()


@torch.no_grad()
def test_a_place_whose_row_was_no_numbers_is_clean_for_the_next() -> None:
    followed = Followed()
    followed.join([6, 6])
    broken = prompt_of(12, 1)
    broken.inputs_embeds[:] = torch.nan
    followed.branches.join([2], [prefill(model(), broken)] * 2)
    followed.step()
    assert followed.branches.logits[:, 2].isnan().all()
    followed.check()
    followed.branches.leave([2])
    followed.step()
    followed.check()
    followed.join([4])
    assert sorted(followed.rows) == [0, 1, 2]
    followed.step()
    followed.check()


@torch.no_grad()
def test_a_prompt_that_has_been_read_can_be_given_to_several() -> None:
    read = [prefill(model(), prompt_of(9, 3))]
    first, second = OpenBranches(model()), OpenBranches(model())
    first.join([0], read)
    first.step(torch.tensor([5]))
    second.join([0], read)
    second.step(torch.tensor([5]))
    assert torch.equal(first.logits, second.logits)


def test_free_places_do_not_come_to_the_end_of_learned_positions() -> None:
    followed = Followed()
    followed.join([40, 3])
    followed.step()
    before = followed.branches._places[0].position.tolist()
    followed.leave(0)
    assert before == [41, 4]
    assert followed.branches._places[0].position.tolist() == [0, 4]
