"""HallusionBench's questions of a table: that of lmms-lab/HallusionBench, VLMEvalKit's, or another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from damro.eval.formats.images import Role, load_image_table
from damro.eval.hallusion.questions import HallusionQuestion, check_once, official_form, to_question
from damro.eval.samples import ImageSource

ROLES = {
    "image": Role(("image",)),
    "category": Role(("category",)),
    "subcategory": Role(("subcategory", "l2-category")),
    "question": Role(("question",)),
    "gt_answer": Role(("gt_answer",), needed=False),
    "answer": Role(("answer",), needed=False),
    "visual_input": Role(("visual_input",), needed=False),
    "set_id": Role(("set_id",), needed=False),
    "figure_id": Role(("figure_id",), needed=False),
    "question_id": Role(("question_id",), needed=False),
    "index": Role(("index",), needed=False),
    "name": Role(("filename",), needed=False),
}
"""Columns of a table of questions; those of lmms-lab/HallusionBench and of VLMEvalKit are found by themselves."""


def load_table(
    data: str, columns: Sequence[str], folder: Path | None
) -> tuple[list[HallusionQuestion], ImageSource, dict[str, Any]]:
    """Read questions from a table.

    Args:
        data: See `damro.eval.formats.images.load_image_table`.
        columns: Likewise.
        folder: Where the figures lie that rows name.

    Returns:
        The questions, what opens their figures by name, and the source for ``run.json``.

    Raises:
        EvalError: The table is malformed, lacks a column, or holds a question twice.
    """
    table = load_image_table(data, ROLES, columns, folder)
    questions = [to_question(official_form({**row.fields, "filename": None}), row.where) for row in table.rows]
    check_once(questions, data)
    seen = [number for number, one in enumerate(questions) if not _is_bare(one)]
    names, opener = table.images([table.rows[number] for number in seen])
    for number, name in zip(seen, names, strict=True):
        questions[number] = questions[number]._replace(image=name)
    return questions, opener, table.source


def _is_bare(asked: HallusionQuestion) -> bool:
    return asked.visual == "0" or (asked.visual is None and asked.category == "VS" and asked.figure_id == "0")
