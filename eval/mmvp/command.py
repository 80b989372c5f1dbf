"""``damro score mmvp``: what a model's answers to MMVP are worth."""

from __future__ import annotations

import argparse

from damro.eval.choices import ChoiceScoring
from damro.eval.mmvp.files import load_answers
from damro.eval.mmvp.scoring import score_groups
from damro.eval.score_command import add_answers_parser, add_scoring_flags, show_groups


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add ``mmvp`` to the ``score`` commands.

    Args:
        subparsers: What ``add_subparsers`` of the ``score`` parser returned.

    Returns:
        The new parser; its namespace has `run` as ``run``.
    """
    parser = add_answers_parser(
        subparsers,
        "mmvp",
        "score answers to MMVP's pairs",
        "Score the answers of MMVP's own script (.jsonl with question_id, prompt, answer and response), the records of "
        "damro run mmvp, the samples of lmms-eval (mmvp) or the predictions of VLMEvalKit (MODEL_MMVP.xlsx).",
        run,
    )
    add_scoring_flags(parser, ChoiceScoring)
    return parser


def run(args: argparse.Namespace) -> int:
    """Score the answers and print the result.

    Args:
        args: What the parser of `add_parser` made of the command line.

    Returns:
        The exit code, 0.

    Raises:
        EvalError: A file is malformed, or a pair has more than two answers.
    """
    answers = [answer for path in args.answers for answer in load_answers(path)]
    show_groups("MMVP", score_groups(answers, args.choice), as_json=args.json)
    return 0
