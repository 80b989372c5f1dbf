"""Branches whose step is compiled: KV in tensors of fixed room, so that one graph serves token after token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, Cache

from damro.decoding.attending import attending
from damro.decoding.branches.compiling import check_compiles, compiled_step, compiling
from damro.decoding.branches.fused import Branches, Prefill
from damro.decoding.branches.kv import ROOM

_ATTENTION = "decoding_compiled_branches"


class _Written(NamedTuple):
    """A branch as a step sees it, `(R, heads, room, d)` twice a layer, `(R, room)` and the column to write, `(1,)`."""

    keys: list[Tensor]
    values: list[Tensor]
    mask: Tensor
    column: Tensor


class _Room:
    """One prompt's rows: their KV with room for more columns, and their next positions `(R,)`."""

    def __init__(self, read: Prefill, copies: int) -> None:
        layers: Any = read.cache.layers
        self.position = read.position.repeat_interleave(copies)
        self._end = read.mask.shape[1]
        self._keys = [layer.keys.repeat_interleave(copies, dim=0) for layer in layers]
        self._values = [layer.values.repeat_interleave(copies, dim=0) for layer in layers]
        self._mask = read.mask.bool().repeat_interleave(copies, dim=0)
        self._grow()

    def _grow(self) -> None:
        more = _more_room(self._end, self._mask.device)
        self._keys = [pad(keys, (0, 0, 0, more)) for keys in self._keys]
        self._values = [pad(values, (0, 0, 0, more)) for values in self._values]
        self._mask = pad(self._mask, (0, more))

    def begin_step(self) -> _Written:
        """Counts one more column, which every layer then writes."""
        if self._end == self._mask.shape[1]:
            self._grow()
        column = torch.tensor([self._end], device=self._mask.device)
        self._mask[:, self._end] = True
        self._end += 1
        self.position = self.position + 1
        for states in (*self._keys, *self._values):
            _varies(states, 0, 2)
        _varies(self._mask, 0, 1)
        return _Written(self._keys, self._values, self._mask, column)

    def keep(self, rows: Tensor) -> None:
        """Drops all rows but these."""
        self.position = self.position[rows]
        self._mask = self._mask[rows]
        self._keys = [keys[rows.to(keys.device)] for keys in self._keys]
        self._values = [values[rows.to(values.device)] for values in self._values]


def _more_room(columns: int, device: torch.device) -> int:
    """Columns to allocate ahead: so many on a CPU; as many as there are on a GPU, which records a graph per size.

    Example:
        >>> _more_room(600, torch.device("cpu")), _more_room(600, torch.device("cuda"))
        (64, 424)
    """
    return ROOM if device.type == "cpu" else (1 << columns.bit_length()) - columns


def _varies(tensor: Tensor, *dims: int) -> None:
    """Tells the compiler that sizes change, so that it makes one graph for all of them. Of one row it makes another."""
    if tensor.device.type == "cpu":  # a GPU replays what it has recorded, size by size
        for dim in dims:
            if tensor.shape[dim] > 1:
                torch._dynamo.maybe_mark_dynamic(tensor, dim)


class _RoomCache(Cache):
    """Hands each branch's KV to :func:`_attend`, one after the other, where a cache returns one tensor for all."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.branches: list[_Written] = []

    def update(  # type: ignore[override]
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[list[tuple[Tensor, Tensor, Tensor]], None]:
        """Writes the new column of all rows and returns the states of every branch."""
        states, first = [], 0
        for branch in self.branches:
            keys, values = branch.keys[layer_idx], branch.values[layer_idx]
            rows = slice(first, first + keys.shape[0])
            keys.index_copy_(2, branch.column, key_states[rows])
            values.index_copy_(2, branch.column, value_states[rows])
            states.append((keys, values, branch.mask))
            first += keys.shape[0]
        return states, None


def _attend(
    module: nn.Module,
    query: Tensor,
    key: list[tuple[Tensor, Tensor, Tensor]],
    value: None,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one new token: every branch's rows over that branch's columns, and nothing else."""
    attended, first = query.new_zeros(query.shape[0], 1, query.shape[1], key[0][1].shape[-1]), 0
    for keys, values, mask in key:
        rows, heads = keys.shape[:2]
        # Query heads that share a key head stand as its columns, so that no key is repeated.
        asked = query[first : first + rows].reshape(rows, heads, -1, query.shape[-1])
        found = scaled_dot_product_attention(asked, keys, values, mask[:, None, None], scale=scaling)
        attended[first : first + rows] = found.reshape(rows, 1, query.shape[1], -1)
        first += rows
    return attended, None


# A name without a mask function: transformers then makes no mask, as each branch brings its own.
AttentionInterface.register(_ATTENTION, _attend)


class CompiledBranches(Branches):
    """Prompts that are continued by the same tokens, side by side, as :class:`Branches`, by a compiled step.

    The same tokens, up to the rounding of sums that a compiler orders otherwise. What is compiled is one step of all
    rows: once for one row a branch and once for more, minutes each for a model of 30 layers on two cores, for as
    long as the model lives. KV lies in room for more columns, whose unwritten ones are masked.

    Args:
        decoder: the causal language model with its head.
        read: the branches' prompts, B rows each.
        copies: sequences to continue each prompt with; row r continues prompt `r // copies`.

    Attributes:
        logits: `(branches, R, V)`, logits of the next token.

    Raises:
        UnsupportedModelError: the step cannot be compiled.
    """

    def __init__(self, decoder: Any, read: Sequence[Prefill], copies: int = 1) -> None:
        check_compiles(decoder)
        super().__init__(decoder, read, copies)
        self._graph = compiled_step(decoder)
        self._room_cache = _RoomCache()

    @staticmethod
    def _branch(read: Prefill, copies: int) -> Any:
        return _Room(read, copies)

    def _spare(self, rows: int) -> int:
        """A second row where there is one and weights are packed: for a single row they need not be."""
        return int(rows == 1 and self._graph.packed)

    def _run(self, tokens: Tensor, positions: Tensor) -> Tensor:
        rooms: Any = self._branches
        self._room_cache.branches = [room.begin_step() for room in rooms]
        _varies(tokens, 0)
        _varies(positions, 0)
        with attending(_ATTENTION, [self._decoder.get_decoder().config]), compiling(packed=self._graph.packed):
            # A graph on a GPU writes its next logits over these.
            return self._graph.step(tokens, positions, self._room_cache).clone()
