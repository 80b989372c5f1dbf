"""Files of answers to CRPE: those of the official scripts, of this program, and what other tools write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from damro.eval.choices import parse_options
from damro.eval.crpe.benchmark import to_answer
from damro.eval.crpe.questions import ORDERS, CrpeQuestion, load_questions, stem_of
from damro.eval.crpe.scoring import CrpeAnswer
from damro.eval.errors import AlignmentError, DataFormatError, EvalError
from damro.eval.formats.answers import LMMS, VLMEVAL, from_lmms, from_vlmeval, read_answers
from damro.eval.records import Record

_TOOL = "tool"  # under which a converted answer says whose it is


def load_answers(path: Path | str, questions: Path | str | None = None) -> list[CrpeAnswer]:
    """Read answers.

    ======================= ==========================================================================================
    file                    joined by
    ======================= ==========================================================================================
    records of `damro run`  nothing: they hold their questions
    the official scripts'   ``question_id``, with the file of questions
    lmms-eval               the place of the question (``doc_id``) in the file of questions, which its text confirms
    VLMEvalKit              nothing: four in a row of a category are a question, as in its own score
    ======================= ==========================================================================================

    Args:
        path: The file.
        questions: ``crpe_exist.jsonl`` or ``crpe_relation.jsonl``, where the answers need it.

    Raises:
        AlignmentError: Answers and questions do not fit.
        DataFormatError: A file is malformed, or holds no answers to CRPE.
        EvalError: Questions are given and not needed, or the package that reads such files is not installed.
    """
    forms = (LMMS._replace(convert=_from_lmms), VLMEVAL._replace(convert=_from_vlmeval))
    rows = read_answers(path, forms)
    tool = rows[0].fields.get(_TOOL)
    if tool == LMMS.tool and questions is None:
        raise EvalError(
            f"{path}: samples of lmms-eval hold no category, so that --questions must be given: crpe_relation.jsonl"
        )
    if tool == VLMEVAL.tool:
        if questions is not None:
            raise EvalError(f"--questions must be left out for predictions of VLMEvalKit, got {str(questions)!r}")
        return _in_fours(rows)
    if questions is None:
        return [to_answer(fields, where) for where, fields in rows]
    asked = load_questions(questions)
    return _by_place(rows, asked) if tool == LMMS.tool else _by_id(rows, asked, questions)


def _from_lmms(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A sample with what the model said, before the task's own filter read it."""
    said = from_lmms({**fields, "filtered_resps": fields.get("resps", fields.get("filtered_resps"))}, where)
    return {_TOOL: LMMS.tool, "place": fields["doc_id"], "question": said.get("question"), "text": said["answer"]}


def _from_vlmeval(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    told = from_vlmeval(fields, where)
    gold = str(told.get("label", "")).strip()[:1]
    if not isinstance(told.get("category"), str) or gold not in parse_options(str(told.get("question", ""))):
        raise DataFormatError(
            f"{where}: must be a prediction of VLMEvalKit for CRPE, with 'category', 'question' with its options and "
            f"their letter under 'answer', got keys {ascii(sorted(map(str, fields)))[:120]}"
        )
    return {**told, _TOOL: VLMEVAL.tool, "correct_option": gold}


def _in_fours(rows: list[Record]) -> list[CrpeAnswer]:
    answers: list[CrpeAnswer] = []
    seen: Counter[str] = Counter()
    first: dict[str, str] = {}
    for where, fields in rows:
        category, text = fields["category"], fields["question"]
        circle = f"{category}/{seen[category] // ORDERS}"
        seen[category] += 1
        if first.setdefault(circle, stem_of(text)) != stem_of(text):
            raise AlignmentError(
                f"{where}: {ORDERS} predictions of a category in a row must be of one question, got another: give the "
                "whole file in its order"
            )
        image = fields.get("image", circle)  # without names of images, each question counts as one in intervals
        answers.append(CrpeAnswer(category, circle, image, text, fields["correct_option"], fields["answer"]))
    return answers


def _by_place(rows: list[Record], asked: list[CrpeQuestion]) -> list[CrpeAnswer]:
    answers = []
    for where, fields in rows:
        place, text = fields["place"], str(fields["question"])
        one = asked[place] if 0 <= place < len(asked) else None
        if one is None or stem_of(one.text) not in text or parse_options(one.text) != parse_options(text):
            raise AlignmentError(
                f"{where}: sample {place} must be of question {place} of --questions, asks {ascii(text)[:60]}: give "
                "the file that the task's data set was made of"
            )
        answers.append(CrpeAnswer(one.category, one.circle, one.image, one.text, one.gold, fields["text"]))
    return answers


def _by_id(rows: list[Record], asked: list[CrpeQuestion], path: Path | str) -> list[CrpeAnswer]:
    by_id = {one.question_id: one for one in asked}
    answers = []
    for where, fields in rows:
        one = by_id.pop(str(fields.get("question_id")), None)
        if one is None:
            raise AlignmentError(
                f"{where}: question_id must be one of {path} and be answered once, got "
                f"{ascii(fields.get('question_id'))[:60]}"
            )
        text = fields.get("answer", fields.get("text"))
        if not isinstance(text, str):
            raise DataFormatError(f"{where}: must have the answer as 'text' or 'answer', got {ascii(text)[:60]}")
        answers.append(CrpeAnswer(one.category, one.circle, one.image, one.text, one.gold, text))
    return answers
