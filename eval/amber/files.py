"""Files of answers to AMBER: the official form, and what other tools write."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from damro.eval.amber.groups import AmberAnswer
from damro.eval.amber.questions import KINDS, AmberQuestion, load_questions
from damro.eval.errors import AlignmentError, DataFormatError, EvalError
from damro.eval.formats.answers import LMMS, VLMEVAL, from_lmms, from_vlmeval, read_answers
from damro.eval.pope.rules import parse_label
from damro.eval.samples import first_few

_ANSWER_KEYS = ("response", "answer", "output", "text")
_ID_KEYS = ("id", "question_id")
_QUESTION, _TRUTH = "question", "truth"


def load_answers(paths: Sequence[Path | str], folder: Path | None) -> list[AmberAnswer]:
    """Read files of answers and join them to their questions; questions may be left without an answer.

    Answers in the official form and records of runs are joined by id. Samples of lmms-eval's task amber_g, which are
    descriptions, name no id: they are joined by their place, which the objects in the image confirm. Predictions of
    VLMEvalKit, which are yes/no answers, hold their labels and are not joined.

    Args:
        paths: The files.
        folder: Of the official files; None where all answers hold their labels.

    Raises:
        DataFormatError: A file is malformed; names the file and the line.
        AlignmentError: A question is answered twice, there is none of an id, or it is of another image.
        EvalError: Answers hold no labels and there is no folder, or a package that reads such files is not installed.
    """
    forms = (LMMS._replace(convert=_from_lmms), VLMEVAL._replace(convert=_from_vlmeval))
    by_id: dict[str, AmberQuestion] = {}
    found: dict[str, AmberAnswer] = {}
    unknown: list[str] = []
    for path in paths:
        for where, fields in read_answers(path, forms):
            identifier = next((str(fields[key]) for key in _ID_KEYS if fields.get(key) is not None), None)
            text = next((fields[key] for key in _ANSWER_KEYS if key in fields), None)
            if identifier is None or not isinstance(text, str):
                raise DataFormatError(
                    f"{where}: an answer to AMBER must have its question's number under 'id' and a text under "
                    f"'response', got keys {ascii(sorted(map(str, fields)))[:160]}"
                )
            if identifier in found:
                raise AlignmentError(f"{where}: a question must be answered once, {identifier!r:.60} is answered twice")
            own = fields.get(_QUESTION)
            if not isinstance(own, AmberQuestion):
                by_id = by_id or _by_id(folder, where)
                own = by_id.get(identifier)
            if own is None:
                unknown.append(identifier)
                continue
            _check_truth(own, fields, where)
            found[identifier] = AmberAnswer(own, text)
    if unknown:
        raise AlignmentError(
            f"--answers must be of AMBER's questions, got {len(unknown)} of other ids ({first_few(unknown)}): give the "
            "--annotations that they belong to"
        )
    return list(found.values())


def _by_id(folder: Path | None, where: str) -> dict[str, AmberQuestion]:
    if folder is None:
        raise EvalError(
            f"{where}: answers that hold no labels must come with --annotations, the folder 'data' of "
            "github.com/junyangwang0410/AMBER"
        )
    return {asked.question_id: asked for asked in load_questions(folder)}


def _check_truth(asked: AmberQuestion, fields: Mapping[str, Any], where: str) -> None:
    if _TRUTH in fields and sorted(fields[_TRUTH]) != sorted(asked.truth):
        raise AlignmentError(
            f"{where}: sample {int(asked.question_id) - 1} must be of AMBER's image {asked.question_id}, is of another "
            "with other objects: give the answers as {id, response}"
        )


def _from_lmms(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A sample of the task amber_g, whose target is the list of the objects in the image."""
    try:
        truth = ast.literal_eval(str(fields.get("target")))
    except (ValueError, SyntaxError):
        truth = None
    if "amber_chair" not in fields or not isinstance(truth, list) or not all(isinstance(one, str) for one in truth):
        raise DataFormatError(
            f"{where}: must be a sample of lmms-eval's task amber_g, with 'amber_chair' and the objects under "
            f"'target', got keys {ascii(sorted(map(str, fields)))[:120]}"
        )
    return {"id": fields["doc_id"] + 1, "response": from_lmms(fields, where)["answer"], _TRUTH: truth}


def _from_vlmeval(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A prediction of VLMEvalKit with its question."""
    told = from_vlmeval(fields, where)
    kind = KINDS.get(str(told.get("category")))
    if kind is None or kind == "generative":
        raise DataFormatError(
            f"{where}: must be a prediction of VLMEvalKit for AMBER, with 'category' one of {', '.join(KINDS)}, got "
            f"{ascii(told.get('category'))[:60]}"
        )
    try:
        label = parse_label(told.get("label"))
    except EvalError as error:
        raise DataFormatError(f"{where}: {error}") from error
    identifier = str(fields["index"])
    image = told.get("image", f"question {identifier}")  # without names of images, each question counts as one
    question = AmberQuestion(identifier, image, str(told.get("question")), kind, label)
    return {"id": identifier, "response": told["answer"], _QUESTION: question}
