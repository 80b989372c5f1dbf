"""Branches whose rows leave when their answers end, and whose places new prompts take while the others go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from damro.decoding.branches.fused import BranchCache, Branches, Prefill, States
from damro.decoding.branches.kv import ROOM


class Places:
    """One prompt's rows, each at a place of its own, with KV in one store whose last column is the same for all.

    A joining row is written so that its prompt ends at that column: whoever is there already is not touched. What is
    left of a row's prompt holds zeros and is masked; columns that no row reads any more are cut off by a view. So KV is
    copied as a whole only once in :data:`damro.decoding.branches.kv.ROOM` tokens, or for more places or wider prompts
    than there is room for.

    Attributes:
        position: `(R,)`, where each row's next token stands.
    """

    def __init__(self) -> None:
        self._stores: list[list[Tensor]] = []  # of each layer, keys and values, (R, heads, room, d)
        self._mask = torch.zeros(0, 0, dtype=torch.bool)
        self.position = torch.zeros(0, dtype=torch.long)
        self._first: list[int] = []  # of each row, the first column that it reads
        self._gaps: list[bool] = []  # and whether there are columns behind it that it does not
        self._end = 0
        self._widest = 0
        self._seen: Tensor | None = None

    @property
    def rows(self) -> int:
        """R, the places, taken or free."""
        return len(self._first)

    @property
    def columns(self) -> tuple[int, int]:
        """How many columns a step looks at, and how many there is room for."""
        return self._end - min(self._first, default=self._end), self._mask.shape[1]

    def join(self, places: Sequence[int], read: Prefill) -> None:
        """Gives places to the rows of a prompt that has been read, which is left as it is.

        Args:
            places: one for each row, free, or behind the last.
            read: the prompt.
        """
        mask = read.mask.bool()
        first, ones = torch.stack([mask.long().argmax(dim=-1), mask.sum(dim=-1)]).tolist()
        unread = min(first)
        width = mask.shape[1] - unread
        self._widest = max(self._widest, width)
        rows = max(self.rows, max(places) + 1)
        if not self._stores:
            self._begin(read, rows, width)
        elif rows > self.rows or width > self._end:
            self._move(range(self.rows), rows)
        start, index = self._end - width, torch.tensor(places)
        for stores, layer in zip(self._stores, read.cache.layers, strict=True):
            held: Any = layer
            for store, new in zip(stores, (held.keys, held.values), strict=True):
                at = index.to(store.device)
                # Zeros, as the last row's may be no numbers; times the weight of a masked column that makes no number.
                store[:, :, :start].index_fill_(0, at, 0)
                store[:, :, start : self._end].index_copy_(0, at, new[:, :, unread:])
        at = index.to(mask.device)
        self._mask[:, :start].index_fill_(0, at, False)
        self._mask[:, start : self._end].index_copy_(0, at, mask[:, unread:])
        self.position = self.position.index_copy(0, index.to(self.position.device), read.position)
        for place, column, count in zip(places, first, ones, strict=True):
            self._first[place] = start + column - unread
            self._gaps[place] = column + count < mask.shape[1]

    def leave(self, places: Sequence[int]) -> None:
        """Frees places; their rows go on, of no interest to anybody, over nothing but what they add from here."""
        index = torch.tensor(places)
        self._mask.index_fill_(0, index.to(self._mask.device), False)
        # Learned positions come to an end; those of a row that nobody needs shall not come to it.
        self.position = self.position.index_fill(0, index.to(self.position.device), 0)
        for place in places:
            self._first[place], self._gaps[place] = self._end, False

    def keep(self, rows: Tensor) -> None:
        """Drops all places but these."""
        kept = rows.tolist()
        self._move(kept, len(kept))

    def begin_step(self) -> None:
        """Counts one more column; every layer then adds it with :meth:`append`."""
        if self._end == self._mask.shape[1]:
            self._move(range(self.rows), self.rows)
        self._mask[:, self._end] = True
        self._end += 1
        self.position = self.position + 1
        start = min(self._first)
        padded = any(self._gaps) or max(self._first) > start
        self._seen = self._mask[:, None, None, start : self._end] if padded else None

    def append(self, layer: int, keys: Tensor, values: Tensor) -> States:
        """Adds a column to a layer, `(R, heads, 1, d)`, and returns all columns that are read."""
        start = min(self._first)
        views = []
        for store, new in zip(self._stores[layer], (keys, values), strict=True):
            store[:, :, self._end - 1 : self._end] = new
            views.append(store[:, :, start : self._end])
        mask = None if self._seen is None else self._seen.to(keys.device)
        return States(views[0], views[1], mask)

    def _begin(self, read: Prefill, rows: int, width: int) -> None:
        """Makes stores of the kind that the prompt's KV is of."""
        held: Any = read.cache.layers
        room, layers = width + ROOM, [(one.keys, one.values) for one in held]
        self._stores = [[one.new_zeros(rows, one.shape[1], room, one.shape[3]) for one in layer] for layer in layers]
        self._mask = torch.zeros(rows, room, dtype=torch.bool, device=read.mask.device)
        self.position = torch.zeros(rows, dtype=torch.long, device=read.position.device)
        self._first, self._gaps, self._end = [width] * rows, [False] * rows, width

    def _move(self, kept: Sequence[int], rows: int) -> None:
        """Makes new stores with room for so many rows and :data:`ROOM` columns, the widest prompt left of them.

        Args:
            kept: the places that stay, in their new order; free ones follow.
            rows: how many there are then.
        """
        start = min((self._first[place] for place in kept), default=self._end)
        end = max(self._end - start, self._widest)
        all_stay = list(kept) == list(range(self.rows))

        def moved(table: Tensor, dim: int) -> Tensor:
            """The same columns in a table with more room, along the dimension of columns."""
            old = table if all_stay else table[torch.tensor(kept, dtype=torch.long, device=table.device)]
            shape = list(table.shape)
            shape[0], shape[dim] = rows, end + ROOM
            new = table.new_zeros(shape)
            new[: len(old)].narrow(dim, end - (self._end - start), self._end - start).copy_(
                old.narrow(dim, start, self._end - start)
            )
            return new

        for stores in self._stores:
            for number, store in enumerate(stores):  # one after the other, so that a single one is held twice
                stores[number] = moved(store, 2)
        self._mask = moved(self._mask, 1)
        index = torch.tensor(kept, dtype=torch.long, device=self.position.device)
        self.position = torch.cat([self.position[index], self.position.new_zeros(rows - len(index))])
        free = rows - len(index)
        self._first = [self._first[place] + end - self._end for place in kept] + [end] * free
        self._gaps = [self._gaps[place] for place in kept] + [False] * free
        self._end = end


class OpenBranches(Branches):
    """Branches that begin empty, which rows join and leave at any time.

    ::

        branches = OpenBranches(decoder)
        branches.join([0, 1], [prefill(decoder, full), prefill(decoder, negative)])
        branches.step(tokens)
        branches.leave([1])

    Args:
        decoder: the causal language model with its head.

    Attributes:
        logits: `(branches, R, V)`, of the next token at each place; of free ones, anything.
    """

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self._places: list[Places] = []
        self._branches = self._places
        self._cache = BranchCache(self._places)
        self.logits = torch.zeros(0, 0, 0)

    @property
    def rows(self) -> int:
        """R, the places, taken or free."""
        return self._places[0].rows if self._places else 0

    @property
    def columns(self) -> list[tuple[int, int]]:
        """Of each branch, see :attr:`Places.columns`."""
        return [branch.columns for branch in self._places]

    def join(self, places: Sequence[int], read: Sequence[Prefill]) -> None:
        """Gives places to prompts that have been read, and sets their :attr:`logits`.

        Args:
            places: one for each row: free, or the next ones behind the last.
            read: the branches' prompts, as many rows each.
        """
        logits = torch.stack([one.logits for one in read])
        if not self._places:
            self._places += [Places() for _ in read]
            self.logits = logits[:, :0]
        for branch, one in zip(self._places, read, strict=True):
            branch.join(places, one)
        more = logits.new_zeros(len(read), self.rows - self.logits.shape[1], logits.shape[2])
        index = torch.tensor(places, device=logits.device)
        self.logits = torch.cat([self.logits, more], dim=1).index_copy(1, index, logits)

    def leave(self, places: Sequence[int]) -> None:
        """Frees places for others. They are carried along until those come, or until :meth:`keep`."""
        for branch in self._places:
            branch.leave(places)
