"""Sampling that depends on a sample and a seed alone: not on the batch, its order, the process or the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessor


class SeededSampling(LogitsProcessor):  # type: ignore[misc, no-untyped-call, unused-ignore]
    """Turns greedy search into sampling with a random stream for each row.

    ``generate`` draws all rows of a batch from one stream, so an answer depends on which others it is drawn with. Here
    every row has its own: the highest of ``log p + g`` with g from a standard Gumbel distribution is a draw from p
    (Gumbel, 1954). Pass it last, with ``do_sample=False``.

    Args:
        seeds: One for each row.
        temperature: Divides the scores first, above 0.
        top_p: Then only the likeliest tokens that together reach this probability stay, at least one.

    Example:
        >>> scores = torch.tensor([[0.0, 5.0], [5.0, 0.0]])
        >>> SeededSampling([1, 2], temperature=0.01)(torch.zeros(2, 1, dtype=torch.long), scores).argmax(-1).tolist()
        [1, 0]
    """

    def __init__(self, seeds: Sequence[int], temperature: float = 1.0, top_p: float = 1.0) -> None:
        self._streams = [stream(seed) for seed in seeds]
        self._temperature = temperature
        self._top_p = top_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores ``(rows, V)`` with noise added, in float32, -inf where they were."""
        return draw_scores(scores, self._streams, self._temperature, self._top_p)


def stream(seed: int) -> torch.Generator:
    """Return the random stream of a row, which gives a token's noise after the other."""
    return torch.Generator().manual_seed(seed)


def draw_scores(
    scores: Tensor, streams: Sequence[torch.Generator], temperature: float = 1.0, top_p: float = 1.0
) -> Tensor:
    """Return scores whose highest is a draw of a token; see :class:`SeededSampling`.

    Args:
        scores: ``(rows, V)``.
        streams: One for each row; they go on by a token.
        temperature: Divides the scores first, above 0.
        top_p: Then only the likeliest tokens that together reach this probability stay, at least one.

    Returns:
        ``(rows, V)`` in float32, -inf where `scores` are.
    """
    scaled = torch.log_softmax(scores.float() / temperature, dim=-1)
    if top_p < 1:
        ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
        # A token goes if those before it reach top_p already; the first never does, not even at 0.
        gone = ordered.exp().cumsum(dim=-1) - ordered.exp() >= top_p
        gone[:, 0] = False
        scaled = scaled.masked_fill(gone.scatter(-1, order, gone), -torch.inf)
    # Drawn on the CPU, so that every device draws the same. -log of an exponential draw is a Gumbel draw.
    noise = torch.stack([torch.empty(scores.shape[-1]).exponential_(generator=one) for one in streams])
    return scaled - noise.log().to(scaled.device)


class Sampling(NamedTuple):
    """How tokens of one answer are drawn.

    Attributes:
        temperature: Divides the scores; 0 is greedy search.
        top_p: Only the likeliest tokens that together reach this probability are drawn from.
        seed: Of the draws.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 42

    def processors(self) -> list[LogitsProcessor]:
        """Return what goes behind all other processors of a ``generate`` without sampling of its own."""
        return [SeededSampling([self.seed], self.temperature, self.top_p)] if self.temperature else []
