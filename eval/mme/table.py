"""MME's questions of a table: Parquet with the images in it, as the hub has it, or rows that name image files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from damro.eval.errors import DataFormatError, EvalError
from damro.eval.formats.images import Role, load_image_table
from damro.eval.mme.questions import MMEQuestion
from damro.eval.mme.scoring import CATEGORIES
from damro.eval.pope.rules import parse_label
from damro.eval.samples import ImageSource

ROLES = {
    "image": Role(("image",)),
    "question": Role(("question",)),
    "answer": Role(("answer", "label")),
    "category": Role(("category",)),
    "id": Role(("question_id", "image_path", "image_name")),
}
"""Columns of a table of questions; those of lmms-lab/MME are found by themselves. ``id`` names the image."""


def load_table(
    data: str, columns: Sequence[str], categories: Sequence[str], folder: Path | None
) -> tuple[list[MMEQuestion], ImageSource, dict[str, Any]]:
    """Read questions from a table.

    Args:
        data: See `damro.eval.formats.images.load_image_table`.
        columns: Likewise.
        categories: Those to take; none takes all.
        folder: Where the images lie that rows name.

    Returns:
        The questions, those of an image next to each other, what opens their images, and the source for ``run.json``.

    Raises:
        EvalError: The table is malformed, lacks a column, or has no such category.
    """
    table = load_image_table(data, ROLES, columns, folder)
    found = dict.fromkeys(row.fields["category"] for row in table.rows)
    unknown = [name for name in (*found, *categories) if name not in CATEGORIES]
    missing = [name for name in categories if name not in found]
    if unknown or missing:
        raise EvalError(
            f"categories must be of MME's ({', '.join(CATEGORIES)}) and in the table, got {(unknown or missing)[0]!r}"
        )
    rows = [row for row in table.rows if not categories or row.fields["category"] in categories]
    # The sort keeps the order of an image's two questions.
    rows.sort(key=lambda row: (CATEGORIES.index(row.fields["category"]), row.fields["id"]))
    names, open_image = table.images(rows, "id")
    questions, seen = [], Counter[tuple[str, str]]()
    for row, image in zip(rows, names, strict=True):
        try:
            label = parse_label(row.fields["answer"])
        except EvalError as error:
            raise DataFormatError(f"{row.where}: {error}") from error
        name = PurePosixPath(row.fields["id"]).name
        seen[row.fields["category"], name] += 1
        number = seen[row.fields["category"], name]
        questions.append(MMEQuestion(row.fields["category"], name, number, image, row.fields["question"], label))
    return questions, open_image, table.source
