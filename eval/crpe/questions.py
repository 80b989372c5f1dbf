"""CRPE's files of questions, ``crpe_exist.jsonl`` and ``crpe_relation.jsonl`` of the data set OpenGVLab/CRPE."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from damro.eval.choices import parse_options
from damro.eval.errors import DataFormatError
from damro.eval.records import Record, read_records

FILES = {"exist": "crpe_exist.jsonl", "relation": "crpe_relation.jsonl"}
"""The files of the two splits."""
CATEGORIES = ("exist", "subject", "predicate", "object")
"""What is asked about, in the order in which it is shown."""
_OPTIONS = re.compile(r"^[A-Z]\.", re.MULTILINE)
ORDERS = 4
"""So many lines of a category in a row are one question with its options in other orders."""


class CrpeQuestion(NamedTuple):
    """One line of a file: a question with its options in one order.

    Attributes:
        question_id: Unique in its file.
        category: exist, subject, predicate or object.
        circle: The question that this is one order of, unique in its file.
        image: The image's path: ``coco/val2017/...`` or ``abnormal_images/...``.
        text: Question, options and how to answer.
        gold: The right letter.
    """

    question_id: str
    category: str
    circle: str
    image: str
    text: str
    gold: str


def load_questions(path: Path | str) -> list[CrpeQuestion]:
    """Read the questions of a file. Which lines belong together is told by their order, as in the official script.

    Raises:
        DataFormatError: The file cannot be read, a line lacks something, an id stands twice, or a category has not the
            lines of whole questions.
    """
    return to_questions(read_records(path), path)


def stem_of(text: str) -> str:
    r"""Return a question without its options.

    Example:
        >>> stem_of("What is it?\nA. a cat\nB. a dog\nAnswer with the letter.")
        'What is it?'
    """
    return _OPTIONS.split(text, maxsplit=1)[0].strip()


def to_questions(records: Iterable[Record], path: Path | str) -> list[CrpeQuestion]:
    """Return the questions of records in the official form; see `load_questions`.

    Args:
        records: In their order.
        path: Where they are from, for error messages.
    """
    questions: list[CrpeQuestion] = []
    seen: Counter[str] = Counter()
    for where, fields in records:
        texts = {name: fields.get(name) for name in ("category", "image", "text", "correct_option")}
        for name, value in texts.items():
            if not isinstance(value, str) or not value.strip():
                raise DataFormatError(
                    f"{where}: a question of CRPE must have {name!r} as text, got {ascii(value)[:60]}: give "
                    f"{' or '.join(FILES.values())}"
                )
        identifier = fields.get("question_id")
        if isinstance(identifier, bool) or not isinstance(identifier, str | int):
            raise DataFormatError(
                f"{where}: a question of CRPE must have its question_id, got {ascii(identifier)[:60]}"
            )
        category, gold, text = str(texts["category"]), str(texts["correct_option"]), str(texts["text"])
        if gold not in parse_options(text):
            raise DataFormatError(f"{where}: correct_option must be the letter of an option, got {ascii(gold)[:60]}")
        circle = f"{category}/{seen[category] // ORDERS}"
        seen[category] += 1
        questions.append(CrpeQuestion(str(identifier), category, circle, str(texts["image"]), text, gold))
    if len({one.question_id for one in questions}) < len(questions):
        raise DataFormatError(f"{path}: every question must have a question_id of its own, got one twice")
    cut = [name for name, count in seen.items() if count % ORDERS]
    if cut:
        raise DataFormatError(
            f"{path}: a category must have {ORDERS} lines a question, got {seen[cut[0]]} of {cut[0]!r}: give the whole "
            "file"
        )
    return questions
