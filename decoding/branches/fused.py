"""Several branches as rows of one batch: one forward a token, each branch with its own, unpadded KV."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from damro.decoding.altering import reading
from damro.decoding.attending import attending
from damro.decoding.branches.kv import copied_cache, keeps_columns, roomy_cache
from damro.decoding.branches.rope import ropes_of_longest
from damro.decoding.compat import CACHE
from damro.decoding.prompts import Prompt

_ATTENTION = "decoding_branches"


class Prefill(NamedTuple):
    """A prompt that has been read: KV, which columns count `(R, L)`, the next logits `(R, V)` and position `(R,)`."""

    cache: Cache
    mask: Tensor
    logits: Tensor
    position: Tensor

    def copied(self) -> Prefill:
        """The same, to be continued by itself."""
        return self._replace(cache=copied_cache(self.cache))


@torch.no_grad()
def prefill(decoder: nn.Module, prompt: Prompt) -> Prefill:
    """Runs the decoder over a whole prompt."""
    cache = roomy_cache()
    with reading(decoder, prompt):
        output: Any = decoder(**prompt.first_inputs(), use_cache=True, logits_to_keep=1, **{CACHE: cache})
    return Prefill(cache, prompt.attention_mask, output.logits[:, -1], prompt.next_position)


class States(NamedTuple):
    """What a branch's rows attend to in one layer: `(R, heads, columns, d)` twice, and which columns count."""

    keys: Tensor
    values: Tensor
    mask: Tensor | None


class Rows(Protocol):
    """One prompt's rows, as a step needs them: their KV, and where they stand."""

    position: Tensor
    """`(R,)`, of the next token."""

    @property
    def rows(self) -> int:
        """R."""

    def begin_step(self) -> None:
        """Counts one more column; every layer then adds it with :meth:`append`."""

    def append(self, layer: int, keys: Tensor, values: Tensor) -> States:
        """Adds a column to a layer, `(R, heads, 1, d)`, and returns all columns."""

    def keep(self, rows: Tensor) -> None:
        """Drops all rows but these."""


class _Branch:
    """One prompt's rows: their KV, their next positions `(R,)`, and which of their columns count."""

    def __init__(self, read: Prefill, copies: int) -> None:
        self._cache = read.cache
        if copies > 1:
            self._cache.batch_repeat_interleave(copies)
        self.position = read.position.repeat_interleave(copies)
        padded = not bool(read.mask.all())
        self._mask = read.mask.bool().repeat_interleave(copies, dim=0) if padded else None

    @property
    def rows(self) -> int:
        return len(self.position)

    def begin_step(self) -> None:
        """Counts one more column; every layer then adds it with :meth:`append`."""
        self.position = self.position + 1
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(self.rows, 1)], dim=-1)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> States:
        """Adds a column to a layer, `(R, heads, 1, d)`, and returns all columns."""
        all_keys, all_values = self._cache.update(keys, values, layer)
        mask = None if self._mask is None else self._mask[:, None, None].to(keys.device)
        return States(all_keys, all_values, mask)

    def keep(self, rows: Tensor) -> None:
        """Drops all rows but these."""
        self.position = self.position[rows]
        self._mask = None if self._mask is None else self._mask[rows]
        self._cache.batch_select_indices(rows)


class BranchCache(Cache):
    """Hands each branch's KV to :func:`_attend`, one after the other, where a cache returns one tensor for all."""

    def __init__(self, branches: Sequence[Rows]) -> None:
        super().__init__(layers=[])
        self._branches = branches

    def update(  # type: ignore[override]
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[list[States], None]:
        """Takes the new column of all rows and returns the states of every branch."""
        states, first = [], 0
        for branch in self._branches:
            rows = slice(first, first + branch.rows)
            states.append(branch.append(layer_idx, key_states[rows], value_states[rows]))
            first += branch.rows
        return states, None


def _attend(
    module: nn.Module, query: Tensor, key: list[States], value: None, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention of one new token: every branch's rows over that branch's columns, and nothing else."""
    parts, first = [], 0
    for states in key:
        rows = query[first : first + len(states.keys)]
        parts.append(sdpa_attention_forward(module, rows, states.keys, states.values, states.mask, **kwargs)[0])
        first += len(rows)
    if first < len(query):  # spare rows have no KV; what they get does not matter
        parts.append(parts[-1][-1:].expand(len(query) - first, -1, -1, -1))
    return torch.cat(parts), None


# A name without a mask function: transformers then makes no mask, as each branch brings its own.
AttentionInterface.register(_ATTENTION, _attend)


_TOUCH_KEYS = ("diffllama", "doge", "jetmoe")
"""Language models that do something with all keys or values between the cache and the attention function."""


def can_branch(decoder: Any) -> bool:
    """Whether several prompts can be continued as rows of one batch, see :func:`why_alone`."""
    return why_alone(decoder) is None


def why_alone(decoder: Any) -> str | None:
    """Why :class:`Branches` cannot continue several prompts of a language model in one batch; None if it can.

    Its attention must be given by name and look at all columns, each row at its own.

    Returns:
        A clause, as in "one prompt at a time, as ...".
    """
    body = decoder.get_decoder()
    config = body.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    if not keeps_columns(decoder):
        return "it keeps states beside keys and values"
    if getattr(config, "sliding_window", None) is not None or kinds:
        return f"it has layers of another kind than full attention ({', '.join(sorted(kinds)) or 'sliding window'})"
    if config.model_type in _TOUCH_KEYS or any(hasattr(part, "expand_kv") for part in body.modules()):
        return "it changes keys and values between its cache and its attention"
    if ropes_of_longest(body):
        return "its positions depend on the longest prompt of a batch"
    if not getattr(body, "_supports_attention_backend", False):
        return "its attention cannot be given by name"
    return None


def spare_rows(rows: int, weights: Tensor) -> int:
    """How many rows to add to a step, though nobody needs them, because it is faster with them.

    On a CPU in float32 a product with 2 or 3 rows takes longer than one with 4 (`benchmarks/RESULTS.md`).

    Example:
        >>> import torch
        >>> [spare_rows(rows, torch.zeros(1)) for rows in (1, 2, 3, 4, 5)]
        [0, 2, 1, 0, 0]
        >>> spare_rows(2, torch.zeros(1, dtype=torch.bfloat16))
        0
    """
    slow = weights.device.type == "cpu" and weights.dtype == torch.float32 and rows in (2, 3)
    return 4 - rows if slow else 0


class Branches:
    """Prompts that are continued by the same tokens, side by side.

    A step is one forward of all rows of all branches, so weights are read once; in attention each branch looks
    at its own columns only. A short branch beside a long one is therefore not padded: KV is the sum of the
    branches' own, and masks are needed only where rows of one branch differ in length.

    While a step runs, the layers find another attention function named in the language model's config. Only the thread
    that runs it does: others may use the model in the meantime, for whatever they like.

    Args:
        decoder: the causal language model with its head.
        read: the branches' prompts, B rows each.
        copies: sequences to continue each prompt with; row r continues prompt `r // copies`.

    Attributes:
        logits: `(branches, R, V)`, logits of the next token.
    """

    def __init__(self, decoder: Any, read: Sequence[Prefill], copies: int = 1) -> None:
        self._decoder = decoder
        self.logits = torch.stack([one.logits for one in read]).repeat_interleave(copies, dim=1)
        self._branches: Sequence[Rows] = [self._branch(one, copies) for one in read]
        self._cache = BranchCache(self._branches)

    @staticmethod
    def _branch(read: Prefill, copies: int) -> Rows:
        return _Branch(read, copies)

    @torch.no_grad()
    def step(self, tokens: Tensor) -> None:
        """Continues every row of every branch by a token; sets :attr:`logits`.

        Args:
            tokens: `(R,)`.
        """
        positions = torch.cat([branch.position for branch in self._branches])
        tokens = tokens.to(positions.device).repeat(len(self._branches))
        rows = len(tokens)
        spare = [-1] * self._spare(rows)
        tokens, positions = torch.cat([tokens, tokens[spare]]), torch.cat([positions, positions[spare]])
        logits: Any = self._run(tokens.unsqueeze(-1), positions.unsqueeze(-1))
        self.logits = logits[:rows].unflatten(0, (len(self._branches), -1))

    def _spare(self, rows: int) -> int:
        """Rows to add to a step; not of a prompt alone, whose rows are counted as those of plain decoding."""
        return spare_rows(rows, self.logits) if len(self._branches) > 1 else 0

    def _run(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Runs one step of all rows, `(N, 1)` each; returns logits `(N, V)`."""
        for branch in self._branches:
            branch.begin_step()
        with attending(_ATTENTION, [self._decoder.get_decoder().config]):
            output: Any = self._decoder(
                input_ids=tokens,
                position_ids=positions,
                use_cache=True,
                logits_to_keep=1,
                **{CACHE: self._cache},
            )
        logits: Tensor = output.logits[:, -1]
        return logits

    def keep(self, rows: Tensor) -> None:
        """Drops all rows but these from every branch.

        Args:
            rows: row numbers, `(kept,)`.
        """
        self.logits = self.logits[:, rows.to(self.logits.device)]
        for branch in self._branches:
            branch.keep(rows.to(branch.position.device))
