"""The attention of a language model's last positions to some columns, seen where attention functions are exchanged.

There queries and keys have gone through everything a model does to them (norms, rotations, windows, masks), so that one
recorder serves every language model that attends by queries and keys alone.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from damro.decoding.attending import attending
from damro.errors import UnsupportedModelError

_ATTENTION = "damro_rows"
_CHANGES = ("position_bias", "softcap", "s_aux")
"""What some attention functions are given that changes weights."""


class _Recording(threading.local):
    """What this thread keeps, by the identity of attention modules: `(rows, I)` for each run."""

    rows: dict[int, list[Tensor]] | None = None
    columns: Tensor
    last: int | None = None


_RECORDING = _Recording()


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> Any:
    """Attention as usual, and a look at its weights."""
    kept = (_RECORDING.rows or {}).get(id(module))
    if kept is not None:
        changed = [name for name in _CHANGES if kwargs.get(name) is not None]
        if changed:
            raise UnsupportedModelError(
                f"language model must attend by queries and keys alone, got {changed[0]} in {type(module).__name__}"
            )
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        weights = _last_rows(query, key, attention_mask, scale, _RECORDING.last or query.shape[2])
        kept.append(weights[:, _RECORDING.columns.to(weights.device)].cpu())
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


AttentionInterface.register(_ATTENTION, _attend)
AttentionMaskInterface.register(_ATTENTION, sdpa_mask)


def _last_rows(query: Tensor, key: Tensor, mask: Tensor | None, scale: float, last: int) -> Tensor:
    """`(last, columns)`, float32, the weights of the last queries of the first prompt, heads averaged."""
    queries, keys = query[0, :, -last:].float(), key[0].float()
    keys = keys.repeat_interleave(len(queries) // len(keys), dim=0)
    logits = queries @ keys.transpose(-1, -2) * scale  # (heads, last, columns)
    if mask is None:
        place = torch.arange(keys.shape[1], device=keys.device)
        logits = logits.masked_fill(place > place[-last:, None], -math.inf)
    else:
        seen = mask[0, :, -last:]
        logits = logits.masked_fill(~seen, -math.inf) if seen.dtype == torch.bool else logits + seen
    return torch.softmax(logits, dim=-1).mean(dim=0)


@contextmanager
def recording_rows(decoder: nn.Module, modules: Sequence[nn.Module], columns: Tensor) -> Iterator[Rows]:
    """While open, keeps what the last positions of every run in this thread pay to some columns.

    Args:
        decoder: the language model; its config names the attention function.
        modules: of which layers, what attends in them.
        columns: `(I,)`, the columns that are looked at.
    """
    recorded = Rows([[] for _ in modules])
    by_module = {
        id(part): runs for module, runs in zip(modules, recorded.runs, strict=True) for part in module.modules()
    }
    before = _RECORDING.rows
    # Where nothing is looked at, the model attends as it does otherwise: soft-capped, too.
    parts = decoder.modules() if modules else ()
    configs = {id(part.config): part.config for part in parts if _names_attention(part)}
    try:
        _RECORDING.rows, _RECORDING.columns = by_module, columns
        with attending(_ATTENTION, list(configs.values())):
            yield recorded
    finally:
        _RECORDING.rows, _RECORDING.last = before, None


def _names_attention(part: Any) -> bool:
    return hasattr(getattr(part, "config", None), "_attn_implementation")


class Rows:
    """What :func:`recording_rows` keeps.

    Args:
        runs: for each module a list, to which every run adds `(rows, I)`.
    """

    def __init__(self, runs: list[list[Tensor]]) -> None:
        self.runs = runs

    @contextmanager
    def last(self, rows: int) -> Iterator[None]:
        """While open, runs add their last rows only."""
        try:
            _RECORDING.last = rows
            yield
        finally:
            _RECORDING.last = None

    def joined(self) -> list[Tensor]:
        """For each module `(rows, I)`, those of all runs one behind the other.

        Raises:
            UnsupportedModelError: if a module did not attend through `AttentionInterface`.
        """
        if not all(self.runs):
            raise UnsupportedModelError(
                "language model must attend through AttentionInterface in every layer that is looked at, got none there"
            )
        return [torch.cat(runs) for runs in self.runs]
