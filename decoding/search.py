"""Decoding by a search of a method's own: several continuations of one prompt, and where each of them looks.

A method that is no rule over two logits but a loop of its own (OPERA) returns a :class:`Search`. It runs inside of
stock ``generate``, which prepares logits processors and stopping criteria. Prompts of a batch are searched one by one,
each without its padding, so that an answer is that of its prompt alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers.generation.utils import GenerateBeamDecoderOnlyOutput

from damro.decoding.altering import layers_of
from damro.decoding.branches.kv import keeps_columns, roomy_cache
from damro.decoding.branches.rope import ropes_of_longest
from damro.decoding.compat import CACHE
from damro.decoding.errors import ParameterError, UnsupportedModelError
from damro.decoding.families.base import is_encoder_decoder
from damro.decoding.families.generic.prompt import TokenPrompt
from damro.decoding.hypotheses import Hypothesis
from damro.decoding.prompts import Prompt, VisualPrompt
from damro.decoding.settings import STOCK_ONLY, as_list, asks, setting
from damro.decoding.watching import attention_weights, watching


class Frame(NamedTuple):
    """What ``generate`` says of a search.

    Attributes:
        process: from `(beams, T)`, the tokens behind the prompt, and `(beams, V)`, log-probabilities, to the
            log-probabilities that processors make of them.
        ended: whether a stopping criterion ends the search at these tokens, `(beams, T)`.
        ends: the tokens that end an answer.
        room: how many tokens an answer may have.
        wanted: how many answers are to be returned.
        length_penalty: power of an answer's length by which its score is divided.
        early_stopping: as in ``generate``.
    """

    process: Callable[[Tensor, Tensor], Tensor]
    ended: Callable[[Tensor], bool]
    ends: tuple[int, ...]
    room: int
    wanted: int
    length_penalty: float
    early_stopping: bool | str


class Searching(Protocol):
    """How a method searches."""

    @property
    def num_beams(self) -> int:
        """Continuations that are followed side by side."""

    def search(self, beams: Beams, frame: Frame) -> list[Hypothesis]:
        """The best answers to one prompt, best first, as many as the frame wants."""


@dataclass(frozen=True)
class Search:
    """What is decoded by a search of a method's own.

    Attributes:
        full: the prompts.
        way: how.
    """

    full: Prompt
    way: Searching


class _Look:
    """Keeps where the last token of each pass looks: `(R, columns)`, the largest weight over the heads."""

    weights: Tensor | None = None

    def see(self, query: Tensor, key: Tensor, mask: Tensor | None, scale: float, causal: bool) -> None:
        """See :class:`damro.decoding.watching.Watcher`."""
        mask = None if mask is None else mask[..., -1:, : key.shape[2]]
        self.weights = attention_weights(query[:, :, -1:], key, mask, scale)[:, :, 0].amax(dim=1)


class Beams:
    """Continuations of one prompt, row by row, and where their last tokens look in the last layer.

    The prompt is read once for all rows.

    Args:
        decoder: the causal language model with its head.
        prompt: of one row, without padding.
        copies: rows.
        look: what sees the last layer.

    Attributes:
        image: `(L,)`, True for columns of the prompt that come from an image.
        logits: `(R, V)`, float32, of the token behind each row.
    """

    def __init__(self, decoder: Any, prompt: Prompt, copies: int, look: _Look) -> None:
        self._decoder, self._prompt, self._look = decoder, prompt, look
        self._embed = decoder.get_input_embeddings()
        self._cache = roomy_cache()
        self._fed = 0
        self.image = prompt.image_mask[0]
        self.logits = self._run(prompt.first_inputs()).repeat_interleave(copies, dim=0)
        self._cache.batch_repeat_interleave(copies)

    def feed(self, tokens: Tensor) -> Tensor:
        """Continues every row by a token, `(R,)`; sets :attr:`logits`.

        Returns:
            `(R, columns)`, float32: how much the token looks at each column up to its own, the largest weight over the
            heads of the last layer.

        Raises:
            UnsupportedModelError: if the last layer's attention was not to be seen.
        """
        self.logits = self._continue(tokens[:, None])
        weights, columns = self._look.weights, len(self.image) + self._fed
        if weights is None or weights.shape != (len(tokens), columns):
            raise UnsupportedModelError(
                "language model must attend in its last layer to all columns by a function that can be exchanged for "
                f"its attention to be seen, got {type(self._decoder).__name__} without; use another method"
            )
        return weights.to(self.logits.device)

    def peek(self, tokens: Tensor) -> Tensor:
        """What :meth:`feed` returns of tokens that are not fed."""
        logits, weights = self.logits, self.feed(tokens)
        self._cache.crop(-1)
        self.logits, self._fed = logits, self._fed - 1
        return weights

    def keep(self, rows: Tensor) -> None:
        """Puts these rows `(R,)` in the place of all; a row may be kept several times, or not at all."""
        self._cache.batch_select_indices(rows)
        self.logits = self.logits[rows]

    def rewind(self, tokens: Tensor) -> None:
        """Puts other tokens, `(R, T)`, T > 0, behind the prompt; sets :attr:`logits`."""
        if self._fed:
            self._cache.crop(-self._fed)
        self._fed = 0
        self.logits = self._continue(tokens)

    def _continue(self, tokens: Tensor) -> Tensor:
        start = self.image.new_zeros((), dtype=torch.long) + self._prompt.next_position + self._fed
        positions = start + torch.arange(tokens.shape[1], device=start.device)
        self._fed += tokens.shape[1]
        tokens = tokens.to(start.device)
        inputs = self._prompt.next_inputs(tokens, self._embed)
        return self._run({**inputs, "attention_mask": None, "position_ids": positions.expand(len(tokens), -1)})

    def _run(self, inputs: Mapping[str, Any]) -> Tensor:
        self._look.weights = None
        output = self._decoder(**inputs, use_cache=True, logits_to_keep=1, **{CACHE: self._cache})
        logits: Tensor = output.logits[:, -1].float()
        return logits


@contextmanager
def begin(decoder: Any, prompt: Prompt, copies: int) -> Iterator[Beams]:
    """Reads a prompt of one row; while open, its continuations can be followed.

    Args:
        decoder: the causal language model with its head.
        prompt: without padding.
        copies: continuations.
    """
    look = _Look()
    with watching(decoder, [(layers_of(decoder)[-1], look)], "language model"):
        yield Beams(decoder, prompt, copies, look)


class SearchLoop:
    """Searches prompt by prompt, for ``generate(custom_generate=...)``.

    Args:
        search: the prompts, and how.
    """

    def __init__(self, search: Search) -> None:
        self._search = search

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Any:
        """Runs the search on what ``generate`` has prepared; returns what ``generate`` shall return."""
        way, found = self._search.way, []
        prompts = input_ids[:: way.num_beams]
        for number, ids in enumerate(prompts):
            frame = _frame(ids, logits_processor, stopping_criteria, generation_config)
            with begin(model, row_of(self._search.full, number), way.num_beams) as beams:
                found += way.search(beams, frame)
        new = [torch.tensor(one.tokens, dtype=input_ids.dtype, device=input_ids.device) for one in found]
        pad = generation_config._pad_token_tensor
        filled = torch.nn.utils.rnn.pad_sequence(new, batch_first=True, padding_value=0 if pad is None else int(pad))
        copies = len(new) // len(prompts)
        sequences = torch.cat([prompts.repeat_interleave(copies, dim=0), filled], dim=-1)
        if not generation_config.return_dict_in_generate:
            return sequences
        scores = torch.tensor([one.score for one in found], device=input_ids.device)
        output: Any = GenerateBeamDecoderOnlyOutput
        return output(sequences=sequences, sequences_scores=scores)


def _frame(prompt: Tensor, processors: Any, criteria: Any, config: Any) -> Frame:
    """What ``generate`` says, for one prompt `(P,)`."""

    def whole(tokens: Tensor) -> Tensor:
        return torch.cat([prompt.expand(len(tokens), -1), tokens.to(prompt.device)], dim=-1)

    def process(tokens: Tensor, scores: Tensor) -> Tensor:
        processed: Tensor = processors(whole(tokens), scores)
        return processed

    return Frame(
        process,
        lambda tokens: bool(criteria(whole(tokens), None).any()),
        tuple(as_list(config._eos_token_tensor)),
        config.max_length - len(prompt),
        config.num_return_sequences,
        config.length_penalty,
        config.early_stopping,
    )


def row_of(prompt: Prompt, number: int) -> Prompt:
    """One row of a prompt, without its padding."""
    columns = prompt.attention_mask[number].nonzero().flatten()

    def taken(table: Tensor) -> Tensor:
        return table[number : number + 1, columns.to(table.device)]

    masks: dict[str, Any] = {"attention_mask": taken(prompt.attention_mask), "image_mask": taken(prompt.image_mask)}
    if isinstance(prompt, TokenPrompt):
        counts = prompt.image_mask.sum(dim=-1)
        first = int(counts[:number].sum())
        places = None if prompt.coordinates is None else prompt.coordinates[:, number : number + 1]
        return replace(
            prompt,
            **masks,
            tokens=taken(prompt.tokens),
            features=prompt.features.rows(torch.arange(first, first + int(counts[number]))),
            types={name: taken(table) for name, table in prompt.types.items()},
            coordinates=None if places is None else places[..., columns.to(places.device)],
        )
    assert isinstance(prompt, VisualPrompt)
    return replace(prompt, **masks, inputs_embeds=taken(prompt.inputs_embeds))


def check_searchable(decoder: Any) -> None:
    """Refuses language models that cannot be searched with a look at their attention.

    Raises:
        UnsupportedModelError: an encoder-decoder, one that keeps states, one whose attention cannot be given by name,
            or whose positions depend on the longest prompt.
    """
    body = decoder.get_decoder()
    if is_encoder_decoder(decoder):
        kind = "an encoder-decoder"
    elif not keeps_columns(decoder):
        kind = "one that keeps states"
    elif ropes_of_longest(body):
        kind = "one whose positions depend on how much it has read"
    elif not getattr(body, "_supports_attention_backend", False):
        kind = "one whose attention cannot be given by name"
    else:
        layers_of(decoder)
        return
    raise UnsupportedModelError(
        "language model must read from left to right by attention that can be looked at, for a search by it, got "
        f"{kind}, {type(body).__name__}; use another method"
    )


_RETURNED = ("output_scores", "output_logits")


def check_search(decoder: Any, search: Search, strategy: str, call: Mapping[str, Any]) -> None:
    """Refuses settings that a search of a method's own does not follow.

    Args:
        decoder: the language model with its head.
        search: what is to be decoded.
        strategy: that was asked for.
        call: the keywords of the call.

    Raises:
        ParameterError: naming the setting.
    """
    if strategy == "fused":
        raise ParameterError(
            "strategy must be 'auto' or 'lazy' with a method that searches by itself, got 'fused'; leave it out"
        )
    told = getattr(call.get("generation_config"), "do_sample", None)
    if call.get("do_sample", told):
        raise ParameterError(
            "do_sample must be left out with a method that searches by itself, got True; leave out the temperature, or "
            "use another method"
        )
    beams = setting(decoder, call, "num_beams") or 1
    if beams not in (1, search.way.num_beams):
        raise ParameterError(
            f"num_beams must be told with the method where it searches by itself, got {beams} beside its "
            f"{search.way.num_beams}; leave it out"
        )
    asked = [name for name in (*STOCK_ONLY, *_RETURNED) if asks(decoder, call, name)]
    asked += ["use_cache"] if setting(decoder, call, "use_cache") is False else []
    if asked:
        raise ParameterError(
            f"{asked[0]} must be left out with a method that searches by itself, got "
            f"{setting(decoder, call, asked[0])!r}; decode without it"
        )


def search_arguments(search: Search) -> dict[str, Any]:
    """What has ``generate`` run the search."""
    return {"custom_generate": SearchLoop(search), "num_beams": search.way.num_beams, "do_sample": False}
