"""Contrastive decoding as pure functions on scores."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from damro.decoding.errors import ParameterError

MAX_ALPHA = 1e30
"""Times any logit of a language model this is still a float32."""


def check_strengths(alpha: float, beta: float) -> None:
    """Checks the two parameters of contrastive decoding.

    Raises:
        ParameterError: unless `alpha` is in [0, 1e30], beyond which scores overflow, and `beta` is in (0, 1].

    Example:
        >>> check_strengths(1.0, 0.1)
        >>> check_strengths(-1.0, 0.1)
        Traceback (most recent call last):
        damro.decoding.errors.ParameterError: alpha must be a finite number >= 0, got -1.0; ...
    """
    if not (is_number(alpha) and math.isfinite(alpha) and alpha >= 0):
        raise ParameterError(
            f"alpha must be a finite number >= 0, got {alpha!r}; 0 switches the contrast off, 0.5 to 2 is usual"
        )
    if alpha > MAX_ALPHA:
        raise ParameterError(
            f"alpha must be at most {MAX_ALPHA}, where scores overflow, got {alpha!r}; 0.5 to 2 is usual"
        )
    if not (is_number(beta) and 0 < beta <= 1):
        raise ParameterError(
            f"beta must be in (0, 1], got {beta!r}; 0.1 keeps tokens at least a tenth as likely as the best"
        )


def is_number(value: Any) -> bool:
    """Whether a value is a real number; a boolean is none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def plausible_tokens(full: Tensor, beta: float) -> Tensor:
    """The tokens that are not much less likely than the best one under the full prompt.

    `keep = {v : f_v >= log(beta) + max f}` (Li et al. 2023, Contrastive Decoding, eq. 3; DAMRO eq. 9).

    Args:
        full: `(..., V)`, logits or log-probabilities; the rule is the same for both.
        beta: in (0, 1].

    Returns:
        `(..., V)`, boolean.

    Example:
        >>> import torch
        >>> plausible_tokens(torch.tensor([2.0, 1.9, -5.0]), beta=0.5).tolist()
        [True, True, False]
    """
    return full >= full.amax(dim=-1, keepdim=True) + math.log(beta)


def contrast_scores(full: Tensor, negative: Tensor | None, alpha: float, beta: float) -> Tensor:
    """Log-probabilities of the next token after contrast with a negative prompt.

    `log_softmax((1 + alpha) f - alpha n)` over the plausible tokens, `-inf` elsewhere (DAMRO, eq. 8 and 9; the
    released loop is `transformers/generation/utils.py` of coder-gx/DAMRO). They are normalised because beam
    search adds what a processor returns, and because a step with one plausible token is then exactly 0 whatever
    the negative prompt says.

    Args:
        full: `(..., V)`, next-token logits (or log-probabilities) f of the full prompt; not modified.
        negative: `(..., V)`, next-token logits n of the negative prompt; None stands for "no contrast", the same
            as `alpha=0`.
        alpha: strength of the contrast, >= 0.
        beta: plausibility cutoff in (0, 1].

    Returns:
        `(..., V)`, float32 log-probabilities.

    Example:
        >>> import torch
        >>> full, negative = torch.tensor([2.0, 1.9, -5.0]), torch.tensor([2.0, 0.0, 0.0])
        >>> [round(p, 3) for p in contrast_scores(full, negative, alpha=1.0, beta=0.5).exp().tolist()]
        [0.142, 0.858, 0.0]
    """
    full = full.float()
    mixed = full if negative is None else (1 + alpha) * full - alpha * negative.float()
    return torch.log_softmax(mixed.masked_fill(~plausible_tokens(full, beta), float("-inf")), dim=-1)
