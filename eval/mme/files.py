r"""Files of MME answers: the official form, and what other tools write.

The official form is a line ``image\tquestion\tgold\tanswer`` in a file a category. Records (JSON, Excel, ...) hold the
category under ``category`` or as the folder in ``question_id`` (``existence/000000494427.jpg``), the gold label under
``label`` or ``gt_answer``, and the question under ``question`` or ``prompt``. The answers of LLaVA's scripts have no
gold label: it comes of MME's folder, as in their converter.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from damro.eval.errors import DataFormatError, EvalError
from damro.eval.formats.answers import read_answers
from damro.eval.formats.tables import is_text_file
from damro.eval.mme.questions import MMEQuestion, load_questions
from damro.eval.mme.scoring import CATEGORIES, MMEAnswer, category_in, load_answers
from damro.eval.pope.rules import parse_label
from damro.eval.records import read_text

_ANSWER_KEYS = ("answer", "output", "response", "text")
_POLITE = "Please answer yes or no."


def load_files(path: Path | str, folder: Path | str | None = None) -> list[MMEAnswer]:
    """Read a file of answers, of whatever form.

    Args:
        path: The file.
        folder: MME's own, for the gold labels of answers that have none.

    Raises:
        DataFormatError: The file cannot be read, or a record lacks something; names the file and the line.
        EvalError: Answers have no gold label and there is no folder, or it has no such question.
    """
    path = Path(path)
    if is_text_file(path) and not _has_records(path):
        return load_answers(path)
    gold = None if folder is None else _Gold(load_questions(Path(folder)))
    return [_to_answer(fields, where, path, gold) for where, fields in read_answers(path)]


def _has_records(path: Path) -> bool:
    """Whether a text file holds JSON, or a table with a header."""
    table = Path(path.name.lower().removesuffix(".gz")).suffix in (".csv", ".tsv")
    return table or read_text(path).lstrip().startswith(("{", "["))


def _to_answer(fields: Mapping[str, Any], where: str, path: Path, gold: _Gold | None) -> MMEAnswer:
    key = next((key for key in _ANSWER_KEYS if key in fields), None)
    texts = {
        "answer": fields.get(key) if key else None,
        "question": fields.get("question", fields.get("prompt")),
        "image": next((fields[name] for name in ("question_id", "name", "image") if fields.get(name)), None),
    }
    for name, text in texts.items():
        if not isinstance(text, str):
            raise DataFormatError(
                f"{where}: an answer to MME must have its {name} as text, got keys "
                f"{ascii(sorted(map(str, fields)))[:160]}"
            )
    place = PurePosixPath(texts["image"])
    category = fields.get("category") or (place.parts[-2] if len(place.parts) > 1 else category_in(path.stem))
    if place.parts[-2:-1] == ("images",) and not fields.get("category"):  # one of the two layouts of MME's folder
        category = place.parts[-3] if len(place.parts) > 2 else category
    if category not in CATEGORIES:
        raise DataFormatError(
            f"{where}: category must be one of {', '.join(CATEGORIES)}, got {category!r:.60}: give it under "
            "'category', or as the folder in 'question_id'"
        )
    label = fields.get("label", fields.get("gt_answer"))
    if label is None and gold is None:
        raise EvalError(
            f"{where}: an answer must have its gold label under 'label' or 'gt_answer', has none: give --questions "
            "with MME's folder to take it from there"
        )
    if label is None and gold is not None:
        label = gold.find(category, place.stem, texts["question"], where)
    try:
        return MMEAnswer(category, place.name, texts["question"], parse_label(label), texts["answer"])
    except EvalError as error:
        raise DataFormatError(f"{where}: {error}") from error


class _Gold:
    """The gold labels of MME's folder, by category, image and what a prompt holds."""

    def __init__(self, questions: list[MMEQuestion]) -> None:
        self._of_image: dict[tuple[str, str], list[MMEQuestion]] = {}
        for asked in questions:
            self._of_image.setdefault((asked.category, PurePosixPath(asked.name).stem), []).append(asked)

    def find(self, category: str, stem: str, prompt: str, where: str) -> str:
        plain = _plain(prompt)
        asked = self._of_image.get((category, stem), [])
        fitting = [one for one in asked if _plain(one.question) in plain]
        if not fitting:
            raise EvalError(
                f"{where}: --questions must hold the question about {category}/{stem}, does not have {prompt!r:.80}"
            )
        return max(fitting, key=lambda one: len(one.question)).gold  # where one question begins as the other


def _plain(text: str) -> str:
    """A question without the request for a form, which other tools exchange."""
    return " ".join(text.replace(_POLITE, " ").split())
