"""The attention of a vision tower, whatever model it is of.

Of a tower with [CLS] only that token's row is computed; of another what each patch receives is summed over the queries
a few at a time, so that memory is never that of a whole attention matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from damro.decoding.errors import UnsupportedModelError
from damro.decoding.watching import attention_weights, watchers, watching

_AT_A_TIME = 2**22
"""Weights of so many pairs of a query and a key are held at the same time, over all heads."""


@dataclass
class RecordedLayer:
    """Attention of one layer, in the order in which the tower has computed it.

    Attributes:
        source: "cls", the row of [CLS]; or "received", the mean over all queries that belong to a patch.
        calls: `(batch, heads, tokens)` each, float32. Some towers call once for all images, others image by image.
    """

    source: str
    calls: list[Tensor] = field(default_factory=list)

    def see(self, query: Tensor, key: Tensor, mask: Tensor | None, scale: float, causal: bool) -> None:
        """Adds the weights of a call; queries `(batch, heads, queries, d)`."""
        if self.source == "cls":
            self.calls.append(_weights(query[:, :, :1], key, mask, scale, causal, 0)[:, :, 0])
            return
        counted = _patches(mask, query)
        total = query.new_zeros(*query.shape[:2], key.shape[2], dtype=torch.float32)
        step = max(1, _AT_A_TIME // (query.shape[0] * query.shape[1] * key.shape[2]))
        for first in range(0, query.shape[2], step):
            part = slice(first, first + step)
            weights = _weights(query[:, :, part], key, mask, scale, causal, first)
            total += (weights * counted[:, None, part, None]).sum(dim=2)
        self.calls.append(total / counted.sum(dim=-1)[:, None, None])


def _weights(query: Tensor, key: Tensor, mask: Tensor | None, scale: float, causal: bool, first: int) -> Tensor:
    """`(batch, heads, queries, keys)` in float32, of the queries from number `first` on."""
    rows = slice(first, first + query.shape[2])
    if mask is not None:
        mask = mask[:, :, rows] if mask.shape[2] > 1 else mask
    elif causal:
        column = torch.arange(key.shape[2], device=key.device)
        mask = column <= column[rows, None]
    return attention_weights(query, key, mask, scale)


def _patches(mask: Tensor | None, query: Tensor) -> Tensor:
    """`(batch, queries)`, 1 for queries that count: what nobody may look at is padding, and has no say either."""
    counted = query.new_ones(len(query), query.shape[2], dtype=torch.float32)
    if mask is None:
        return counted
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    anybody = seen.any(dim=2).any(dim=1)  # (batch or 1, keys)
    return counted * anybody if anybody.shape[-1] == query.shape[2] else counted


def tower_layers(tower: nn.Module) -> nn.ModuleList:
    """The transformer layers of a vision tower: its longest list of modules that attend.

    Raises:
        UnsupportedModelError: if there is none.
    """
    lists = [part for part in tower.modules() if isinstance(part, nn.ModuleList) and len(part) and _attends(part[0])]
    if not lists:
        raise UnsupportedModelError(
            f"vision tower must be a transformer, whose layers attend, got {type(tower).__name__}; its patches cannot "
            "be ranked by attention"
        )
    return max(lists, key=len)


def _attends(layer: nn.Module) -> bool:
    return any("attn" in name or "attention" in name for name, _ in layer.named_modules())


@contextmanager
def recording(tower: nn.Module, layers: Sequence[int], source: str) -> Iterator[dict[int, RecordedLayer]]:
    """While open, records the attention of some layers whenever the tower runs in this thread.

    See :func:`damro.decoding.watching.watching`.

    Args:
        tower: the vision tower.
        layers: numbers of layers, from 0.
        source: "cls" or "received", see :class:`RecordedLayer`.

    Yields:
        By its number, what was recorded of each layer.
    """
    recorded = {number: RecordedLayer(source) for number in layers}
    every = tower_layers(tower) if recorded else ()  # towers of which nothing is asked need no layers that attend
    with watching(tower, [(every[number], layer) for number, layer in recorded.items()], "vision tower"):
        yield recorded


def repeat_recorded(copies: int) -> None:
    """Has what this thread has recorded stand there so many times, as if the tower had seen so many copies."""
    for layer in watchers():
        if isinstance(layer, RecordedLayer):
            layer.calls *= copies
