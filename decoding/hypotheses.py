"""The bookkeeping of beam search: which beams go on, and which answers have ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class Hypothesis(NamedTuple):
    """An answer.

    Attributes:
        score: sum of its log-probabilities, divided by a power of its length.
        tokens: of the answer, with the token that ended it, if any did.
    """

    score: float
    tokens: tuple[int, ...]


class Chosen(NamedTuple):
    """What goes on: `scores`, `tokens` and `rows`, `(beams,)` each; token i continues beam `rows[i]`."""

    scores: Tensor
    tokens: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Hypotheses:
    """The best answers of one prompt that have ended, with the rules of beam search up to transformers 4.38.

    An answer counts one more token than it has in front of its end; that is the start token where the prompt was given
    as columns.

    Attributes:
        beams: how many are kept.
        length_penalty: power of the length by which a score is divided.
        early_stopping: True ends with as many answers as beams; False once no beam can become better as it stands;
            "never" once none can at any length.
        room: how many tokens an answer may have.
        ended: the answers; better ones take the place of worse.
    """

    beams: int
    length_penalty: float
    early_stopping: bool | str
    room: int
    ended: list[Hypothesis] = field(default_factory=list)

    def copy(self) -> Hypotheses:
        """The same, to be added to by itself."""
        return Hypotheses(self.beams, self.length_penalty, self.early_stopping, self.room, list(self.ended))

    def add(self, total: float, tokens: list[int], end: int | None = None) -> None:
        """Adds an answer, if it is among the best.

        Args:
            total: sum of its log-probabilities.
            tokens: in front of its end.
            end: the token that ended it.
        """
        score = total / (len(tokens) + 1) ** self.length_penalty
        if len(self.ended) == self.beams:
            worst = min(self.ended, key=lambda one: one.score)
            if score <= worst.score:
                return
            self.ended.remove(worst)
        self.ended.append(Hypothesis(score, tuple(tokens) if end is None else (*tokens, end)))

    def advance(self, history: Tensor, totals: Tensor, ends: tuple[int, ...]) -> Chosen:
        """Ends answers, and chooses the beams that go on.

        Args:
            history: `(beams, T)`, the tokens so far.
            totals: `(beams, V)`, sums of log-probabilities with each next token.
            ends: the tokens that end an answer.
        """
        vocabulary = totals.shape[-1]
        best = totals.flatten().topk(max(2, 1 + len(ends)) * self.beams)
        numbers, chosen = best.indices.tolist(), []
        for rank, (number, total) in enumerate(zip(numbers, best.values.tolist(), strict=True)):
            row, token = divmod(number, vocabulary)
            if token not in ends:
                chosen.append(rank)
            elif rank < self.beams:
                self.add(total, history[row].tolist(), token)
            if len(chosen) == self.beams:
                break
        places = best.indices[chosen]
        return Chosen(best.values[chosen], places % vocabulary, torch.div(places, vocabulary, rounding_mode="floor"))

    def done(self, best: float, length: int) -> bool:
        """Whether no beam can become better than the answers.

        Args:
            best: the highest total of any continuation.
            length: tokens of the continuations.
        """
        if len(self.ended) < self.beams:
            return False
        if self.early_stopping is True:
            return True
        longest = self.early_stopping == "never" and self.length_penalty > 0
        reachable = best / ((self.room if longest else length) + 1) ** self.length_penalty
        return bool(min(one.score for one in self.ended) >= reachable)

    def best(self, count: int) -> list[Hypothesis]:
        """The best answers, best first."""
        return sorted(self.ended, key=lambda one: one.score)[::-1][:count]
