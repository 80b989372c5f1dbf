"""Plain decoding that stops at scores which are no numbers, as contrasts do by themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from damro.decoding.errors import NonFiniteScoresError
from damro.decoding.processor import OVERFLOW


class FiniteScores(LogitsProcessor):
    """Notes rows whose best score is NaN or infinite, without asking the device: :attr:`stop` then ends generation.

    Such rows get equal scores, which can be sampled from.

    Attributes:
        stop: a stopping criterion, to be passed beside this processor.
    """

    def __init__(self) -> None:
        self._broken: Tensor | None = None
        self.stop: StoppingCriteria = _Stop(self)

    @property
    def broken(self) -> Tensor | None:
        """Whether there was such a row; a tensor of one boolean, None before the first token."""
        return self._broken

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `(R, V)` as they are, but for rows that hold NaN or infinity."""
        # -inf throughout is a matter of settings, and no fault of the model.
        unusable = ~(scores.amax(dim=-1, keepdim=True) < torch.inf)
        broken = unusable.any()
        self._broken = broken if self._broken is None else self._broken | broken
        if broken.device.type == "cpu" and not broken:  # where asking costs less than a copy
            return scores
        return scores.masked_fill(unusable, 0.0)

    def check(self) -> None:
        """Looks at what was noted; once, when all has been generated.

        Raises:
            NonFiniteScoresError: if there was such a row.
        """
        if self._broken is not None and bool(self._broken):
            raise NonFiniteScoresError(f"scores {OVERFLOW}")


class _Stop(StoppingCriteria):
    """Ends all rows once scores are broken."""

    def __init__(self, scores: FiniteScores) -> None:
        self._scores = scores

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        broken = self._scores.broken
        none = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        return none if broken is None else none | broken.to(input_ids.device)
