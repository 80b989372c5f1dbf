"""Encoder-decoder language models (FLAN-T5): prompts go through the encoder, answers follow a start token.

A :class:`~damro.decoding.prompts.VisualPrompt` is what the encoder reads. The decoder looks at the encoder's output by
cross-attention, so its own KV holds nothing but the start token and the answer: it has the same length in all rows, and
padding is found in the encoder's columns only. :class:`PromptReader` makes such a model look like a causal one whose
prompt happens to be encoded, so that :class:`damro.decoding.branches.negative.NegativeBranch` follows histories on it
as on any other.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, EncoderDecoderCache, PreTrainedModel

from damro.decoding.branches.fused import prefill
from damro.decoding.branches.kv import keeps_columns
from damro.decoding.branches.negative import Branch, NegativeBranch
from damro.decoding.branches.recurrent import RecurrentBranch
from damro.decoding.compat import CACHE
from damro.decoding.errors import UnsupportedModelError
from damro.decoding.families import family_of
from damro.decoding.families.base import is_encoder_decoder
from damro.decoding.prompts import Prompt, VisualPrompt, stack_rows


def start_tokens(decoder: Any, rows: int, start: int | list[int] | None = None) -> Tensor:
    """What an encoder-decoder's answers begin with, as ``generate`` chooses it.

    Args:
        decoder: the language model.
        rows: number of prompts.
        start: token, or one a prompt; None takes the one of the generation config.

    Returns:
        `(rows, 1)`.

    Raises:
        UnsupportedModelError: if the generation config names no start token.
    """
    config = decoder.generation_config
    chosen = next((it for it in (start, config.decoder_start_token_id, config.bos_token_id) if it is not None), None)
    if chosen is None:
        raise UnsupportedModelError(
            f"model must say how answers begin, got decoder_start_token_id None in the generation config of its "
            f"{type(decoder).__name__}; set it there (FLAN-T5: 0)"
        )
    return torch.tensor(chosen).reshape(-1, 1).expand(rows, -1)


def returned_prompt(model: PreTrainedModel, inputs: Mapping[str, Any], start: int | list[int] | None = None) -> Tensor:
    """The tokens that stand in front of the new ones in what ``generate`` returns and shows to logits processors.

    ::

        new = ids[:, returned_prompt(model, inputs).shape[1] :]

    Args:
        model: the LVLM.
        inputs: what its processor returned.
        start: of an encoder-decoder, another start token than that of its generation config.

    Returns:
        `(B, P)`: `input_ids`; of an encoder-decoder, whose prompts are not returned, the start token.
    """
    ids: Tensor = inputs["input_ids"]
    decoder: Any = family_of(model).decoder(model)
    return start_tokens(decoder, len(ids), start).to(ids.device) if is_encoder_decoder(decoder) else ids


def negative_branch(model: PreTrainedModel, prompt: Prompt, start: int | list[int] | None = None) -> Branch:
    """The branch that follows histories behind a prompt, whatever the language model is.

    Args:
        model: the LVLM.
        prompt: the negative prompt.
        start: as for :func:`returned_prompt`.
    """
    decoder: Any = family_of(model).decoder(model)
    if not is_encoder_decoder(decoder):
        kind = NegativeBranch if keeps_columns(decoder) else RecurrentBranch
        return kind(decoder, model.get_input_embeddings(), prompt)
    reader = PromptReader(decoder, start_tokens(decoder, len(prompt.attention_mask), start))
    return NegativeBranch(reader, reader.embed, prompt)


class _Encoded(threading.local):
    """What the encoder has made of a thread's prompts, its mask, and the decoder's keys and values of it."""

    def __init__(self) -> None:
        self.states = torch.empty(0)
        self.mask: Tensor | None = None
        self.cross = DynamicCache()


class PromptReader(nn.Module):
    """An encoder-decoder, called like a causal language model. Serves one cache at a time in each thread.

    A run with an empty cache reads a prompt: the encoder runs over the columns, the decoder over the tokens that
    answers start with. Later runs continue answers; row r belongs to prompt `r // (rows / B)`.

    Args:
        model: the encoder-decoder with its head.
        start: `(B, S)`, what the answer to each prompt starts with.
    """

    def __init__(self, model: Any, start: Tensor) -> None:
        super().__init__()
        self._model = model
        self._start = start
        self.embed: nn.Module = model.get_decoder().get_input_embeddings()
        self._encoded = _Encoded()

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor | None = None, **causal: Any) -> Any:
        """Runs the model.

        Args:
            inputs_embeds: `(B, L, D)` of prompts with an empty cache, `(R, T, D)` of an answer's next tokens else.
            attention_mask: of prompts, `(B, L)`; None if they have no padding. Of answers it is not needed.
            **causal: what a causal model wants to know beside. Its cache (:data:`damro.decoding.compat.CACHE`) holds KV
                of the decoder's self-attention and is filled in place. Positions are relative and no business of the
                caller.

        Returns:
            The model's output; `logits (R, T, V)`, behind a prompt `(B, S, V)`.
        """
        cache: Cache = causal[CACHE]
        if cache.get_seq_length() == 0:
            self._encode(inputs_embeds, attention_mask)
            inputs_embeds = self.embed(self._start.to(inputs_embeds.device))
        self.repeat(len(inputs_embeds))
        return self._model(
            encoder_outputs=(self._encoded.states,),
            attention_mask=self._encoded.mask,
            decoder_inputs_embeds=inputs_embeds,
            use_cache=True,
            # Made anew at every run: it looks which layers have seen the encoder's output when it is made.
            **{CACHE: EncoderDecoderCache(cache, self._encoded.cross)},
        )

    def _encode(self, embeds: Tensor, mask: Tensor | None) -> None:
        """Reads prompts."""
        mask = None if mask is None or bool(mask.all()) else mask
        output: Any = self._model.get_encoder()(inputs_embeds=embeds, attention_mask=mask, return_dict=True)
        encoded = self._encoded
        encoded.states, encoded.mask, encoded.cross = output.last_hidden_state, mask, DynamicCache()

    def repeat(self, rows: int) -> None:
        """Holds what was encoded for so many rows, the same number for each prompt."""
        held = len(self._encoded.states)
        if rows == held:
            return
        prompts = len(self._start)
        prompt_of = torch.arange(rows) // (rows // prompts)
        self.keep(prompt_of * (held // prompts))  # a prompt's rows are all the same: its first one serves

    def keep(self, rows: Tensor) -> None:
        """Holds what was encoded for these rows, of the present ones, in this order."""
        held = self._encoded
        held.states = held.states[rows.to(held.states.device)]
        held.mask = None if held.mask is None else held.mask[rows.to(held.mask.device)]
        for layer in held.cross.layers:
            kept: Any = layer
            kept.batch_select_indices(rows.to(kept.keys.device))


class EncodedBranches:
    """What :class:`damro.decoding.branches.fused.Branches` is, for encoder-decoders: prompts and the same new tokens.

    All branches are rows of one batch, in the encoder too, where shorter prompts are padded. A step is one forward.

    Args:
        model: the encoder-decoder with its head.
        prompts: the branches' prompts, B rows each.
        start: `(R, S)`, what ``generate`` starts answers with; row r continues prompt `r // (R / B)`.

    Attributes:
        logits: `(branches, R, V)`, logits of the next token.
    """

    def __init__(self, model: nn.Module, prompts: Sequence[VisualPrompt], start: Tensor) -> None:
        self._branches = len(prompts)
        copies = len(start) // len(prompts[0].attention_mask)
        self._reader = PromptReader(model, start[::copies].repeat(self._branches, 1))
        read = prefill(self._reader, stack_rows(prompts))
        self._cache = read.cache
        if copies > 1:
            self._cache.batch_repeat_interleave(copies)
            self._reader.repeat(len(start) * self._branches)
        self.logits = self._by_branch(read.logits).repeat_interleave(copies, dim=1)

    @torch.no_grad()
    def step(self, tokens: Tensor) -> None:
        """Continues every row of every branch by a token; sets :attr:`logits`.

        Args:
            tokens: `(R,)`.
        """
        fed = self._reader.embed(tokens.to(self.logits.device).repeat(self._branches).unsqueeze(-1))
        output: Any = self._reader(inputs_embeds=fed, **{CACHE: self._cache})
        self.logits = self._by_branch(output.logits[:, -1])

    def _by_branch(self, logits: Tensor) -> Tensor:
        return logits.reshape(self._branches, -1, logits.shape[-1])

    def keep(self, rows: Tensor) -> None:
        """Drops all rows but these from every branch.

        Args:
            rows: row numbers, `(kept,)`.
        """
        present = self.logits.shape[1]
        self.logits = self.logits[:, rows.to(self.logits.device)]
        kept = torch.cat([rows + branch * present for branch in range(self._branches)])
        self._reader.keep(kept)
        self._cache.batch_select_indices(kept)
