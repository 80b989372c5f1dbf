"""The second pass of language models that keep states (linear attention, convolutions): fed in step, or read anew.

A state holds what was read before and cannot be taken back, as columns of keys and values can. So the branch is fed
every token when it has been written; a history that does not continue the last one is read from its beginning.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from damro.decoding.altering import reading
from damro.decoding.branches.head import PartialHead
from damro.decoding.compat import CACHE
from damro.decoding.errors import InputsError, UnsupportedModelError
from damro.decoding.prompts import Prompt


class _Read(NamedTuple):
    """What has been read: the states, `(R, T)` the tokens behind the prompt, the next logits `(R, V)`."""

    cache: Cache
    tokens: Tensor
    logits: Tensor


class _Held(threading.local):
    """What a thread has read."""

    read: _Read | None = None


class RecurrentBranch:
    """What :class:`damro.decoding.branches.negative.NegativeBranch` is, for language models that keep states.

    Args:
        decoder: the causal language model.
        embed: the embedding of its tokens, for prompts of embedded columns.
        prompt: the prompt in front of every history, `B` rows.

    Attributes:
        passes: how often the decoder has been run, by all threads.
        may_wait: False, as tokens are fed one by one.
    """

    may_wait = False

    def __init__(self, decoder: Any, embed: nn.Module, prompt: Prompt) -> None:
        self._decoder = decoder
        self._head = PartialHead(decoder)
        self._embed = embed
        self.prompt = prompt
        self.passes = 0
        self._held = _Held()
        self._counting = threading.Lock()

    @torch.no_grad()
    def logits(self, history: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Logits of the token that follows each history.

        Args:
            history: `(R, T)`, the tokens after the prompt; row r continues prompt `r // (R / B)`.
            tokens: `(k,)`, whose logits are wanted; None for all.

        Returns:
            `(R, V)`, or `(R, k)`; on the device of `history`.

        Raises:
            InputsError: if R is not a multiple of B.
            UnsupportedModelError: if rows have changed places, as they do in beam search.
        """
        prompts = len(self.prompt.attention_mask)
        if len(history) % prompts:
            raise InputsError(
                f"input_ids must hold a multiple of the {prompts} prompts the processor was made for, "
                f"got {len(history)} rows; make one processor for each call's inputs"
            )
        here = history.to(self.prompt.attention_mask.device)
        # Until the passes have succeeded the states fit no history; an interrupt must not leave them in use.
        read, self._held.read = self._held.read, None
        if read is None or not _continues(read.tokens, here):
            read = self._read_prompt(len(here) // prompts)
        prompt = self.prompt.repeat(len(here) // prompts)
        for column in range(read.tokens.shape[1], here.shape[1]):
            read = self._step(prompt, read, here[:, : column + 1])
        self._held.read = read
        logits = read.logits if tokens is None else read.logits[:, tokens.to(read.logits.device)]
        return logits.to(history.device)

    def restart(self) -> None:
        """Forgets every history, and the prompt, which the states hold no longer by itself."""
        if self._held.read is not None and self._held.read.tokens.shape[1]:
            self._held.read = None

    def _read_prompt(self, copies: int) -> _Read:
        """Reads every prompt as often as it is continued."""
        cache = DynamicCache(config=self._decoder.config.get_text_config(decoder=True))
        prompt = self.prompt.repeat(copies)
        logits = self._run(cache, prompt.first_inputs())
        return _Read(cache, prompt.attention_mask.new_empty(len(logits), 0, dtype=torch.long), logits)

    def _step(self, prompt: Prompt, read: _Read, history: Tensor) -> _Read:
        """Feeds the last token of a history whose other tokens have been read."""
        new = self.prompt.next_inputs(history[:, -1:], self._embed)
        mask = prompt.attention_mask
        told = {
            "attention_mask": None if bool(mask.all()) else torch.cat([mask, mask.new_ones(history.shape)], dim=-1),
            "position_ids": prompt.next_position[:, None] + history.shape[1] - 1,
        }
        logits = self._run(read.cache, {**new, **told})
        return _Read(read.cache, history.clone(), logits)

    def _run(self, cache: Cache, inputs: dict[str, Any]) -> Tensor:
        with reading(self._decoder, self.prompt):
            logits = self._head.logits(None, **inputs, use_cache=True, **{CACHE: cache})
        with self._counting:
            self.passes += 1
        return logits


def _continues(read: Tensor, history: Tensor) -> bool:
    """Whether each row continues what was read in its place, or is the same.

    Raises:
        UnsupportedModelError: if each continues what was read in another place.
    """
    length = read.shape[1]
    if len(read) != len(history) or history.shape[1] < length:
        return False
    same = (history[:, None, :length] == read[None]).all(dim=-1)
    if bool(same.diagonal().all()):
        return True
    if bool(same.any(dim=-1).all()) and history.shape[1] == length + 1:
        raise UnsupportedModelError(
            "num_beams must be 1 with a language model that keeps states (linear attention, convolutions), got rows "
            "that change places; sample or search greedily"
        )
    return False
