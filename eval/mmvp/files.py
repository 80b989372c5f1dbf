"""Files of answers to MMVP: those of its own script, of this program, and what other tools write."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from damro.eval.choices import parse_options
from damro.eval.errors import AlignmentError, DataFormatError
from damro.eval.formats.answers import LMMS, VLMEVAL, from_lmms, read_answers
from damro.eval.mmvp.benchmark import to_answer
from damro.eval.mmvp.questions import in_brackets, lettered_options
from damro.eval.mmvp.scoring import MmvpAnswer

_METRIC = "mmvp_accuracy"  # of lmms-eval's task, which says there which row was asked


def load_answers(path: Path | str) -> list[MmvpAnswer]:
    """Read answers: of MMVP's own script, of this program, of lmms-eval or of VLMEvalKit.

    Of VLMEvalKit's predictions two in a row, by their ``index``, are a pair, and have the same question.

    Raises:
        DataFormatError: The file cannot be read, or is of another task; names the file, the line and what was wrong.
        AlignmentError: Two in a row have different questions.
        EvalError: The package that reads such files is not installed.
    """
    forms = (LMMS._replace(convert=_from_lmms), VLMEVAL._replace(convert=_from_vlmeval))
    rows = read_answers(path, forms)
    if all("index" in row.fields for row in rows):
        rows.sort(key=lambda row: int(row.fields["index"]))
        for place, (where, fields) in enumerate(rows):
            other = rows[place ^ 1].fields if place ^ 1 < len(rows) else fields
            if other["question"] != fields["question"]:
                raise AlignmentError(f"{where}: two predictions in a row must be of one question: give the whole file")
            fields["pair"] = str(place // 2 + 1)
    return [to_answer(fields, where) for where, fields in rows]


def _from_lmms(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A sample of the task mmvp: pairs are told by the row, and options stand in the prompt as lines."""
    told, said = fields.get(_METRIC), from_lmms(fields, where)
    number = told.get("index") if isinstance(told, Mapping) else None
    if isinstance(number, bool) or not isinstance(number, int):
        raise DataFormatError(
            f"{where}: must be a sample of lmms-eval's task mmvp, which has the row under {_METRIC!r}, got keys "
            f"{ascii(sorted(map(str, fields)))[:120]}"
        )
    options = lettered_options(parse_options(str(said.get("question", ""))))
    gold = in_brackets(str(fields.get("target")))
    return {"pair": str(number // 2 + 1), "options": options, "correct_answer": gold, "answer": said["answer"]}


def _from_vlmeval(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A prediction of VLMEvalKit, whose options are columns."""
    if not str(fields["index"]).isdigit() or not isinstance(fields.get("question"), str) or "A" not in fields:
        raise DataFormatError(
            f"{where}: must be a prediction of VLMEvalKit for MMVP, with a number under 'index', 'question', 'A' and "
            f"'B', got keys {ascii(sorted(map(str, fields)))[:120]}"
        )
    return {
        "index": str(fields["index"]),
        "question": fields["question"],
        "options": lettered_options({letter: str(fields[letter]) for letter in "AB" if letter in fields}),
        "correct_answer": in_brackets(str(fields.get("answer"))),
        "answer": str(fields["prediction"]),
    }
