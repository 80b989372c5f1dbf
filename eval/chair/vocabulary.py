"""The words that CHAIR counts as mentions of an object: the 80 of COCO, or those of a file.

Two data files stand behind this module (their sources are named in ``eval/data/ORIGIN.md``):

``chair_synonyms.json``
    the 80 names with the synonyms of Rohrbach et al. 2018 (arXiv 1809.02156), the double words that are read
    as one, and the qualifiers that must not count as a person ("baby elephant", "passenger train").
``chair_inflections.json``
    every form that WordNet reduces to one of those words, with the word for each part of speech.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from damro.eval.errors import DataFormatError
from damro.eval.records import read_json, read_text
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
    """A closed vocabulary.

    Attributes:
        names: The names of the objects; of the shipped one in the order of COCO's categories.
        name_of: Every countable word or double word, to the name it stands for.
        pairs: Two words next to each other, to the word they are read as. That word need not be countable:
            "home plate" and "train track" are in here only so that "train" is not counted.
        forms: Every inflected form that can matter, to its readings.
        shadowed: Words that do not count in a caption that holds another one.
        source: The file it was read from; None for the shipped one.
    """

    names: tuple[str, ...]
    name_of: Mapping[str, str]
    pairs: Mapping[tuple[str, str], str]
    forms: Mapping[str, Readings]
    shadowed: Mapping[str, str] = field(default_factory=dict)
    source: str | None = None

    def find(self, words: Iterable[tuple[int, str]]) -> list[Found]:
        """Objects among the words of one caption, in order, repetitions included.

        Args:
            words: ``(token index, word)`` of the vocabulary words of the caption, in order. Words outside the
                vocabulary are left out; their places still show in the indices.

        Returns:
            One entry per mention. As in the released CHAIR script, pairs are merged from the left, and a shadowed
            word is left out: in a caption with a toilet no seat is a chair.

        >>> [found.name for found in load_vocabulary().find([(1, "baby"), (2, "bear"), (7, "man")])]
        ['bear', 'person']
        """
        return self.name_objects(self.merge(words))

    def merge(self, words: Iterable[tuple[int, str]]) -> list[Found]:
        """Each vocabulary word of a caption, or pair that is read as one, also those that name no object.

        Args:
            words: As `find` takes them.
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
        return merged

    def name_objects(self, merged: Sequence[Found]) -> list[Found]:
        """Those of what `merge` returned that name an object; a shadowed word does not."""
        present = {found.word for found in merged}
        return [found for found in merged if found.name and self.shadowed.get(found.word) not in present]

    def _single(self, index: int, word: str) -> Found:
        return Found(self.name_of.get(word, ""), word, index, index)


def _pairs(doubles: Mapping[str, str], qualifiers: Mapping[str, list[str]]) -> dict[tuple[str, str], str]:
    pairs = {(qualifier, word): word for qualifier, words in qualifiers.items() for word in words}
    for double, read_as in doubles.items():
        first, second = double.split(" ")
        pairs[first, second] = read_as
    return pairs


def load_vocabulary(path: str | None = None) -> Vocabulary:
    """The shipped vocabulary, which is read once and kept, or one of a file.

    A file is ``.json`` with ``{name: [synonym, ...]}``, or text with a line ``name, synonym, ...`` an object. Words are
    one or two each. Regular English plurals are added; others have to stand there as synonyms.

    Args:
        path: Of the file; None takes the shipped one.

    Raises:
        DataFormatError: It cannot be read, holds no words or one of more than two parts, or a word has two names.

    >>> vocabulary = load_vocabulary()
    >>> len(vocabulary.names), vocabulary.name_of["puppy"], vocabulary.forms["skiing"].verb
    (80, 'dog', 'ski')
    """
    return _shipped() if path is None else _of_file(path)


@functools.cache
def _shipped() -> Vocabulary:
    data = read_json(data_path("chair_synonyms.json"))
    name_of = {word: name for name, synonyms in data["objects"].items() for word in (name, *synonyms)}
    inflections = read_json(data_path("chair_inflections.json"))
    forms = {form: Readings(*readings) for form, readings in inflections.items()}
    return Vocabulary(
        names=tuple(data["objects"]),
        name_of=name_of,
        pairs=_pairs(data["double_words"], data["qualifiers"]),
        forms=forms,
        shadowed={"seat": "toilet"},
    )


def _of_file(path: str) -> Vocabulary:
    entries = _read_entries(path)
    name_of: dict[str, str] = {}
    for name, words in entries.items():
        for word in (name, *words):
            if len(word.split()) not in (1, 2):
                raise DataFormatError(f"{path}: a word must be of one or two parts, got {word!r} for {name!r}")
            if name_of.setdefault(word, name) != name:
                raise DataFormatError(f"{path}: a word must stand for one name, got {word!r} for {name_of[word]!r} too")
    if not name_of:
        raise DataFormatError(f"{path}: must hold at least one name, is empty")
    doubles = {word: word for word in name_of if " " in word}
    singles = {part for word in name_of for part in word.split()}
    forms = {plural: _same(part) for part in singles for plural in _plurals(part)}
    forms |= {part: _same(part) for part in singles}
    return Vocabulary(tuple(entries), name_of, _pairs(doubles, {}), forms, source=Path(path).name)


def _read_entries(path: str) -> dict[str, list[str]]:
    """Names and their synonyms, in lower case."""
    if Path(path.lower().removesuffix(".gz")).suffix == ".json":
        data = read_json(path)
        whole = isinstance(data, dict) and all(
            isinstance(words, list) and all(isinstance(word, str) for word in words) for words in data.values()
        )
        if not whole:
            raise DataFormatError(f"{path}: must hold {{name: [synonym, ...]}}, got something else")
        return {_plain(name): [_plain(word) for word in words] for name, words in data.items()}
    lines = [[_plain(word) for word in line.split(",")] for line in read_text(path).splitlines() if line.strip()]
    return {name: [word for word in words if word] for name, *words in lines}


def _plain(word: str) -> str:
    return " ".join(word.lower().split())


def _same(word: str) -> Readings:
    return Readings(word, word, word, word)


def _plurals(word: str) -> list[str]:
    """Regular English plurals of a word; a form too many finds nothing.

    >>> _plurals("bus"), _plurals("puppy"), _plurals("mug")
    (['buses'], ['puppies'], ['mugs'])
    """
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return [f"{word}es"]
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return [f"{word[:-1]}ies"]
    return [f"{word}s"]
