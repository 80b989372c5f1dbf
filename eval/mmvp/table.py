"""MMVP's questions of a table: that of lmms-lab-eval/MMVP, VLMEvalKit's, or another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from damro.eval.errors import DataFormatError
from damro.eval.formats.images import Role, load_image_table
from damro.eval.mmvp.questions import MmvpQuestion, in_brackets, lettered_options, to_questions
from damro.eval.records import Record
from damro.eval.samples import ImageSource

ROLES = {
    "image": Role(("image",)),
    "question": Role(("Question", "question")),
    "options": Role(("Options", "options"), needed=False),
    "A": Role(("A",), needed=False),
    "B": Role(("B",), needed=False),
    "answer": Role(("Correct Answer", "answer")),
    "id": Role(("Index", "lndex", "index"), needed=False),
    "name": Role(("image_path", "file_name"), needed=False),
}
"""Columns of a table of questions; those of lmms-lab-eval/MMVP and of VLMEvalKit are found by themselves."""


def load_table(
    data: str, columns: Sequence[str], folder: Path | None
) -> tuple[list[tuple[MmvpQuestion, str]], ImageSource, dict[str, Any]]:
    """Read questions from a table.

    Args:
        data: See `damro.eval.formats.images.load_image_table`.
        columns: Likewise.
        folder: Where the images lie that rows name.

    Returns:
        Each question with the name of its image, what opens images, and the source for ``run.json``.

    Raises:
        EvalError: The table is malformed, lacks a column, or its rows are not pairs.
    """
    table = load_image_table(data, ROLES, columns, folder)
    records = []
    for row in table.rows:
        fields = row.fields
        options = fields.get("options") or lettered_options({one: fields[one] for one in "AB" if one in fields})
        if not options:
            raise DataFormatError(
                f"{row.where}: a question of MMVP must have its options, or 'A' and 'B', has neither: name their "
                "columns with --columns options=COLUMN, or A=COLUMN B=COLUMN"
            )
        told = {"Question": fields["question"], "Options": options, "Correct Answer": in_brackets(fields["answer"])}
        records.append(Record(row.where, {**told, **({"Index": fields["id"]} if "id" in fields else {})}))
    rows = list(table.rows)
    if all(row.fields.get("id", "").isdigit() for row in rows):  # VLMEvalKit's numbers may begin at 0
        order = sorted(range(len(rows)), key=lambda number: int(rows[number].fields["id"]))
        rows, records = [rows[n] for n in order], [records[n] for n in order]
        for place, record in enumerate(records, start=1):
            record.fields["Index"] = str(place)
    questions = to_questions(records, data)
    names, opener = table.images(rows)
    return list(zip(questions, names, strict=True)), opener, table.source
