"""The second pass: a prompt of its own, a KV cache of its own, following whatever history it is shown."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers import Cache

from damro.decoding.altering import reading
from damro.decoding.branches.head import PartialHead
from damro.decoding.branches.kv import roomy_cache
from damro.decoding.branches.rope import forget_longest, ropes_of_longest
from damro.decoding.compat import CACHE
from damro.decoding.errors import InputsError
from damro.decoding.prompts import Prompt


class Branch(Protocol):
    """What follows histories behind a prompt; see :class:`NegativeBranch`."""

    may_wait: bool
    """Whether tokens may be fed later, several at once."""

    passes: int
    """How often the decoder has been run."""

    prompt: Prompt
    """The prompt in front of every history."""

    def logits(self, history: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Logits of the token that follows each history."""

    def restart(self) -> None:
        """Forgets every history."""


class _State(NamedTuple):
    """What the cache holds beyond the prompt: `tokens (S, T)` and the prompt of each row, `prompt_of (S,)`."""

    cache: Cache
    tokens: Tensor
    prompt_of: Tensor


class _Held(threading.local):
    """What a thread has read so far: the state to continue from, and the logits behind the prompt `(B, V)`."""

    state: _State | None = None
    prompt_logits: Tensor | None = None


class NegativeBranch:
    """Next-token logits of a prompt, for any token history, computed with as little work as possible.

    The branch keeps one KV cache. When it is asked for a history it finds, for every row, the cached row that
    shares the longest common prefix, reorders and crops the cache accordingly and feeds what is missing in one
    chunk. So it needs not be told about beams, returned sequences, rejected drafts or a second ``generate``: the
    answer depends on the history alone. Tokens that were skipped because nobody asked are fed when next needed. Threads
    may share a branch: each has a cache of its own, for as long as the thread and the branch live.

    Args:
        decoder: the causal language model; called with what the prompt says, returns `.logits`.
        embed: the embedding of its tokens, for prompts of embedded columns.
        prompt: the prompt in front of every history, `B` rows.

    Attributes:
        passes: how often the decoder has been run, by all threads.
        may_wait: whether tokens may be fed later, several at once; not where the longest position of a pass decides
            how all of them are read.
    """

    may_wait = True

    def __init__(self, decoder: nn.Module, embed: nn.Module, prompt: Prompt) -> None:
        self._decoder = decoder
        self._head = PartialHead(decoder)
        self._embed = embed
        self.prompt = prompt
        self.passes = 0
        # Without padding no mask is needed, and attention kernels are faster without one.
        self._padded = not bool(prompt.attention_mask.all())
        self._held = _Held()
        self._counting = threading.Lock()
        self._ropes = ropes_of_longest(decoder)
        self.may_wait = not self._ropes

    @torch.no_grad()
    def logits(self, history: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Logits of the token that follows each history.

        Args:
            history: `(R, T)`, the tokens after the prompt, T >= 0. R is a multiple of the prompt's rows; row r
                continues prompt `r // (R / B)`, as ``generate`` lays out beams and returned sequences.
            tokens: `(k,)`, whose logits are wanted; None for all.

        Returns:
            `(R, V)`, or `(R, k)`; on the device of `history`.

        Raises:
            InputsError: if R is not a multiple of B.
        """
        prompt_of = self._prompt_of_rows(history)
        state, prompt_logits = self._prefilled()
        if history.shape[1] == 0:
            logits = prompt_logits if tokens is None else prompt_logits[:, tokens.to(prompt_logits.device)]
            return logits[prompt_of.to(logits.device)].to(history.device)
        history_here = history.to(prompt_of.device)
        # From here until the pass has succeeded the cache fits no history; an interrupt must not leave it in use.
        self._held.state = None
        state, common = _follow(state, history_here, prompt_of)
        logits = self._extend(state, history_here, common, tokens)
        return logits.to(history.device)

    def restart(self) -> None:
        """Forgets every history; the prompt stays read."""
        state = self._held.state
        if state is not None and state.tokens.shape[1]:
            self._held.state = None  # as in logits
            state.cache.crop(-state.tokens.shape[1])
            self._held.state = state._replace(tokens=state.tokens[:, :0])

    def _prompt_of_rows(self, history: Tensor) -> Tensor:
        rows, prompts = len(history), len(self.prompt.attention_mask)
        if rows % prompts:
            raise InputsError(
                f"input_ids must hold a multiple of the {prompts} prompts the processor was made for, "
                f"got {rows} rows; make one processor for each call's inputs"
            )
        return torch.arange(prompts, device=self.prompt.attention_mask.device).repeat_interleave(rows // prompts)

    def _prefilled(self) -> tuple[_State, Tensor]:
        """The state to continue from; the first call runs the prompt."""
        state, prompt_logits = self._held.state, self._held.prompt_logits
        if state is None or prompt_logits is None:
            cache, mask = roomy_cache(), self.prompt.attention_mask
            prompt_logits = self._run(cache, self.prompt.first_inputs())
            rows = torch.arange(len(mask), device=mask.device)
            state = _State(cache, mask.new_empty(len(mask), 0, dtype=torch.long), rows)
            self._held.state, self._held.prompt_logits = state, prompt_logits
        return state, prompt_logits

    def _extend(self, state: _State, history: Tensor, common: int, tokens: Tensor | None) -> Tensor:
        """Feeds `history[:, common:]` in one chunk and remembers the whole history."""
        full_mask = None
        if self._padded:
            mask = self.prompt.attention_mask[state.prompt_of]
            full_mask = torch.cat([mask, mask.new_ones(history.shape)], dim=-1)
        start = self.prompt.next_position[state.prompt_of].unsqueeze(-1)
        positions = start + torch.arange(common, history.shape[1], device=start.device)
        new = self.prompt.next_inputs(history[:, common:], self._embed)
        logits = self._run(state.cache, {**new, "attention_mask": full_mask, "position_ids": positions}, tokens)
        self._held.state = state._replace(tokens=history.clone())
        return logits

    def _run(self, cache: Cache, inputs: dict[str, Any], tokens: Tensor | None = None) -> Tensor:
        forget_longest(self._ropes)  # what the model has read of the other prompt
        with reading(self._decoder, self.prompt):
            logits = self._head.logits(tokens, **inputs, use_cache=True, **{CACHE: cache})
        forget_longest(self._ropes)
        with self._counting:
            self.passes += 1
        return logits


def _follow(state: _State, history: Tensor, prompt_of: Tensor) -> tuple[_State, int]:
    """Turns the cache into one that fits `history`.

    Returns the new state and how many leading tokens of every row the cache already holds; at least one token
    is always left to feed, since the logits come from feeding it.
    """
    overlap = min(state.tokens.shape[1], history.shape[1])
    same = history[:, None, :overlap] == state.tokens[None, :, :overlap]  # (R, S, overlap)
    length = same.long().cumprod(dim=-1).sum(dim=-1)  # (R, S)
    length = length.masked_fill(prompt_of[:, None] != state.prompt_of[None, :], -1)
    best, parent = length.max(dim=-1)
    square = length.shape[0] == length.shape[1]
    moved = (length.diagonal() != best).any() if square else torch.ones_like(best[0], dtype=torch.bool)
    # One transfer to the host answers both questions.
    elsewhere, shortest = torch.stack([moved.long(), best.min()]).tolist()
    if elsewhere:
        state.cache.batch_select_indices(parent)
    common = min(shortest, history.shape[1] - 1)
    surplus = state.tokens.shape[1] - common
    if surplus:
        state.cache.crop(-surplus)
    return _State(state.cache, history[:, :common], prompt_of), common
