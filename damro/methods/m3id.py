"""Multi-Modal Mutual-Information Decoding: the prompt against its text alone, more with every token."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from damro.decoding.errors import ParameterError
from damro.methods.base import SECOND, Cost, Method, Scene
from damro.parameters import Cutoff, Range, check_fields

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from damro.decoding.rules import Contrast

Rate = Annotated[float, Range(0, hint="0.02 is usual")]
Confidence = Annotated[float, Range(0, 1, above=True, hint="0.3 is usual, 1 contrasts at every token")]


@dataclass(frozen=True)
class M3ID(Method):
    """The prompt against its text alone, more with every token (M3ID, CVPR 2024); see :class:`M3IDRule`.

    It is read in two ways. The paper contrasts where the model is unsure, which the defaults do; the code that AvisC
    and RITUAL compare with contrasts at every token, over the plausible ones: `m3id:confidence=1,beta=0.1`.

    Attributes:
        forgetting: how fast the image is taken to be forgotten, and the weight of the contrast grows.
        confidence: probability of the best token from which on nothing is changed.
        beta: plausibility cutoff; none keeps every token.
    """

    name: ClassVar = "m3id"
    source: ClassVar = "M3ID, CVPR 2024, arXiv 2403.14003; constants as reimplementations state them"
    cost: ClassVar = Cost(passes=1, memory=SECOND)

    forgetting: Rate = 0.02
    confidence: Confidence = 0.3
    beta: Cutoff | None = None

    def contrast(self, model: PreTrainedModel, inputs: Mapping[str, Any], scene: Scene) -> Contrast:
        """The full prompt, and the one without its image columns."""
        from damro.decoding.rules import Contrast

        full = scene.full_prompt(model, inputs, scene.look(model, inputs))
        return Contrast(full, full.drop_image(), M3IDRule(self.forgetting, self.confidence, self.beta))


@dataclass(frozen=True)
class M3IDRule:
    """`log_softmax(lc + w_t (lc - lu))` where the model is unsure, with a weight that grows from token to token.

    lc and lu are the log-probabilities with and without the image, `w_t = (1 - g_t) / g_t` and
    `g_t = exp(-forgetting * t)`, t = 1 for the first token (M3ID, CVPR 2024, arXiv 2403.14003). Where the best token
    has a probability of `confidence` or more, lc is left as it is, so the pass without the image can be put off.

    M3ID's code was not released; 0.02 and 0.3 are the values that reimplementations of it state. Those that other
    papers compare with (AvisC's and what came of it) have a plausibility cutoff in place of the confidence:
    ``M3IDRule(confidence=1.0, beta=0.1)``.

    Attributes:
        forgetting: how fast the image is taken to be forgotten, >= 0; 0 switches the contrast off.
        confidence: probability of the best token from which on nothing is changed, in (0, 1].
        beta: plausibility cutoff in (0, 1]; None keeps every token.

    Raises:
        ParameterError: if one is out of range.

    Example:
        >>> import torch
        >>> rule = M3IDRule(confidence=0.9)
        >>> full = torch.tensor([[5.0, 0.0], [1.0, 1.0]])
        >>> rule.needed(full, step=0).tolist()
        [[False, False], [True, True]]
        >>> rule(full[1:], torch.tensor([[1.0, 9.0]]), step=99).exp().round(decimals=3).tolist()
        [[1.0, 0.0]]
    """

    forgetting: Rate = 0.02
    confidence: Confidence = 0.3
    beta: Cutoff | None = None

    def __post_init__(self) -> None:
        """Checks the parameters."""
        check_fields(self, ParameterError)

    def needed(self, full: Tensor, step: int | Tensor) -> Tensor:
        """All tokens where the model is unsure; with a cutoff the plausible ones, if there is more than one."""
        import torch

        from damro.decoding.rules import plausible_tokens, unless_alone

        if self.forgetting == 0:
            return torch.zeros_like(full, dtype=torch.bool)
        unsure = full.log_softmax(dim=-1).amax(dim=-1, keepdim=True) < math.log(self.confidence)
        if self.beta is None:
            return unsure.expand_as(full)
        return unsure & unless_alone(plausible_tokens(full, self.beta))

    def _weight(self, step: int | Tensor) -> float | Tensor:
        """`w_t`, a float32 for each row if steps are given so."""
        # Beyond e**30 a float32 sum holds nothing of lc any more, and later it would overflow.
        if isinstance(step, int):
            return math.expm1(min(self.forgetting * (step + 1), 30.0))
        return (self.forgetting * (step.double() + 1)).clamp(max=30.0).expm1().float()

    def __call__(self, full: Tensor, negative: Tensor | None, step: int | Tensor) -> Tensor:
        """See the equation above."""
        import torch

        from damro.decoding.rules import plausible_tokens

        scores = conditioned = full.float().log_softmax(dim=-1)
        cut = torch.zeros_like(full, dtype=torch.bool) if self.beta is None else ~plausible_tokens(full, self.beta)
        if negative is not None:
            weight = self._weight(step)
            # What is cut off takes no part; the normalisation of what is left adds the same to all of it.
            difference = conditioned - negative.float().masked_fill(cut, float("-inf")).log_softmax(dim=-1)
            mixed = conditioned + weight * difference
            scores = torch.where(self.needed(full, step).any(dim=-1, keepdim=True), mixed, conditioned)
        return scores.masked_fill(cut, float("-inf")).log_softmax(dim=-1)
