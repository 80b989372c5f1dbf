"""Language Contrastive Decoding: the prompt against its text alone, more where the text alone is sure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from damro.decoding.errors import ParameterError
from damro.methods.base import SECOND, Cost, Method, Scene
from damro.parameters import Cutoff, Strength, check_fields

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from damro.decoding.rules import Contrast


@dataclass(frozen=True)
class LCD(Method):
    """The prompt against its text alone, more where that is sure (LCD, Findings of ACL 2024); see :class:`LCDRule`.

    Defaults are those of the released code. That contrasts with the language model that the LVLM came of, Vicuna for
    LLaVA, which is a model of its own; here it is the LVLM's own language model, without the image.

    Attributes:
        alpha: strength of the contrast, for text whose next token has an entropy of 1.
        beta: plausibility cutoff.
    """

    name: ClassVar = "lcd"
    source: ClassVar = "LCD, Findings of ACL 2024, arXiv 2408.04664; github.com/avshalomman/lcd, lcd.py"
    cost: ClassVar = Cost(passes=1, memory=SECOND)
    code: ClassVar = "github.com/avshalomman/lcd"

    alpha: Strength = 2.0
    beta: Cutoff = 0.1

    def contrast(self, model: PreTrainedModel, inputs: Mapping[str, Any], scene: Scene) -> Contrast:
        """The full prompt, and the one without its image columns."""
        from damro.decoding.rules import Contrast

        full = scene.full_prompt(model, inputs, scene.look(model, inputs))
        return Contrast(full, full.drop_image(), LCDRule(self.alpha, self.beta))


@dataclass(frozen=True)
class LCDRule:
    """`log_softmax((1 + a_t) lc - a_t lu)` over the plausible tokens, with `a_t = alpha / H(lu)`.

    lc and lu are the log-probabilities with and without the image, H is the entropy in nats. All of lu counts for the
    entropy, so it is needed as a whole or, where one token is plausible, not at all.

    Attributes:
        alpha: strength of the contrast at an entropy of 1, >= 0.
        beta: plausibility cutoff in (0, 1].

    Raises:
        ParameterError: if one is out of range.

    Example:
        >>> import torch
        >>> full, text = torch.tensor([[1.0, 1.0, -9.0]]), torch.tensor([[2.0, 1.0, 1.0]])
        >>> [round(p, 3) for p in LCDRule(alpha=1.0)(full, text, step=0).exp()[0].tolist()]
        [0.264, 0.736, 0.0]
    """

    alpha: Strength = 2.0
    beta: Cutoff = 0.1

    def __post_init__(self) -> None:
        """Checks the parameters."""
        check_fields(self, ParameterError)

    def needed(self, full: Tensor, step: int | Tensor) -> Tensor:
        """All tokens of rows with more than one plausible token."""
        import torch

        from damro.decoding.rules import plausible_tokens

        if self.alpha == 0:
            return torch.zeros_like(full, dtype=torch.bool)
        open_rows = plausible_tokens(full, self.beta).sum(dim=-1, keepdim=True) > 1
        return open_rows.expand_as(full)

    def __call__(self, full: Tensor, negative: Tensor | None, step: int | Tensor) -> Tensor:
        """See the equation above."""
        import torch

        from damro.decoding.rules import MAX_ALPHA, plausible_tokens

        mixed = conditioned = full.float().log_softmax(dim=-1)
        if negative is not None:
            text = negative.float().log_softmax(dim=-1)
            entropy = torch.special.entr(text.exp()).sum(dim=-1, keepdim=True)
            # Text that is quite sure has no entropy.
            alpha = (self.alpha / entropy.clamp(min=1 / MAX_ALPHA)).clamp(max=MAX_ALPHA)
            mixed = (1 + alpha) * conditioned - alpha * text
        return mixed.masked_fill(~plausible_tokens(full, self.beta), float("-inf")).log_softmax(dim=-1)
