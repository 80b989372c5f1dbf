"""Tokens as words: which characters each token adds, and which tokens spell each word."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from torch import Tensor


class SpelledTokens(NamedTuple):
    """A decoded text and where each token's characters lie in it."""

    text: str
    spans: tuple[tuple[int, int], ...]


def token_spans(tokenizer: Any, tokens: Tensor) -> SpelledTokens:
    """Decodes tokens and tells which characters each of them adds.

    Special tokens add none. A character spelled by several tokens belongs to the last of them.

    Args:
        tokenizer: the processor's tokenizer.
        tokens: `(T,)`.

    Returns:
        The text and T pairs of first character and the one behind the last.
    """
    ids = tokens.tolist()
    texts = [_decode(tokenizer, ids[:count]) for count in range(len(ids) + 1)]
    text = texts[-1]
    ends = [0]
    for partial in texts[1:]:
        ends.append(max(ends[-1], _common_length(partial, text)))
    return SpelledTokens(text, tuple(zip(ends[:-1], ends[1:], strict=True)))


def _decode(tokenizer: Any, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def _common_length(first: str, second: str) -> int:
    """Length of the common beginning."""
    for position, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return position
    return min(len(first), len(second))


class Word(NamedTuple):
    """A stretch of characters between spaces, and the tokens that spell it.

    Attributes:
        text: its characters.
        start: the first one's place.
        end: the place behind the last one.
        tokens: numbers of its tokens, counted from the first generated one.
    """

    text: str
    start: int
    end: int
    tokens: tuple[int, ...]


def group_words(spelled: SpelledTokens) -> tuple[Word, ...]:
    """Splits a text at white space; punctuation stays with the word before it.

    A token that reaches into two words belongs to both.

    Example:
        >>> words = group_words(SpelledTokens("A cat.", ((0, 1), (1, 4), (4, 5), (5, 6))))
        >>> [(word.text, word.tokens) for word in words]
        [('A', (0,)), ('cat.', (1, 2, 3))]
    """
    words = []
    for found in re.finditer(r"\S+", spelled.text):
        start, end = found.span()
        tokens = tuple(t for t, (first, last) in enumerate(spelled.spans) if first < end and start < last)
        words.append(Word(found.group(), start, end, tokens))
    return tuple(words)
