"""The words that CHAIR counts as mentions of the 80 COCO objects.

Two data files stand behind this module (their sources are named in ``eval/data/ORIGIN.md``):

``chair_synonyms.json``
    the 80 names with the synonyms of Rohrbach et al. 2018 (arXiv 1809.02156), the double words that are read
    as one, and the qualifiers that must not count as a person ("baby elephant", "passenger train").
``chair_inflections.json``
    every form that WordNet reduces to one of those words, with the word for each part of speech.
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from damro.eval.records import read_json
from damro.eval.resources import data_path


class Readings(NamedTuple):
    """What a form is read as under each part of speech; None where it is no word of the vocabulary."""

    noun: str | None
    verb: str | None
    adjective: str | None
    adverb: str | None


class Found(NamedTuple):
    """An object found among the words of a caption: tokens ``first`` to ``last``, both included."""

    name: str
    word: str
    first: int
    last: int


@dataclass(frozen=True)
class Vocabulary:
    """The closed vocabulary of CHAIR.

    Attributes:
        names: The 80 COCO names, in the order of COCO's categories.
        name_of: Every countable word or double word, to the name it stands for.
        pairs: Two words next to each other, to the word they are read as. That word need not be countable:
            "home plate" and "train track" are in here only so that "train" is not counted.
        forms: Every inflected form that can matter, to its readings.
    """

    names: tuple[str, ...]
    name_of: Mapping[str, str]
    pairs: Mapping[tuple[str, str], str]
    forms: Mapping[str, Readings]

    def find(self, words: Iterable[tuple[int, str]]) -> list[Found]:
        """Objects among the words of one caption, in order, repetitions included.

        Args:
            words: ``(token index, word)`` of the vocabulary words of the caption, in order. Words outside the
                vocabulary are left out; their places still show in the indices.

        Returns:
            One entry per mention. As in the released CHAIR script, pairs are merged from the left, and in a
            caption with a toilet no seat is a chair.

        >>> [found.name for found in load_vocabulary().find([(1, "baby"), (2, "bear"), (7, "man")])]
        ['bear', 'person']
        """
        merged: list[Found] = []
        pending: tuple[int, str] | None = None
        for index, word in words:
            if pending is not None:
                pair = self.pairs.get((pending[1], word)) if pending[0] + 1 == index else None
                if pair is not None:
                    merged.append(Found(self.name_of.get(pair, ""), pair, pending[0], index))
                    pending = None
                    continue
                merged.append(self._single(*pending))
            pending = (index, word)
        if pending is not None:
            merged.append(self._single(*pending))
        seat_belongs_to_toilet = any(found.word == "toilet" for found in merged)
        return [found for found in merged if found.name and not (seat_belongs_to_toilet and found.word == "seat")]

    def _single(self, index: int, word: str) -> Found:
        return Found(self.name_of.get(word, ""), word, index, index)


def _pairs(doubles: Mapping[str, str], qualifiers: Mapping[str, list[str]]) -> dict[tuple[str, str], str]:
    pairs = {(qualifier, word): word for qualifier, words in qualifiers.items() for word in words}
    for double, read_as in doubles.items():
        first, second = double.split(" ")
        pairs[first, second] = read_as
    return pairs


@functools.cache
def load_vocabulary() -> Vocabulary:
    """The shipped vocabulary; read once, then kept.

    >>> vocabulary = load_vocabulary()
    >>> len(vocabulary.names), vocabulary.name_of["puppy"], vocabulary.forms["skiing"].verb
    (80, 'dog', 'ski')
    """
    data = read_json(data_path("chair_synonyms.json"))
    name_of = {word: name for name, synonyms in data["objects"].items() for word in (name, *synonyms)}
    inflections = read_json(data_path("chair_inflections.json"))
    forms = {form: Readings(*readings) for form, readings in inflections.items()}
    return Vocabulary(
        names=tuple(data["objects"]),
        name_of=name_of,
        pairs=_pairs(data["double_words"], data["qualifiers"]),
        forms=forms,
    )
