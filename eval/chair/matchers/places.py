"""From tokens back to the characters of the caption."""

from collections.abc import Sequence

from damro.eval.chair.matchers import Mention, Reading
from damro.eval.chair.vocabulary import Found, Vocabulary

_QUOTES = ("``", "''")  # NLTK writes these for any double quote, so they need not stand in the caption


def read_words(
    caption: str, tokens: Sequence[str], words: Sequence[tuple[int, str]], vocabulary: Vocabulary
) -> Reading:
    """Return what a caption names, and how long it is.

    Args:
        caption: As it was given.
        tokens: Its pieces, see `place_mentions`.
        words: The vocabulary words among them, ``(token index, word)`` in order.
        vocabulary: What names the objects.
    """
    merged = vocabulary.merge(words)
    pairs = sum(found.last - found.first for found in merged)
    mentions = place_mentions(caption, tokens, vocabulary.name_objects(merged))
    return Reading(mentions, len(tokens), len(tokens) - pairs)


def place_mentions(caption: str, tokens: Sequence[str], found: Sequence[Found]) -> list[Mention]:
    """Give each object found among the tokens its place in the caption.

    Args:
        caption: The caption as it was given.
        tokens: Pieces of the lower-cased caption, in order; only white space and quotes may be missing.
        found: Objects with the indices of their tokens, in order.

    >>> place_mentions("A Hot Dog!", ["a", "hot", "dog", "!"], [Found("hot dog", "hot dog", 1, 2)])
    [Mention(name='hot dog', word='Hot Dog', start=2, end=9, token=1)]
    """
    if not found:
        return []
    lowered = caption.lower()
    starts: list[int] = []
    at = 0
    for token in tokens[: found[-1].last + 1]:
        if token not in _QUOTES:
            at = lowered.index(token, at)
        starts.append(at)
        if token not in _QUOTES:
            at += len(token)
    back = _origins(caption, lowered)
    mentions = []
    for name, _, first, last in found:
        start, end = back[starts[first]], back[starts[last] + len(tokens[last])]
        mentions.append(Mention(name, caption[start:end], start, end, first))
    return mentions


def _origins(caption: str, lowered: str) -> Sequence[int]:
    """Place in the caption of each place in its lower-cased text, and of its end."""
    if len(caption) == len(lowered):
        return range(len(caption) + 1)
    # A few letters, like the Turkish dotted capital I, become two when lower-cased.
    origins = [place for place, letter in enumerate(caption) for _ in letter.lower()]
    return [*origins, len(caption)]
