"""MME's folder: a folder a category, images beside files of two lines each, question and answer with a tab."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from damro.eval.errors import DataFormatError, EvalError
from damro.eval.mme import CATEGORIES
from damro.eval.pope.rules import parse_label
from damro.eval.records import read_text

_ENDINGS = (".jpg", ".jpeg", ".png")


class MMEQuestion(NamedTuple):
    """One question of MME.

    Attributes:
        category: One of `damro.eval.mme.CATEGORIES`.
        name: The image's file name.
        number: 1 or 2, which of the image's questions.
        image: The image's path below the folder, with "/" between.
        question: The question.
        gold: The gold label.
    """

    category: str
    name: str
    number: int
    image: str
    question: str
    gold: Literal["yes", "no"]


def load_questions(folder: Path, categories: Sequence[str] | None = None) -> list[MMEQuestion]:
    """Read the questions of MME's folder.

    Both layouts of the release are taken: images and text files side by side, or in ``images`` and
    ``questions_answers_YN``.

    Args:
        folder: The folder of the categories.
        categories: Those to read; None reads every one that is there.

    Raises:
        EvalError: A category is unknown or not there.
        DataFormatError: A text file has no image, or a line is not a question and yes or no with a tab between.
    """
    if categories is not None:
        wrong = [name for name in categories if name not in CATEGORIES or not (folder / name).is_dir()]
        if wrong:
            raise EvalError(
                f"--split must be of MME's categories ({', '.join(CATEGORIES)}) and a folder in {str(folder)!r}, got "
                f"{wrong[0]!r}"
            )
    wanted = [name for name in (categories or CATEGORIES) if (folder / name).is_dir()]
    questions = [question for name in wanted for question in _category(folder, name)]
    if not questions:
        raise EvalError(
            f"--images must hold MME's folders (existence, count, ...) with questions, found none in {folder}"
        )
    return questions


def _category(folder: Path, category: str) -> list[MMEQuestion]:
    base = folder / category
    texts = base / "questions_answers_YN"
    images = base / "images"
    texts, images = (texts, images) if texts.is_dir() else (base, base)
    by_stem = {path.stem: path for path in sorted(images.iterdir()) if path.suffix.lower() in _ENDINGS}
    questions = []
    for path in sorted(texts.glob("*.txt")):
        image = by_stem.get(path.stem)
        if image is None:
            raise DataFormatError(f"{path}: must have an image of the same name in {images}, found none")
        lines = [line.removesuffix("\r") for line in read_text(path).split("\n") if line.strip()]
        for number, line in enumerate(lines, start=1):
            question, tab, gold = line.rpartition("\t")
            try:
                label = parse_label(gold)
            except EvalError as error:
                raise DataFormatError(f"{path}, line {number}: {error}") from error
            if not tab or not question.strip():
                raise DataFormatError(f"{path}, line {number}: must be question and answer with a tab between")
            relative = image.relative_to(folder).as_posix()
            questions.append(MMEQuestion(category, image.name, number, relative, question.strip(), label))
    return questions
