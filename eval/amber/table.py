"""AMBER's questions of a table: VLMEvalKit's, which has the yes/no questions, that of lmms-eval's task, or another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from damro.eval.amber.questions import DIMENSIONS, KINDS, AmberQuestion, check_dimensions, load_questions
from damro.eval.errors import AlignmentError, DataFormatError, EvalError
from damro.eval.formats.images import Role, Row, load_image_table
from damro.eval.pope.rules import parse_label
from damro.eval.samples import ImageSource

ROLES = {
    "image": Role(("image",)),
    "question": Role(("question", "query", "text"), needed=False),
    "answer": Role(("answer",), needed=False),
    "category": Role(("category", "task_type", "type")),
    "id": Role(("question_id", "id", "index")),
    "name": Role(("image_path", "image_name", "file_name"), needed=False),
}
"""Columns of a table of questions; those of VLMEvalKit and of lmms-eval's task are found by themselves."""


def load_table(
    data: str, columns: Sequence[str], images: Path | None, dimensions: Sequence[str], folder: Path | None
) -> tuple[list[AmberQuestion], ImageSource, dict[str, Any]]:
    """Read questions from a table, with the name of its image each.

    Args:
        data: See `damro.eval.formats.images.load_image_table`.
        columns: Likewise.
        images: Where the images lie that rows name.
        dimensions: Of `DIMENSIONS`; none reads all that are there.
        folder: Of the official files, for the objects of descriptions; None where none is wanted.

    Returns:
        The questions, what opens their images, and the source for ``run.json``.

    Raises:
        EvalError: The table is malformed or lacks a column, a dimension is unknown, or descriptions are asked for
            without the official files.
    """
    check_dimensions(dimensions)
    wanted = {kind for name in dimensions or DIMENSIONS for kind in DIMENSIONS[name]}
    table = load_image_table(data, ROLES, columns, images)
    rows = [row for row in table.rows if _kind(row) in wanted]
    described = any(_kind(row) == "generative" for row in rows)
    if described and folder is None:
        raise EvalError(
            f"--annotations must come with descriptions, which {data!r} asks for: give the folder 'data' of "
            "github.com/junyangwang0410/AMBER, or --split without generative"
        )
    official = {} if folder is None or not described else {one.question_id: one for one in load_questions(folder)}
    names, opener = table.images(rows)
    questions = [_to_question(row, name, official) for row, name in zip(rows, names, strict=True)]
    return questions, opener, table.source


def _kind(row: Row) -> str:
    kind = KINDS.get(row.fields["category"])
    if kind is None:
        raise DataFormatError(
            f"{row.where}: category must be one of {', '.join(KINDS)}, got {row.fields['category']!r:.60}"
        )
    return kind


def _to_question(row: Row, image: str, official: Mapping[str, AmberQuestion]) -> AmberQuestion:
    fields, kind = row.fields, KINDS[row.fields["category"]]
    if kind == "generative":
        asked = official.get(fields["id"])
        if asked is None or asked.kind != "generative":
            raise AlignmentError(
                f"{row.where}: a description must have the number of AMBER's image, 1 to 1004, got {fields['id']!r:.60}"
            )
        return asked._replace(image=image)
    try:
        label = parse_label(fields.get("answer"))
    except EvalError as error:
        raise DataFormatError(f"{row.where}: {error}") from error
    return AmberQuestion(fields["id"], image, fields.get("question", ""), kind, label)
