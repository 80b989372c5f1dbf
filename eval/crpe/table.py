"""CRPE's questions of a table: one in the schema of the official files with images, VLMEvalKit's, or another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from damro.eval.crpe.questions import CrpeQuestion, to_questions
from damro.eval.formats.images import Role, load_image_table
from damro.eval.records import Record
from damro.eval.samples import ImageSource

ROLES = {
    "image": Role(("image", "image_path")),
    "question": Role(("text", "question")),
    "answer": Role(("correct_option", "answer")),
    "category": Role(("category",)),
    "id": Role(("question_id", "index"), needed=False),
    "name": Role(("image_path", "file_name"), needed=False),
}
"""Columns of a table of questions; those of the official files and of VLMEvalKit are found by themselves."""


def load_table(
    data: str, columns: Sequence[str], folder: Path | None
) -> tuple[list[CrpeQuestion], ImageSource, dict[str, Any]]:
    """Read questions from a table, with the name of its image each.

    Args:
        data: See `damro.eval.formats.images.load_image_table`.
        columns: Likewise.
        folder: Where the images lie that rows name.

    Returns:
        The questions, what opens their images, and the source for ``run.json``.

    Raises:
        EvalError: The table is malformed, lacks a column, or has not the lines of whole questions.
    """
    table = load_image_table(data, ROLES, columns, folder)
    names, opener = table.images(table.rows)
    records = []
    for row, name in zip(table.rows, names, strict=True):
        told = {"category": row.fields["category"], "image": name, "text": row.fields["question"]}
        told |= {"question_id": row.fields.get("id", str(row.number))}
        records.append(Record(row.where, {**told, "correct_option": row.fields["answer"].strip()[:1]}))
    return to_questions(records, data), opener, table.source
