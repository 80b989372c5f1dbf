"""What a contrastive method is: a negative view of the prompt, and a rule that turns two logits into scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from decoding.contrast import check_strengths, contrast_scores, plausible_tokens
from decoding.prompts import VisualPrompt


class ScoreRule(Protocol):
    """How next-token scores come about from the logits of the two prompts."""

    def undecided(self, full: Tensor, step: int) -> Tensor:
        """The rows whose scores depend on the negative logits.

        Where it says False, the rule must give the same scores for any negative logits, None included; that is
        what lets a decoder put the negative pass off. A rule that can never do without answers True everywhere.

        Args:
            full: `(R, V)`, float32 logits of the full prompt.
            step: how many tokens have been generated.

        Returns:
            `(R,)`, boolean.
        """

    def __call__(self, full: Tensor, negative: Tensor | None, step: int) -> Tensor:
        """The scores of the next token.

        Args:
            full: `(R, V)`, float32 logits of the full prompt; not modified.
            negative: `(R, V)`, logits of the negative prompt, or None if no row is undecided.
            step: how many tokens have been generated.

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
        >>> rule.undecided(full, step=0).tolist()
        [False, True]
        >>> rule(full[:1], None, step=0).tolist()
        [[0.0, -inf]]
    """

    alpha: float
    beta: float

    def __post_init__(self) -> None:
        """Checks the parameters."""
        check_strengths(self.alpha, self.beta)

    def undecided(self, full: Tensor, step: int) -> Tensor:
        """Rows with more than one plausible token; none without a contrast."""
        if self.alpha == 0:
            return torch.zeros(len(full), dtype=torch.bool, device=full.device)
        return plausible_tokens(full, self.beta).sum(dim=-1) > 1

    def __call__(self, full: Tensor, negative: Tensor | None, step: int) -> Tensor:
        """See :func:`decoding.contrast.contrast_scores`."""
        return contrast_scores(full, negative, self.alpha, self.beta)


@dataclass(frozen=True)
class Contrast:
    """Everything decoding needs of a method, for one batch of prompts.

    Attributes:
        full: the prompts as the model itself would read them.
        negative: what is subtracted, row by row.
        rule: how.
    """

    full: VisualPrompt
    negative: VisualPrompt
    rule: ScoreRule
