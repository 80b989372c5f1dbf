"""Answers to yes/no questions as other tools write them, as records of this package's own form.

| tool | file | what tells it |
|---|---|---|
| lmms-eval | ``*_samples_TASK.jsonl`` (``--log_samples``) | ``doc_id`` with ``filtered_resps`` or ``resps`` |
| VLMEvalKit | ``MODEL_DATASET.xlsx``, ``.tsv``, ``.json``; ``*_auxmatch`` of them | ``index`` with ``prediction`` |
| DAMRO's scripts | ``.jsonl`` | ``output`` (MME: with ``gt_answer`` and ``category``) |
| LLaVA's scripts | ``.jsonl`` | ``text`` with ``prompt`` |

Files of the last two, and any with this package's own keys, are returned as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from damro.eval.errors import DataFormatError
from damro.eval.formats.tables import read_table
from damro.eval.records import Record

_COCO_STEM = re.compile(r"COCO_(?:train|val|test)20\d\d_\d{12}")
_IMAGE_KEYS = ("image_path", "image_source", "image_name", "image")
_NAME_LENGTH = 256  # an image column of VLMEvalKit's tables holds base64 or the number of another row
_SCORES = {
    ("results", "configs"): "lmms-eval: give the samples it writes with --log_samples (*_samples_TASK.jsonl)",
    **dict.fromkeys(
        (("split", "Overall"), ("split", "aAcc"), ("Average", "Overall"), ("Avg ACC",), ("exist", "total")),
        "VLMEvalKit: give its predictions (MODEL_DATASET.xlsx)",
    ),
}
"""By the keys that tell a file of scores, of which tool it is, and what to give."""


class Form(NamedTuple):
    """What one tool writes.

    Attributes:
        tool: Its name.
        fits: Whether a record is of it.
        convert: From a record to one of this package's own form.
    """

    tool: str
    fits: Callable[[Mapping[str, Any]], bool]
    convert: Callable[[Mapping[str, Any], str], dict[str, Any]]


def read_answers(path: Path | str, forms: Sequence[Form] | None = None) -> list[Record]:
    """Read answers from a file of any tool named above.

    Args:
        path: The file.
        forms: What is recognised and converted; None takes `FORMS`.

    Returns:
        Records with the answer under ``answer`` and, as far as the file tells, ``question_id``, ``image``,
        ``question``, ``label`` and ``category``; in the order in which the questions were asked. Those of no tool
        named above stay as they are.

    Raises:
        DataFormatError: The file cannot be read, holds scores and no answers, or a record is not of the form of the
            others; names the file, the line and what was wrong.
        EvalError: The package that reads such files is not installed.
    """
    rows = read_table(path)
    _refuse_scores(rows, path)
    form = next((form for form in (FORMS if forms is None else forms) if form.fits(rows[0].fields)), None)
    if form is None:
        return rows
    other = next((row for row in rows if not form.fits(row.fields)), None)
    if other is not None:
        raise DataFormatError(
            f"{other.where}: must be an answer of {form.tool} like the first of the file, got keys "
            f"{_keys(other.fields)}: take out what is not"
        )
    if form.tool == LMMS.tool:  # processes write their shares one behind the other
        rows = sorted(rows, key=lambda row: _place(row))
    return [Record(where, form.convert(fields, where)) for where, fields in rows]


def _refuse_scores(rows: Sequence[Record], path: Path | str) -> None:
    for keys, told in _SCORES.items():
        if all(key in rows[0].fields for key in keys):
            raise DataFormatError(f"{path}: must hold answers, holds scores of {told}")


def _place(row: Record) -> int:
    place = row.fields["doc_id"]
    if isinstance(place, bool) or not isinstance(place, int):
        raise DataFormatError(f"{row.where}: doc_id must be a whole number, got {ascii(place)[:80]}")
    return place


def _is_lmms(fields: Mapping[str, Any]) -> bool:
    return "doc_id" in fields and ("filtered_resps" in fields or "resps" in fields)


def from_lmms(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a sample of lmms-eval in this package's form.

    Older versions write the question under ``doc``; newer ones leave it out, and then its id and category stand beside
    the metrics, its prompt under ``input`` and its label under ``target``. What names an image counts as one.

    Example:
        >>> from_lmms({"doc_id": 0, "filtered_resps": ["Yes"], "input": "Is there a cat?", "target": "yes",
        ...            "pope_accuracy": {"question_id": "1", "score": 1.0}}, "line 1")
        {'answer': 'Yes', 'question_id': '1', 'question': 'Is there a cat?', 'label': 'yes'}
    """
    doc = fields.get("doc")
    told: dict[str, Any] = {}
    for value in fields.values():  # each metric's own
        if isinstance(value, Mapping):
            told.update({key: value[key] for key in ("question_id", "image_id", "category") if key in value})
    told |= doc if isinstance(doc, Mapping) else {}
    asked = fields.get("input", fields.get("arguments"))
    found = {
        "answer": _response(fields, where),
        "question_id": told.get("question_id"),
        "image": _image_of(told),
        "image_id": told.get("image_id"),
        "question": told.get("question") or _first_text(asked),
        "label": told.get("answer") if isinstance(told.get("answer"), str) else fields.get("target"),
        "category": told.get("category"),
    }
    return {key: value for key, value in found.items() if value is not None}


def _response(fields: Mapping[str, Any], where: str) -> str:
    """The one answer, which stands alone or in lists of one."""
    value = fields.get("filtered_resps", fields.get("resps"))
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        raise DataFormatError(
            f"{where}: an answer of lmms-eval must be one text under 'filtered_resps', got {ascii(value)[:80]}: give "
            "the samples of a task that generates text once"
        )
    return value


def _first_text(value: Any) -> str | None:
    while isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, str) else None


def _image_of(fields: Mapping[str, Any]) -> str | None:
    """The name of an image, with the ending that COCO's files have."""
    for key in _IMAGE_KEYS:
        value = fields.get(key)
        if isinstance(value, str) and 0 < len(value) <= _NAME_LENGTH and not value.isdigit():
            return with_ending(value)
    return None


def with_ending(name: str) -> str:
    """Return an image's name with the ending that COCO's files have, where a tool leaves it out.

    Example:
        >>> with_ending("COCO_val2014_000000000042"), with_ending("existence/0001.png")
        ('COCO_val2014_000000000042.jpg', 'existence/0001.png')
    """
    return f"{name}.jpg" if _COCO_STEM.fullmatch(name) else name


def _is_vlmeval(fields: Mapping[str, Any]) -> bool:
    return "index" in fields and "prediction" in fields


def from_vlmeval(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a prediction of VLMEvalKit in this package's form; its ``answer`` is the label.

    A question of POPE that stands in several splits is asked once, with their names under ``category``.

    Example:
        >>> from_vlmeval({"index": 3, "question": "Is there a cat?", "answer": "Yes", "prediction": "No",
        ...               "category": "popular,random"}, "row 2")
        {'answer': 'No', 'question': 'Is there a cat?', 'label': 'Yes', 'category': 'popular,random'}
    """
    said = fields["prediction"]
    if said is None or isinstance(said, list | dict):
        raise DataFormatError(f"{where}: 'prediction' must be text, got {ascii(said)[:80]}")
    found = {
        "answer": str(said),
        "image": _image_of(fields),
        "question": fields.get("question"),
        "label": fields.get("answer"),
        "category": fields.get("category"),
    }
    return {key: value for key, value in found.items() if value is not None}


def _keys(fields: Mapping[str, Any]) -> str:
    return ascii(sorted(map(str, fields)))[:200]


LMMS = Form("lmms-eval", _is_lmms, from_lmms)
VLMEVAL = Form("VLMEvalKit", _is_vlmeval, from_vlmeval)
FORMS: tuple[Form, ...] = (LMMS, VLMEVAL)
"""What is recognised and converted."""
