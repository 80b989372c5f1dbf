"""Looks at queries and keys where transformers lets attention functions be exchanged.

There they have gone through everything a model does to them (norms, rotations, windows, masks), so that one recorder
serves every model that attends by queries and keys alone, under any attention implementation.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from damro.decoding.attending import attending
from damro.decoding.errors import UnsupportedModelError

_ATTENTION = "damro_recorded"
_CHANGES = ("position_bias", "softcap", "s_aux")
"""What some attention functions are given that changes weights."""


class Watcher(Protocol):
    """What looks at the attention of a module."""

    def see(self, query: Tensor, key: Tensor, mask: Tensor | None, scale: float, causal: bool) -> None:
        """Called with queries and keys `(batch, heads, tokens, d)`, in front of the attention itself."""


class _Watching(threading.local):
    """Who watches in this thread, by the identity of attention modules, and what the watched model is called."""

    watchers: Mapping[int, Watcher] | None = None
    name: str = ""


_WATCHING = _Watching()


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> Any:
    """Attention as usual, and a look at queries and keys."""
    watcher = (_WATCHING.watchers or {}).get(id(module))
    if watcher is not None:
        check_plain(module, kwargs, _WATCHING.name)
        causal = kwargs.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        watcher.see(query, key, attention_mask, query.shape[-1] ** -0.5 if scaling is None else scaling, causal)
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


def check_plain(module: nn.Module, kwargs: Mapping[str, Any], name: str) -> None:
    """Checks what an attention function is given beside queries, keys, values and mask.

    Raises:
        UnsupportedModelError: if something of it changes weights.
    """
    changed = [one for one in _CHANGES if kwargs.get(one) is not None]
    if changed:
        raise UnsupportedModelError(
            f"{name} must attend by queries and keys alone, got {changed[0]} in {type(module).__name__}"
        )


AttentionInterface.register(_ATTENTION, _attend)
AttentionMaskInterface.register(_ATTENTION, sdpa_mask)


@contextmanager
def watching(model: nn.Module, watched: Sequence[tuple[nn.Module, Watcher]], name: str) -> Iterator[None]:
    """While open, watchers see what attends in some modules whenever the model runs in this thread.

    The model and its config stay as they are: other threads may run it in the meantime. Here it attends by
    `scaled_dot_product_attention`; where nothing is watched, as it does otherwise.

    Args:
        model: whose configs name the attention function.
        watched: modules, and what looks at all that attends inside of each.
        name: what the model is called in errors.
    """
    if not watched:
        yield
        return
    watchers = {id(part): watcher for module, watcher in watched for part in module.modules()}
    configs = {id(part.config): part.config for part in model.modules() if _names_attention(part)}
    before = _WATCHING.watchers, _WATCHING.name
    try:
        _WATCHING.watchers, _WATCHING.name = watchers, name
        with attending(_ATTENTION, list(configs.values())):
            yield
    finally:
        _WATCHING.watchers, _WATCHING.name = before


def _names_attention(part: Any) -> bool:
    return hasattr(getattr(part, "config", None), "_attn_implementation")


def watchers() -> list[Watcher]:
    """Who watches in this thread, each once."""
    return list({id(watcher): watcher for watcher in (_WATCHING.watchers or {}).values()}.values())


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """`(batch, heads, queries, keys)` in float32; 0 for queries that may look at nothing.

    Args:
        query: `(batch, heads, queries, d)`.
        key: `(batch, heads or fewer, keys, d)`.
        mask: broadcast to the result: True where a query may look, or what is added to its logits.
        scale: of the logits.
    """
    if key.shape[1] != query.shape[1]:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    logits = query.float() @ key.float().transpose(-1, -2) * scale
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
    return torch.softmax(logits, dim=-1).nan_to_num(0.0)
