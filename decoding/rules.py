"""Rules: how next-token scores come about from the logits of two prompts, and the contrast they are part of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from damro.decoding.branches.readout import Readout
from damro.decoding.errors import ParameterError
from damro.decoding.prompts import Prompt
from damro.parameters import Cutoff, Strength, check_value


class ScoreRule(Protocol):
    """How next-token scores come about from the logits of the two prompts."""

    def needed(self, full: Tensor, step: int | Tensor) -> Tensor:
        """The negative logits that scores depend on.

        Where it says False, the rule must give the same scores for any finite negative logit; where it says so of a
        whole row, for None too. That is what lets a decoder put the negative pass off, or compute a part of the
        logits only. A rule that can never do without answers True everywhere.

        Args:
            full: `(R, V)`, float32 logits of the full prompt.
            step: how many tokens have been generated, in all rows or, `(R, 1)`, in each.

        Returns:
            `(R, V)`, boolean.
        """

    def __call__(self, full: Tensor, negative: Tensor | None, step: int | Tensor) -> Tensor:
        """The scores of the next token.

        Args:
            full: `(R, V)`, float32 logits of the full prompt; not modified.
            negative: `(R, V)`, logits of the negative prompt, or None if none is needed.
            step: how many tokens have been generated, in all rows or, `(R, 1)`, in each.

        Returns:
            `(R, V)`, float32 log-probabilities; NaN in a row whose logits hold NaN.
        """


@dataclass(frozen=True)
class ContrastRule:
    """`log_softmax((1 + alpha) f - alpha n)` over the plausible tokens, the same at every step.

    Where one token is plausible the score is exactly 0 whatever n is, so the negative pass can be put off.

    Attributes:
        alpha: strength of the contrast, >= 0.
        beta: plausibility cutoff in (0, 1].

    Raises:
        ParameterError: if one is out of range.

    Example:
        >>> import torch
        >>> rule = ContrastRule(alpha=1.0, beta=0.1)
        >>> full = torch.tensor([[5.0, 0.0], [1.0, 1.0]])
        >>> rule.needed(full, step=0).tolist()
        [[False, False], [True, True]]
        >>> rule(full[:1], None, step=0).tolist()
        [[0.0, -inf]]
    """

    alpha: float
    beta: float

    def __post_init__(self) -> None:
        """Checks the parameters."""
        check_strengths(self.alpha, self.beta)

    def needed(self, full: Tensor, step: int | Tensor) -> Tensor:
        """Plausible tokens, where there is more than one; none without a contrast."""
        if self.alpha == 0:
            return torch.zeros_like(full, dtype=torch.bool)
        return unless_alone(plausible_tokens(full, self.beta))

    def __call__(self, full: Tensor, negative: Tensor | None, step: int | Tensor) -> Tensor:
        """See :func:`contrast_scores`."""
        return contrast_scores(full, negative, self.alpha, self.beta)


@dataclass(frozen=True)
class MixRule:
    """`log_softmax(a f + b n)` over the plausible tokens, the same at every step.

    :class:`ContrastRule` is the case `a = 1 + alpha, b = -alpha`.

    Attributes:
        of_full: a.
        of_other: b; below 0 the other prompt is subtracted, above 0 it is added.
        beta: plausibility cutoff in (0, 1]; None keeps every token.

    Example:
        >>> import torch
        >>> full, other = torch.tensor([[2.0, 1.9, -5.0]]), torch.tensor([[0.0, 2.0, 9.0]])
        >>> scores = MixRule(of_full=1.0, of_other=1.0, beta=0.5)(full, other, step=0)
        >>> [round(p, 2) for p in scores[0].exp().tolist()]
        [0.13, 0.87, 0.0]
    """

    of_full: float
    of_other: float
    beta: float | None

    def __post_init__(self) -> None:
        """Checks the parameters."""
        check_value("beta", self.beta, Cutoff | None, ParameterError)

    def needed(self, full: Tensor, step: int | Tensor) -> Tensor:
        """Plausible tokens, where there is more than one; none without the other."""
        if self.of_other == 0 or self.beta is None:
            return torch.full_like(full, self.of_other != 0, dtype=torch.bool)
        return unless_alone(plausible_tokens(full, self.beta))

    def __call__(self, full: Tensor, negative: Tensor | None, step: int | Tensor) -> Tensor:
        """See the equation above."""
        mixed = self.of_full * full.float()
        if negative is not None:
            mixed = mixed + self.of_other * negative.float()
        if self.beta is not None:
            mixed = mixed.masked_fill(~plausible_tokens(full, self.beta), float("-inf"))
        return torch.log_softmax(mixed, dim=-1)


@dataclass(frozen=True)
class Contrast:
    """Everything decoding needs of a method, for one batch of prompts.

    Attributes:
        full: the prompts as the model itself would read them.
        negative: what is subtracted (or whatever the rule does with it), row by row: a second prompt, or what is read
            inside of the full prompt's own pass.
        rule: how.
    """

    full: Prompt
    negative: Prompt | Readout
    rule: ScoreRule


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
    check_value("alpha", alpha, Strength, ParameterError)
    if alpha > MAX_ALPHA:
        raise ParameterError(
            f"alpha must be at most {MAX_ALPHA}, where scores overflow, got {alpha!r}; 0.5 to 2 is usual"
        )
    check_value("beta", beta, Cutoff, ParameterError)


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


def unless_alone(plausible: Tensor) -> Tensor:
    """Plausible tokens `(R, V)` without those that are the only one of their row: theirs is score 0 in any case."""
    return plausible & (plausible.sum(dim=-1, keepdim=True) > 1)
