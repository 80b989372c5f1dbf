"""What is done to captions before they are scored: an unfinished sentence is dropped, or lengths are made equal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from damro.eval.chair.matchers import Reading

# A full stop, question or exclamation mark with what closes behind it, before a space or the end.
_SENTENCE_END = re.compile(r"[.!?][\"'\u201d\u2019)\]]*(?=\s|$)")


def drop_cut_sentence(caption: str) -> str:
    """Return a caption without a last sentence that has no end, as a limit of tokens cuts it.

    A caption that has no finished sentence at all stays as it is: short captions are often written without a full stop.

    Example:
        >>> drop_cut_sentence("A dog runs. Next to it, a man is hol"), drop_cut_sentence("a dog on a beach")
        ('A dog runs.', 'a dog on a beach')
    """
    ends = [found.end() for found in _SENTENCE_END.finditer(caption)]
    return caption[: ends[-1]] if ends and caption[ends[-1] :].strip() else caption


def shortest(lengths: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return for each image the fewest tokens that any of several captions of it has.

    Args:
        lengths: For each set of captions, their tokens by image.

    Example:
        >>> shortest([{"42": 9, "73": 5}, {"42": 7, "73": 8}])
        {'42': 7, '73': 5}
    """
    fewest: dict[str, int] = {}
    for of_set in lengths:
        for image, length in of_set.items():
            fewest[image] = min(length, fewest.get(image, length))
    return fewest


def cut_reading(reading: Reading, tokens: int) -> Reading:
    """Return what a caption names within its first so many tokens; mentions are those of the whole caption."""
    mentions = [mention for mention in reading.mentions if mention.token < tokens]
    kept = min(tokens, reading.n_tokens)
    return Reading(mentions, kept, min(kept, reading.length))
