"""Next-token logits of several prompts, kept so that any alpha and beta can be tried later without the model.

A contrast looks at plausible tokens alone: those within log(beta) of the best one under the full prompt. Those of the
least beta are kept, with the logits of every prompt at them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from damro.decoding.rules import plausible_tokens

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class Step(NamedTuple):
    """What is left of one step.

    Attributes:
        tokens: `(c,)`, the plausible tokens, by number.
        full: `(c,)`, their logits f under the full prompt.
        negative: `(N, c)`, their logits n under N second prompts.
    """

    tokens: Ints
    full: Floats
    negative: Floats


def cache_step(full: Tensor, negative: Tensor, beta: float) -> Step:
    """Keeps what a contrast with this beta, or a greater one, depends on.

    Args:
        full: `(V,)`, logits of the full prompt.
        negative: `(N, V)`, logits of N second prompts.
        beta: plausibility cutoff in (0, 1].

    Example:
        >>> import torch
        >>> step = cache_step(torch.tensor([2.0, -9.0, 1.5]), torch.tensor([[3.0, 0.0, 1.0]]), 0.5)
        >>> step.tokens.tolist(), step.negative.tolist()
        ([0, 2], [[3.0, 1.0]])
    """
    kept = plausible_tokens(full, beta).nonzero().flatten()
    return Step(kept.cpu().numpy(), full[kept].float().cpu().numpy(), negative[:, kept].float().cpu().numpy())


def choose_places(step: Step, alphas: Sequence[float], betas: Sequence[float]) -> Ints:
    """Which token greedy search would choose under every contrast: `argmax (1 + alpha) f - alpha n` over plausible.

    Args:
        step: kept with the least of the betas, or a lesser one.
        alphas: A strengths.
        betas: B plausibility cutoffs.

    Returns:
        `(N, A, B)`, of every second prompt; places in `step.tokens`.

    Example:
        >>> step = Step(np.array([4, 7]), np.float32([2.0, 1.5]), np.float32([[3.0, 1.0], [0.0, 1.0]]))
        >>> choose_places(step, [0.1, 1.0], [0.1, 0.9]).tolist()
        [[[0, 0], [1, 0]], [[0, 0], [0, 0]]]
    """
    strength = np.asarray(alphas, dtype=np.float32)[None, :, None, None]
    mixed = (1 + strength) * step.full - strength * step.negative[:, None, None]  # (N, A, 1, c)
    floor = step.full.max() + np.array([math.log(beta) for beta in betas], dtype=np.float32)[:, None]
    scores = np.where(step.full >= floor, mixed, np.float32(-np.inf))  # (N, A, B, c)
    places: Ints = scores.argmax(axis=-1)
    return places


def is_open(step: Step, betas: Sequence[float]) -> NDArray[np.bool_]:
    """Whether two or more tokens are plausible, so that a contrast may change the choice: `(B,)`."""
    floor = step.full.max() + np.array([math.log(beta) for beta in betas], dtype=np.float32)[:, None]
    counted: NDArray[np.bool_] = (step.full >= floor).sum(axis=-1) > 1
    return counted
