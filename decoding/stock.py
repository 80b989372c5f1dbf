"""What stock ``generate`` would do at each step of an answer by itself: its processors, its limits, its end tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig, LogitsProcessor
from transformers.generation import logits_process, stopping_criteria

from damro.decoding.settings import as_list

_BY_ROW = (
    logits_process.ExponentialDecayLengthPenalty,
    logits_process.ForcedBOSTokenLogitsProcessor,
    logits_process.ForcedEOSTokenLogitsProcessor,
    logits_process.InfNanRemoveLogitsProcessor,
    logits_process.LogitNormalization,
    logits_process.MinLengthLogitsProcessor,
    logits_process.MinNewTokensLengthLogitsProcessor,
    logits_process.NoBadWordsLogitsProcessor,
    logits_process.NoRepeatNGramLogitsProcessor,
    logits_process.RepetitionPenaltyLogitsProcessor,
    logits_process.SequenceBiasLogitsProcessor,
    logits_process.SuppressTokensAtBeginLogitsProcessor,
    logits_process.SuppressTokensLogitsProcessor,
)
"""Processors that depend on nothing but the tokens and the scores of a row."""


class OwnSteps(NamedTuple):
    """What holds for an answer behind a prompt of some length.

    Attributes:
        before: transformers' processors in front of the caller's own, where contrasts stand.
        after: those behind them.
        longest: the tokens that an answer has at most.
    """

    before: Sequence[LogitsProcessor]
    after: Sequence[LogitsProcessor]
    longest: int


class _Marker(LogitsProcessor):  # type: ignore[misc, no-untyped-call, unused-ignore]
    """Shows where a caller's own processors stand."""


class _Prepared(NamedTuple):
    """What ``generate`` hands to a loop."""

    processors: list[LogitsProcessor]
    criteria: list[Any]


def _prepare(decoder: Any, config: GenerationConfig, length: int) -> _Prepared:
    """Has ``generate`` prepare an answer behind so many tokens; which they are nothing depends on."""
    seen: list[_Prepared] = []

    def look(
        model: Any, input_ids: Any, logits_processor: Any, stopping_criteria: Any, generation_config: Any, **others: Any
    ) -> Any:
        seen.append(_Prepared(list(logits_processor), list(stopping_criteria)))
        return input_ids

    ids = torch.zeros(1, length, dtype=torch.long, device=decoder.device)
    mask = torch.ones_like(ids)
    asked = {"generation_config": config, "logits_processor": [_Marker()], "custom_generate": look}
    decoder.generate(input_ids=ids, attention_mask=mask, **asked)
    return seen[0]


def why_not_by_row(decoder: Any, config: GenerationConfig) -> str | None:
    """Why the settings of a search cannot be followed for each row by itself; None if they can.

    Args:
        decoder: the language model with its head.
        config: how answers are searched.

    Returns:
        A clause.
    """
    prepared = _prepare(decoder, config, 1)
    criteria = (stopping_criteria.MaxLengthCriteria, stopping_criteria.EosTokenCriteria)
    others = [one for one in prepared.processors if type(one) not in (*_BY_ROW, _Marker)]
    others += [one for one in prepared.criteria if type(one) not in criteria]
    return f"{type(others[0]).__name__} looks at more than a row" if others else None


class StockSteps:
    """What ``generate`` would do with answers, by the length of the prompt that each stands behind.

    Args:
        decoder: the language model with its head.
        config: how answers are searched.

    Attributes:
        ends: the tokens that end an answer.
    """

    def __init__(self, decoder: Any, config: GenerationConfig) -> None:
        self._decoder, self._config = decoder, config
        first = _prepare(decoder, config, 1)
        self._plain = len(first.processors) == 1
        self._longest = _longest(first, 1) if config.max_new_tokens is not None else None
        ends = [one.eos_token_id for one in first.criteria if hasattr(one, "eos_token_id")]
        self.ends = frozenset(token for one in ends for token in as_list(one))
        self.of = cache(self._of)

    def _of(self, length: int) -> OwnSteps:
        """What holds behind a prompt of so many tokens."""
        if self._plain and self._longest is not None:  # the same behind every prompt
            return OwnSteps((), (), self._longest)
        prepared = _prepare(self._decoder, self._config, length)
        place = next(number for number, one in enumerate(prepared.processors) if isinstance(one, _Marker))
        return OwnSteps(prepared.processors[:place], prepared.processors[place + 1 :], _longest(prepared, length))


def _longest(prepared: _Prepared, length: int) -> int:
    """The tokens that an answer has at most; no limit if ``generate`` knows none."""
    totals = [one.max_length for one in prepared.criteria if hasattr(one, "max_length")]
    return min(totals) - length if totals else torch.iinfo(torch.long).max
