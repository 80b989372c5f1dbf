"""``damro score crpe``: what a model's answers to CRPE are worth."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from damro.eval.choices import add_choice_flag
from damro.eval.crpe.benchmark import CrpeScoring, to_answer
from damro.eval.crpe.questions import load_questions
from damro.eval.crpe.scoring import CrpeAnswer, score_groups
from damro.eval.errors import AlignmentError, DataFormatError
from damro.eval.records import read_records
from damro.eval.score_command import add_answers_parser, show_groups


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add ``crpe`` to the ``score`` commands.

    Args:
        subparsers: What ``add_subparsers`` of the ``score`` parser returned.

    Returns:
        The new parser; its namespace has `run` as ``run``.
    """
    parser = add_answers_parser(
        subparsers,
        "crpe",
        "score single-choice answers to CRPE",
        "Score the records of damro run crpe, or with --questions the answers of the official scripts: 'question_id' "
        "and 'text' (or 'answer') a line, a file of answers for each file of questions.",
        run,
    )
    parser.add_argument(
        "--questions", nargs="+", metavar="FILE", help="crpe_exist.jsonl, crpe_relation.jsonl, in the order of answers"
    )
    add_choice_flag(parser, CrpeScoring)
    return parser


def run(args: argparse.Namespace) -> int:
    """Score the answers and print the result.

    Args:
        args: What the parser of `add_parser` made of the command line.

    Returns:
        The exit code, 0.

    Raises:
        EvalError: A file is malformed, or answers and questions do not fit.
    """
    answers: list[CrpeAnswer] = []
    if args.questions:
        answers += _joined(args.questions, args.answers)
    else:
        answers += [to_answer(fields, where) for path in args.answers for where, fields in read_records(path)]
    show_groups("CRPE", score_groups(answers, args.choice), as_json=args.json)
    return 0


def _joined(questions: Sequence[str], answers: Sequence[str]) -> Iterator[CrpeAnswer]:
    if len(questions) != len(answers):
        raise AlignmentError(
            f"--questions must be as many files as --answers, got {len(questions)} and {len(answers)}: give each "
            "file of answers its questions"
        )
    for place, (asked_in, answered_in) in enumerate(zip(questions, answers, strict=True)):
        asked = {one.question_id: one for one in load_questions(asked_in)}
        for where, fields in read_records(answered_in):
            one = asked.pop(str(fields.get("question_id")), None)
            if one is None:
                raise AlignmentError(
                    f"{where}: question_id must be one of {asked_in} and be answered once, got "
                    f"{ascii(fields.get('question_id'))[:60]}"
                )
            text = fields.get("answer", fields.get("text"))
            if not isinstance(text, str):
                raise DataFormatError(f"{where}: must have the answer as 'text' or 'answer', got {ascii(text)[:60]}")
            yield CrpeAnswer(one.category, f"{place}/{one.circle}", one.image, one.text, one.gold, text)
