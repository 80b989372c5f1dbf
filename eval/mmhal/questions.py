"""MMHal-Bench's ``response_template.json``, of the data set Shengcao1006/MMHal-Bench (Apache 2.0)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from damro.eval.errors import DataFormatError, EvalError
from damro.eval.records import read_records

FILE = "response_template.json"
TYPES = ("attribute", "adversarial", "comparison", "counting", "relation", "environment", "holistic", "other")
"""What questions are about, in the order in which they take turns in the file."""
_SOURCE = "data set Shengcao1006/MMHal-Bench"


class MmhalQuestion(NamedTuple):
    """One question of MMHal-Bench.

    Attributes:
        kind: One of `TYPES`.
        contents: What the image shows, as OpenImages has it.
        question: The question.
        gold: A person's answer.
    """

    kind: str
    contents: tuple[str, ...]
    question: str
    gold: str


def to_question(fields: Mapping[str, Any], where: str) -> MmhalQuestion:
    """Return a question from a record of the official form.

    Raises:
        DataFormatError: It lacks something; names where it stands.
    """
    kind, question, gold = (fields.get(name) for name in ("question_type", "question", "gt_answer"))
    contents = fields.get("image_content")
    if kind not in TYPES:
        raise DataFormatError(f"{where}: question_type must be one of {', '.join(TYPES)}, got {ascii(kind)[:60]}")
    if not isinstance(question, str) or not isinstance(gold, str) or not question.strip():
        raise DataFormatError(f"{where}: a question of MMHal-Bench must have 'question' and 'gt_answer' as texts")
    if not isinstance(contents, list) or not all(isinstance(one, str) for one in contents):
        raise DataFormatError(f"{where}: image_content must be a list of texts, got {ascii(contents)[:60]}")
    return MmhalQuestion(kind, tuple(contents), question, gold)


def load_questions(path: Path | str) -> list[tuple[str, MmhalQuestion]]:
    """Read the questions of the file, each behind its image's file name.

    Raises:
        DataFormatError: The file cannot be read, or a record lacks something.
    """
    found = []
    for where, fields in read_records(path):
        address = fields.get("image_src")
        image = PurePosixPath(address).name if isinstance(address, str) else ""
        if not image:
            raise DataFormatError(f"{where}: image_src must be the image's address, got {ascii(address)[:60]}")
        found.append((image, to_question(fields, where)))
    return found


def find_file(folder: Path) -> Path:
    """Return the file of questions that lies in the folder of images or beside it.

    Raises:
        EvalError: There is none.
    """
    for path in (folder / FILE, folder.parent / FILE):
        if path.is_file():
            return path
    raise EvalError(
        f"mmhal needs {FILE}, found none in {str(folder)!r} or beside it: give --questions with that of the {_SOURCE}"
    )


def need_images(images: Path | None) -> Path:
    """Return the folder of images.

    Raises:
        EvalError: None was given.
    """
    if images is None:
        raise EvalError(
            f"mmhal needs its images, none are downloaded: unpack test_data.zip of the {_SOURCE} and give --images "
            "with the folder of the images"
        )
    return images
