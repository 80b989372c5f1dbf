"""A cache that grows in place."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

ROOM = 64
"""Columns that are allocated ahead of need; KV is copied once in so many tokens instead of at each of them."""


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A layer's KV, `(R, heads, columns, d)` twice, at the front of tensors that have room for more columns.

    A dynamic cache copies all it holds at every token. Whatever else is done to a layer (rows chosen, columns cropped,
    a move to another device) leaves other tensors in `keys` and `values`; the next update then starts from those.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._stores: tuple[Tensor, Tensor] | None = None
        self._given: tuple[Tensor, Tensor] | None = None

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # inductor fails on views of a store that is written to
    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Adds columns and returns all of them, as views that later columns leave alone."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        stores = self._stores_for(end)
        if stores is None:
            held: Any = (self.keys, self.values)  # empty tensors of another shape before the first update
            stores = _grown(held[0], start, key_states), _grown(held[1], start, value_states)
        for store, new in zip(stores, (key_states, value_states), strict=True):
            store[..., start:end, :] = new
        self.keys, self.values = given = stores[0][..., :end, :], stores[1][..., :end, :]
        self._stores, self._given = stores, given
        return given

    def _stores_for(self, end: int) -> tuple[Tensor, Tensor] | None:
        """The stores at hand, if they hold what the layer holds and have room for so many columns."""
        stores, given = self._stores, self._given
        if stores is None or given is None or self.keys is not given[0] or self.values is not given[1]:
            return None
        # What was made in inference mode can be written to there only.
        writable = torch.is_inference_mode_enabled() or not stores[0].is_inference()
        return stores if writable and end <= stores[0].shape[-2] else None

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row."""
        super().batch_repeat_interleave(repeats)
        self._stores = self._given = None  # the old columns shall not be held beside the new ones

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps some rows; on any device."""
        if self.keys is not None:
            super().batch_select_indices(indices.to(self.keys.device))
        self._stores = self._given = None

    def copied(self) -> RoomyLayer:
        """The same columns, with as much room, in tensors of their own."""
        twin = copy.copy(self)
        stores = self._stores_for(self.get_seq_length())
        held: Any = (self.keys, self.values)  # None before the first update, when nobody copies
        if stores is None:
            twin.keys, twin.values, twin._stores, twin._given = held[0].clone(), held[1].clone(), None, None
            return twin
        keys, values = (store.clone() for store in stores)
        end = held[0].shape[-2]
        twin.keys, twin.values = given = keys[..., :end, :], values[..., :end, :]
        twin._stores, twin._given = (keys, values), given
        return twin

    def reset(self) -> None:
        """Forgets all columns."""
        self.keys = self.values = self._stores = self._given = None
        self.is_initialized = False


def _grown(held: Tensor, columns: int, new: Tensor) -> Tensor:
    """Room for the columns of `held`, those of `new` and :data:`ROOM` more; the columns of `held` stand in it."""
    store = new.new_empty(*new.shape[:-2], columns + new.shape[-2] + ROOM, new.shape[-1])
    if columns:
        store[..., :columns, :] = held
    return store


def roomy_cache() -> Cache:
    """An empty cache of roomy layers. They hold all columns; a mask keeps a sliding window to its own.

    Example:
        >>> import torch
        >>> cache = roomy_cache()
        >>> for _ in range(2):
        ...     keys, values = cache.update(torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2), 0)
        >>> keys.shape
        torch.Size([1, 1, 6, 2])
    """
    return Cache(layer_class_to_replicate=RoomyLayer)


def copied_cache(cache: Cache) -> Cache:
    """A cache of roomy layers with the same columns, to be continued by itself.

    Example:
        >>> cache, one = roomy_cache(), torch.ones(1, 1, 1, 2)
        >>> _ = cache.update(one, one, 0)
        >>> [len(copied_cache(cache).update(one, one, 0)[0][0, 0]) for _ in range(2)]
        [2, 2]
    """
    twin = copy.copy(cache)
    layers: Any = cache.layers
    twin.layers = [layer.copied() for layer in layers]
    return twin


def keeps_columns(decoder: Any) -> bool:
    """Whether a language model's memory of what it has read is keys and values of every column, and nothing else.

    Recurrent layers (Mamba, short convolutions, linear attention) keep one state instead, which cannot be cropped.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        >>> keeps_columns(LlamaForCausalLM(LlamaConfig(vocab_size=8, **small)))
        True
    """
    if getattr(decoder.get_decoder(), "_is_stateful", False):
        return False
    layers = DynamicCache(config=decoder.config.get_text_config(decoder=True)).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
