"""MMVP's ``Questions.csv``, of the data set MMVP/MMVP."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from damro.eval.errors import DataFormatError
from damro.eval.formats.tables import read_table
from damro.eval.records import Record

FILE = "Questions.csv"
IMAGES = "MMVP Images"
"""The folder of the images beside the file."""
_NUMBER = ("Index", "lndex")  # the file itself has a small L
_OPTION = re.compile(r"\(([a-z])\)\s*")


class MmvpQuestion(NamedTuple):
    """One question of MMVP.

    Attributes:
        number: From 1, which is also the image's name.
        pair: From 1; two rows in a row are a pair.
        question: The question.
        options: As the file has them: "(a) Open (b) Closed".
        gold: The right letter, upper case.
    """

    number: int
    pair: int
    question: str
    options: str
    gold: str


def split_options(text: str) -> dict[str, str]:
    """Return the options of a text in the file's form, by their letters in upper case.

    Example:
        >>> split_options("Is it open? (a) Open (b) Closed")
        {'A': 'Open', 'B': 'Closed'}
    """
    _, *parts = _OPTION.split(text)
    return {letter.upper(): option.strip() for letter, option in zip(parts[::2], parts[1::2], strict=True)}


def lettered_options(options: Mapping[str, str]) -> str:
    """Return options in the file's form.

    Example:
        >>> lettered_options({"A": "Open", "B": "Closed"})
        '(a) Open (b) Closed'
    """
    return " ".join(f"({letter.lower()}) {option}" for letter, option in options.items())


def in_brackets(letter: str) -> str:
    """Return a right answer as the file has it.

    Example:
        >>> in_brackets("A"), in_brackets("(b)")
        ('(a)', '(b)')
    """
    return f"({letter.strip().strip('()').lower()})"


def read_gold(value: object, options: str, where: str) -> str:
    """Read a right answer, "(a)".

    Raises:
        DataFormatError: It is none of the options.
    """
    found = _OPTION.fullmatch(value.strip().lower()) if isinstance(value, str) else None
    if found is None or found[1].upper() not in split_options(options):
        raise DataFormatError(
            f"{where}: the right answer must be one of the options in {ascii(options)[:80]}, such as '(a)', got "
            f"{ascii(value)[:60]}"
        )
    return found[1].upper()


def load_questions(path: Path | str) -> list[MmvpQuestion]:
    """Read the questions of the file.

    Raises:
        DataFormatError: The file cannot be read, a row lacks something, rows are not numbered one after the other, or
            one has no partner.
    """
    return to_questions(read_table(path), path)


def to_questions(rows: Sequence[Record], path: Path | str) -> list[MmvpQuestion]:
    """Return the questions of rows in the file's form; see `load_questions`.

    Args:
        rows: In their order.
        path: Where they are from, for error messages.
    """
    questions: list[MmvpQuestion] = []
    for place, (where, fields) in enumerate(rows, start=1):
        texts = [fields.get(name) for name in ("Question", "Options")]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise DataFormatError(
                f"{where}: a question of MMVP must have 'Question', 'Options' and 'Correct Answer', got columns "
                f"{ascii(sorted(map(str, fields)))[:120]}: give {FILE}"
            )
        number = next((fields[name] for name in _NUMBER if name in fields), place)
        if str(number) != str(place):
            raise DataFormatError(
                f"{where}: questions must be numbered one after the other, since pairs are told by their order, got "
                f"{ascii(number)[:60]} for {place}: give the whole file"
            )
        question, options = (str(text).strip() for text in texts)
        gold = read_gold(fields.get("Correct Answer"), options, where)
        questions.append(MmvpQuestion(place, (place + 1) // 2, question, options, gold))
    if len(questions) % 2:
        raise DataFormatError(f"{path}: must hold pairs of questions, got {len(questions)}: give the whole file")
    return questions
