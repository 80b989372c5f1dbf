"""The attention of a language model's last positions to some columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from damro.decoding.watching import attention_weights, watching
from damro.errors import UnsupportedModelError


class Rows:
    """What :func:`recording_rows` keeps.

    Args:
        modules: how many are looked at.
        columns: `(I,)`, the columns that are looked at.
    """

    def __init__(self, modules: int, columns: Tensor) -> None:
        self.columns = columns
        self.runs = [_Runs(self) for _ in range(modules)]
        self.limit: int | None = None

    @contextmanager
    def last(self, rows: int) -> Iterator[None]:
        """While open, runs add their last rows only."""
        try:
            self.limit = rows
            yield
        finally:
            self.limit = None

    def joined(self) -> list[Tensor]:
        """For each module `(rows, I)`, those of all runs one behind the other.

        Raises:
            UnsupportedModelError: if a module did not attend through `AttentionInterface`.
        """
        if not all(runs.kept for runs in self.runs):
            raise UnsupportedModelError(
                "language model must attend through AttentionInterface in every layer that is looked at, got none there"
            )
        return [torch.cat(runs.kept) for runs in self.runs]


class _Runs:
    """What every run of one module adds: `(rows, I)` of the first prompt, heads averaged."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self.kept: list[Tensor] = []

    def see(self, query: Tensor, key: Tensor, mask: Tensor | None, scale: float, causal: bool) -> None:
        """Adds the weights of the last positions, which see what is before them and themselves."""
        last = self._rows.limit or query.shape[2]
        if mask is None:
            place = torch.arange(key.shape[2], device=key.device)
            seen = place <= place[-last:, None]
        else:
            seen = mask[:1, :, -last:]
        weights = attention_weights(query[:1, :, -last:], key[:1], seen, scale)[0].mean(dim=0)
        self.kept.append(weights[:, self._rows.columns.to(weights.device)].cpu())


@contextmanager
def recording_rows(decoder: nn.Module, modules: Sequence[nn.Module], columns: Tensor) -> Iterator[Rows]:
    """While open, keeps what the last positions of every run in this thread pay to some columns.

    Args:
        decoder: the language model.
        modules: of which layers, what attends in them.
        columns: `(I,)`, the columns that are looked at.
    """
    recorded = Rows(len(modules), columns)
    with watching(decoder, list(zip(modules, recorded.runs, strict=True)), "language model"):
        yield recorded
