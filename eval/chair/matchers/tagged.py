"""The ``nltk`` matcher: what the released CHAIR scripts find, without tagging what cannot matter.

Those scripts tokenise a caption, tag every token, lemmatise every token under its tag, and look the lemmas up.
This module finds the same mentions by construction:

* The lemma of a token is read from ``chair_inflections.json``, which lists every form that can matter. A token
  that is not in it has no lemma in the vocabulary under any tag.
* Most forms lead to the same object under every tag. Only the others are tagged.
* A tag depends on the two words on either side and on the two tags before. Words in the tagger's own dictionary
  of unambiguous words have a fixed tag, so tagging may start at two such words in a row instead of at the start
  of the caption, and may end two words after the token in question.
"""

import re
from collections.abc import Sequence
from typing import Any

from damro.eval.chair.matchers import Mention, Reading
from damro.eval.chair.matchers.places import read_words
from damro.eval.chair.vocabulary import Readings, Vocabulary, load_vocabulary

_DATA = {
    "averaged_perceptron_tagger_eng": "taggers/averaged_perceptron_tagger_eng/",
    "punkt_tab": "tokenizers/punkt_tab/english/",
}

# A sentence of plain words, commas and at most one period, at its end: what NLTK's word tokenizer does to such a
# sentence is separate "," "'s" and ".". The contractions it splits besides are kept out by the second pattern.
_WORD = r"[a-z0-9]+(?:-[a-z0-9]+)*(?:'s)?"
_PLAIN_SENTENCE = re.compile(rf"{_WORD}(?:,?\s+{_WORD})*\.?", re.ASCII)
_CONTRACTION = re.compile(r"\b(?:cannot|gimme|gonna|gotta|lemme|wanna)\b")

_PART_OF_SPEECH = {"N": 0, "V": 1, "J": 2, "R": 3}  # first letter of a Penn tag -> column of Readings
_REMEMBERED_WINDOWS = 100_000
_LONGEST_WINDOW = 60


def missing_data() -> list[str]:
    """Names of the NLTK data packages that the matcher needs and that are not installed."""
    import nltk

    missing = []
    for package, place in _DATA.items():
        try:
            nltk.data.find(place)
        except LookupError:
            missing.append(package)
    return missing


class TaggedMatcher:
    """Mentions by NLTK's tokenizer and tagger and WordNet's lemmas.

    Construction loads the tagger; `find` may be called any number of times.

    Args:
        vocabulary: What to look for; None takes the shipped one.

    Raises:
        LookupError: On construction, when NLTK's data is missing (see `missing_data`).
    """

    name = "nltk"

    def __init__(self, vocabulary: Vocabulary | None = None) -> None:
        """Load the tagger."""
        from nltk import sent_tokenize, word_tokenize
        from nltk.tag import PerceptronTagger

        self._split: Any = sent_tokenize
        self._tokenize: Any = word_tokenize
        self._tagger: Any = PerceptronTagger()
        self._vocabulary = vocabulary or load_vocabulary()
        self._windows: dict[tuple[int, tuple[str, ...]], str] = {}

    def find(self, caption: str) -> list[Mention]:
        """Every mention in the caption, in order, repetitions included."""
        return self.read(caption).mentions

    def read(self, caption: str) -> Reading:
        """What the caption names, and how long it is."""
        tokens = self.tokens(caption)
        forms = self._vocabulary.forms
        entries = [(index, forms[token]) for index, token in enumerate(tokens) if token in forms]
        tags = _Tags(self._tagger, tokens, self._windows)
        words = []
        for position, (index, readings) in enumerate(entries):
            if self._settled(entries, position):
                word = next(filter(None, readings), None)
            else:
                word = readings[tags.column(index)]
            if word is not None:
                words.append((index, word))
        return read_words(caption, tokens, words, self._vocabulary)

    def tokens(self, caption: str) -> list[str]:
        """The lower-cased caption as ``nltk.word_tokenize`` splits it."""
        tokens: list[str] = []
        for sentence in self._split(caption.lower()):
            if _PLAIN_SENTENCE.fullmatch(sentence) and not _CONTRACTION.search(sentence):
                if sentence.endswith("."):
                    sentence = sentence[:-1] + " ."
                tokens += sentence.replace(",", " ,").replace("'s", " 's").split()
            else:
                tokens += self._tokenize(sentence, preserve_line=True)
        return tokens

    def _settled(self, entries: Sequence[tuple[int, Readings]], position: int) -> bool:
        """Whether the token stands for the same thing whatever its part of speech."""
        index, readings = entries[position]
        if len(set(readings)) == 1:
            return True
        for neighbour in (position - 1, position + 1):
            if 0 <= neighbour < len(entries) and abs(entries[neighbour][0] - index) == 1:
                first, second = sorted((position, neighbour))
                if self._can_pair(entries[first][1], entries[second][1]):
                    return False
        return len({self._vocabulary.name_of.get(word) if word else None for word in readings}) == 1

    def _can_pair(self, first: Readings, second: Readings) -> bool:
        return any((a, b) in self._vocabulary.pairs for a in first if a for b in second if b)


class _Tags:
    """Tags of single tokens of one caption, exactly as if the whole caption had been tagged."""

    def __init__(self, tagger: Any, tokens: Sequence[str], remembered: dict[tuple[int, tuple[str, ...]], str]) -> None:
        self._tagger = tagger
        self._tokens = tokens
        self._remembered = remembered
        self._whole: list[tuple[str, str]] | None = None

    def column(self, index: int) -> int:
        """Column of `Readings` for the token; like the released scripts, a noun unless tagged otherwise."""
        return _PART_OF_SPEECH.get(self._tag(index)[:1], 0)

    def _tag(self, index: int) -> str:
        if self._whole is None:
            start = self._fixed_start(index)
            if index - start <= _LONGEST_WINDOW:
                return self._tag_in_window(start, index)
            # A caption that repeats itself without end: tag it once rather than ever longer windows of it.
            self._whole = self._tagger.tag(list(self._tokens))
        return self._whole[index][1]

    def _fixed_start(self, index: int) -> int:
        """The last place before the token from which tagging gives it the tag it has in the whole caption."""
        fixed = self._tagger.tagdict
        for start in range(index - 2, 0, -1):
            if fixed.get(self._tokens[start]) and fixed.get(self._tokens[start + 1]):
                return start
        return 0

    def _tag_in_window(self, start: int, index: int) -> str:
        window = tuple(self._tokens[start : index + 3])
        tag = self._remembered.get((index - start, window))
        if tag is None:
            tag = str(self._tagger.tag(list(window))[index - start][1])
            if len(self._remembered) < _REMEMBERED_WINDOWS:
                self._remembered[index - start, window] = tag
        return tag
