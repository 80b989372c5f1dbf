"""The ``builtin`` matcher: the closed vocabulary with its inflections, and nothing to download.

It reads a caption as the ``nltk`` matcher does, but guesses parts of speech instead of tagging:

* A form that is a noun of the vocabulary is that noun: plurals are, in captions, next to never verbs.
* A form that only a verb leads to ("seated", "skiing") counts, as it does when tagged as a verb; not so an
  "-ing" form that follows an article, a possessive or an adjective, as in "their skiing trip", where a tagger
  mostly sees a noun.
"""

import re
from collections.abc import Sequence

from damro.eval.chair.matchers import Mention, Reading
from damro.eval.chair.matchers.places import read_words
from damro.eval.chair.vocabulary import Readings, Vocabulary, load_vocabulary

# Runs of letters and of what NLTK leaves inside a word (hyphens, slashes, periods), or one other character.
_TOKEN = re.compile(
    r"""
    [^\W_]+ (?: [-./_]+ [^\W_]+ | '(?!(?:s|d|m|ll|re|ve)\b) [^\W_]+ )*
    | '(?:s|d|m|ll|re|ve)\b
    | \S
    """,
    re.VERBOSE,
)
_DETERMINERS = frozenset(["a", "an", "the", "his", "her", "its", "our", "my", "your", "their", "'s"])
_COLOURS = frozenset(
    ["black", "blue", "brown", "gray", "green", "grey", "orange", "pink", "purple", "red", "white", "yellow"]
)
_ADJECTIVE_ENDINGS = ("al", "ful", "ic", "ive", "ous", "some")


class ClosedMatcher:
    """Mentions by a table of inflected forms.

    >>> [(mention.name, mention.word) for mention in ClosedMatcher().find("Knives by the wine glasses")]
    [('knife', 'Knives'), ('wine glass', 'wine glasses')]
    """

    name = "builtin"

    def __init__(self, vocabulary: Vocabulary | None = None) -> None:
        """Take a vocabulary, or the shipped one."""
        self._vocabulary = vocabulary or load_vocabulary()

    def find(self, caption: str) -> list[Mention]:
        """Every mention in the caption, in order, repetitions included."""
        return self.read(caption).mentions

    def tokens(self, caption: str) -> list[str]:
        """The pieces of the lower-cased caption, punctuation among them; nearly those of NLTK."""
        return _TOKEN.findall(caption.lower())

    def read(self, caption: str) -> Reading:
        """What the caption names, and how long it is."""
        tokens = self.tokens(caption)
        forms = self._vocabulary.forms
        words = []
        for index, token in enumerate(tokens):
            word = _read(forms[token], tokens, index) if token in forms else None
            if word is not None:
                words.append((index, word))
        return read_words(caption, tokens, words, self._vocabulary)


def _read(readings: Readings, tokens: Sequence[str], index: int) -> str | None:
    """The vocabulary word that a form most likely stands for, if any."""
    if readings.noun is not None or readings.verb is None:
        return readings.noun
    if tokens[index].endswith("ing") and index > 0:
        before = tokens[index - 1]
        if before in _DETERMINERS or before in _COLOURS or before.endswith(_ADJECTIVE_ENDINGS):
            return None
    return readings.verb
