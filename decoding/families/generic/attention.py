"""The attention of a vision tower, recorded where transformers lets attention functions be exchanged.

There queries and keys have gone through everything a model does to them (norms, rotations, windows, masks), so that one
recorder serves all towers. Of a tower with [CLS] only that token's row is computed; of another what each patch receives
is summed over the queries a few at a time, so that memory is never that of a whole attention matrix.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from damro.decoding.attending import attending
from damro.decoding.errors import UnsupportedModelError

_ATTENTION = "damro_recorded"
_AT_A_TIME = 2**22
"""Weights of so many pairs of a query and a key are held at the same time, over all heads."""

_CHANGES = ("position_bias", "softcap", "s_aux")
"""What some attention functions are given that changes weights."""


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
        if key.shape[1] != query.shape[1]:
            key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
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
    logits = query.float() @ key.float().transpose(-1, -2) * scale
    rows = slice(first, first + query.shape[2])
    if mask is not None:
        seen = mask[:, :, rows] if mask.shape[2] > 1 else mask
        logits = logits.masked_fill(~seen, -math.inf) if seen.dtype == torch.bool else logits + seen
    elif causal:
        column = torch.arange(key.shape[2], device=key.device)
        logits = logits.masked_fill(column > column[rows, None], -math.inf)
    return torch.softmax(logits, dim=-1).nan_to_num(0.0)


def _patches(mask: Tensor | None, query: Tensor) -> Tensor:
    """`(batch, queries)`, 1 for queries that count: what nobody may look at is padding, and has no say either."""
    counted = query.new_ones(len(query), query.shape[2], dtype=torch.float32)
    if mask is None:
        return counted
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    anybody = seen.any(dim=2).any(dim=1)  # (batch or 1, keys)
    return counted * anybody if anybody.shape[-1] == query.shape[2] else counted


class _Recording(threading.local):
    """What this thread records, by the identity of attention modules."""

    layers: dict[int, RecordedLayer] | None = None


_RECORDING = _Recording()


def _record(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> Any:
    """Attention as usual, and a look at its weights."""
    layer = (_RECORDING.layers or {}).get(id(module))
    if layer is not None:
        changed = [name for name in _CHANGES if kwargs.get(name) is not None]
        if changed:
            raise UnsupportedModelError(
                f"vision tower must attend by queries and keys alone, got {changed[0]} in {type(module).__name__}"
            )
        causal = kwargs.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        layer.see(query, key, attention_mask, query.shape[-1] ** -0.5 if scaling is None else scaling, causal)
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


AttentionInterface.register(_ATTENTION, _record)
AttentionMaskInterface.register(_ATTENTION, sdpa_mask)


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

    The model and its config stay as they are: other threads may run it in the meantime. Under any attention
    implementation the tower attends by `scaled_dot_product_attention` here.

    Args:
        tower: the vision tower.
        layers: numbers of layers, from 0.
        source: "cls" or "received", see :class:`RecordedLayer`.

    Yields:
        By its number, what was recorded of each layer.
    """
    recorded = {number: RecordedLayer(source) for number in layers}
    if not recorded:  # towers of which nothing is asked need no layers that attend
        yield recorded
        return
    every = tower_layers(tower)
    by_module = {id(part): layer for number, layer in recorded.items() for part in every[number].modules()}
    configs = {id(part.config): part.config for part in tower.modules() if _names_attention(part)}
    before, _RECORDING.layers = _RECORDING.layers, by_module
    try:
        with attending(_ATTENTION, list(configs.values())):
            yield recorded
    finally:
        _RECORDING.layers = before


def repeat_recorded(copies: int) -> None:
    """Has what this thread has recorded stand there so many times, as if the tower had seen so many copies."""
    for layer in {id(layer): layer for layer in (_RECORDING.layers or {}).values()}.values():
        layer.calls *= copies


def _names_attention(part: Any) -> bool:
    return hasattr(getattr(part, "config", None), "_attn_implementation")
