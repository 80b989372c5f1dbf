"""POPE's questions of a table: Parquet with the images in it, as the hub has it, or rows that name image files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from damro.eval.errors import DataFormatError, EvalError
from damro.eval.formats.images import ImageTable, Role, Row, load_image_table
from damro.eval.pope.questions import Question
from damro.eval.pope.rules import parse_label
from damro.eval.samples import ImageSource

ROLES = {
    "image": Role(("image",)),
    "question": Role(("question", "text")),
    "answer": Role(("answer", "label")),
    "id": Role(("question_id",), needed=False),
    "category": Role(("category",), needed=False),
    "name": Role(("image_source", "image_path", "image_name", "file_name"), needed=False),
}
"""Columns of a table of questions; those of lmms-lab/POPE are found by themselves."""


class AskedTable(NamedTuple):
    """Questions of a table.

    Attributes:
        questions: Each with its split.
        open_image: From an image's name to the image.
        source: For ``run.json``.
    """

    questions: list[tuple[str, Question]]
    open_image: ImageSource
    source: dict[str, Any]


def load_table(
    data: str, columns: Sequence[str], splits: Sequence[str], folder: Path | None, limit: int | None
) -> AskedTable:
    """Read questions from a table.

    Args:
        data: See `damro.eval.formats.images.load_image_table`.
        columns: Likewise.
        splits: Categories to take; none takes all.
        folder: Where the images lie that rows name.
        limit: At most so many questions of each split.

    Raises:
        EvalError: The table is malformed, lacks a column, or has no such category.
    """
    table = load_image_table(data, ROLES, columns, folder)
    rows = _chosen(table, Path(data).name, splits, limit)
    names, open_image = table.images([row for _, row in rows])
    questions = [(split, _to_question(row, name)) for (split, row), name in zip(rows, names, strict=True)]
    return AskedTable(questions, open_image, table.source)


def _chosen(table: ImageTable, name: str, splits: Sequence[str], limit: int | None) -> list[tuple[str, Row]]:
    """Each row with its split, where it is one of those asked for and not beyond the limit."""
    by_split: dict[str, list[Row]] = {}
    for row in table.rows:
        for split in filter(None, map(str.strip, (row.fields.get("category") or name).split(","))):
            by_split.setdefault(split, []).append(row)  # VLMEvalKit asks once what stands in several splits
    unknown = [split for split in splits if split not in by_split]
    if unknown:
        raise EvalError(f"--split must be of the table's categories ({', '.join(by_split)}), got {unknown[0]!r}")
    return [(split, row) for split in splits or by_split for row in by_split[split][:limit]]


def _to_question(row: Row, image: str) -> Question:
    try:
        label = parse_label(row.fields["answer"])
    except EvalError as error:
        raise DataFormatError(f"{row.where}: {error}") from error
    return Question(row.fields.get("id") or str(row.number + 1), image, row.fields["question"], label)
