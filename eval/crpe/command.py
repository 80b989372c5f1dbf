"""``damro score crpe``: what a model's answers to CRPE are worth."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from damro.eval.crpe.benchmark import CrpeScoring
from damro.eval.crpe.files import load_answers
from damro.eval.crpe.scoring import score_groups
from damro.eval.errors import AlignmentError
from damro.eval.score_command import add_answers_parser, add_scoring_flags, show_groups


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
        "Score the records of damro run crpe, the predictions of VLMEvalKit (MODEL_CRPE_EXIST.xlsx), or with "
        "--questions the samples of lmms-eval (crpe_relation) and the answers of the official scripts: 'question_id' "
        "and 'text' (or 'answer') a line, a file of answers for each file of questions.",
        run,
    )
    parser.add_argument(
        "--questions", nargs="+", metavar="FILE", help="crpe_exist.jsonl, crpe_relation.jsonl, in the order of answers"
    )
    add_scoring_flags(parser, CrpeScoring)
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
    questions: Sequence[str | None] = args.questions or [None] * len(args.answers)
    if len(questions) != len(args.answers):
        raise AlignmentError(
            f"--questions must be as many files as --answers, got {len(questions)} and {len(args.answers)}: give each "
            "file of answers its questions"
        )
    answers = []
    for place, (path, asked_in) in enumerate(zip(args.answers, questions, strict=True)):
        found = load_answers(path, asked_in)
        # A question is told apart by its file, but in records of runs, of which several files may be one run.
        answers += [one._replace(circle=f"{place}/{one.circle}") for one in found] if asked_in else found
    show_groups("CRPE", score_groups(answers, args.choice), as_json=args.json)
    return 0
