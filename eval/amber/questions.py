"""AMBER's official files: questions, annotations, and the lists of words that descriptions are read with.

They lie in the folder ``data`` of github.com/junyangwang0410/AMBER (Apache-2.0). None of them comes with this package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeGuard

from damro.eval.errors import DataFormatError, EvalError
from damro.eval.pope.rules import parse_label
from damro.eval.records import Record, read_json, read_records, read_text

Kind = Literal["generative", "existence", "state", "number", "action", "relation"]
KINDS: dict[str, Kind] = {
    "generative": "generative",
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "state",
    "discriminative-attribute-number": "number",
    "discriminative-attribute-action": "action",
    "discriminative-relation": "relation",
    "relation": "relation",
}
"""The types of ``annotations.json``, and what their questions are about."""
DIMENSIONS: dict[str, tuple[Kind, ...]] = {
    "generative": ("generative",),
    "existence": ("existence",),
    "attribute": ("state", "number", "action"),
    "relation": ("relation",),
}
"""The generative task and the dimensions of the discriminative one, each with its kinds of questions."""
ANNOTATIONS, RELATION, SAFE_WORDS, QUERIES = "annotations.json", "relation.json", "safe_words.txt", "query_all.json"


class AmberQuestion(NamedTuple):
    """One question of AMBER.

    Attributes:
        question_id: The id as text.
        image: The image's file name.
        text: The question.
        kind: What it is about.
        label: The right answer of a yes/no question, None for a description.
        truth: Of a description, the objects that are in the image.
        hallu: Of a description, objects that are not, and that a person may imagine there.
    """

    question_id: str
    image: str
    text: str
    kind: Kind
    label: Literal["yes", "no"] | None = None
    truth: tuple[str, ...] = ()
    hallu: tuple[str, ...] = ()


@dataclass(frozen=True)
class WordLists:
    """What descriptions are read with.

    Attributes:
        synonyms: By object, the words that count as it (``relation.json``).
        safe: Words that are never hallucinated (``safe_words.txt``).
    """

    synonyms: Mapping[str, tuple[str, ...]]
    safe: frozenset[str]

    @property
    def objects(self) -> frozenset[str]:
        """The nouns that count at all: objects and their synonyms."""
        return frozenset(self.synonyms).union(*self.synonyms.values())


def load_questions(folder: Path, dimensions: Sequence[str] = ()) -> list[AmberQuestion]:
    """Read the questions with their annotations.

    Args:
        folder: AMBER's, or ``data`` in it.
        dimensions: Of `DIMENSIONS`; none reads all.

    Raises:
        EvalError: A dimension is unknown, or a file is not there.
        DataFormatError: A file is malformed, or a question has no annotation.
    """
    check_dimensions(dimensions)
    wanted = {kind for name in dimensions or DIMENSIONS for kind in DIMENSIONS[name]}
    words = load_words(folder)
    annotated = {_id(record): record for record in read_records(find_file(folder, ANNOTATIONS))}
    questions = []
    for record in read_records(find_file(folder, QUERIES)):
        identifier = _id(record)
        if identifier not in annotated:
            raise DataFormatError(f"{record.where}: a question must have its annotation, {ANNOTATIONS} has no such id")
        image, text = record.fields.get("image"), record.fields.get("query")
        if not isinstance(image, str) or not isinstance(text, str):
            raise DataFormatError(f"{record.where}: a question must have 'image' and 'query' as texts")
        question = _annotate(AmberQuestion(identifier, image, text, "generative"), annotated[identifier], words)
        if question.kind in wanted:
            questions.append(question)
    return questions


def check_dimensions(dimensions: Sequence[str]) -> None:
    """Refuse a dimension that is none of `DIMENSIONS`.

    Raises:
        EvalError: One is.
    """
    unknown = [name for name in dimensions if name not in DIMENSIONS]
    if unknown:
        raise EvalError(f"--split must be of AMBER's tasks ({', '.join(DIMENSIONS)}), got {unknown[0]!r}")


def load_words(folder: Path) -> WordLists:
    """Read the lists of words.

    Raises:
        EvalError: A file is not there.
        DataFormatError: A file is malformed.
    """
    path = find_file(folder, RELATION)
    content = read_json(path)
    if not isinstance(content, dict) or not all(_are_texts(value) for value in content.values()):
        raise DataFormatError(f"{path}: must be one object, from each word to a list of its synonyms")
    safe = read_text(find_file(folder, SAFE_WORDS)).replace("\r", "").split("\n")
    return WordLists({word: tuple(others) for word, others in content.items()}, frozenset(safe))


def find_file(folder: Path, name: str) -> Path:
    """Return one of the official files, wherever it lies in AMBER's folder.

    Raises:
        EvalError: It is not there.
    """
    for place in (folder, folder / "query", folder / "data", folder / "data/query"):
        if (place / name).is_file():
            return place / name
    raise EvalError(
        f"--annotations must be the folder of AMBER's official files, got {str(folder)!r} without {name}: give the "
        "folder 'data' of github.com/junyangwang0410/AMBER"
    )


def _annotate(question: AmberQuestion, annotation: Record, words: WordLists) -> AmberQuestion:
    where, fields = annotation
    kind = KINDS.get(str(fields.get("type")))
    if kind is None:
        raise DataFormatError(f"{where}: type must be one of {', '.join(KINDS)}, got {fields.get('type')!r:.60}")
    if kind != "generative":
        try:
            return question._replace(kind=kind, label=parse_label(fields.get("truth")))
        except EvalError as error:
            raise DataFormatError(f"{where}: {error}") from error
    truth, hallu = fields.get("truth"), fields.get("hallu")
    if not _are_texts(truth) or not _are_texts(hallu):
        raise DataFormatError(f"{where}: a description must have its objects as lists under 'truth' and 'hallu'")
    strange = [name for name in (*truth, *hallu) if name not in words.synonyms]
    if strange:
        raise DataFormatError(f"{where}: objects must be words of {RELATION}, got {strange[0]!r:.60}")
    return question._replace(kind=kind, truth=tuple(truth), hallu=tuple(hallu))


def _id(record: Record) -> str:
    value = record.fields.get("id")
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataFormatError(f"{record.where}: 'id' must be a whole number, got {value!r:.60}")
    return str(value)


def _are_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)
