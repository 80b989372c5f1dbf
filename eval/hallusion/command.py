"""``damro score hallusion``: what a model's answers to HallusionBench are worth."""

from __future__ import annotations

import argparse

from damro.eval.hallusion.files import load_answers
from damro.eval.hallusion.questions import check_once
from damro.eval.hallusion.scoring import score_groups
from damro.eval.score_command import add_answers_parser, show_groups


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add ``hallusion`` to the ``score`` commands.

    Args:
        subparsers: What ``add_subparsers`` of the ``score`` parser returned.

    Returns:
        The new parser; its namespace has `run` as ``run``.
    """
    return add_answers_parser(
        subparsers,
        "hallusion",
        "score yes/no answers to HallusionBench",
        "Score answers in the form of the official HallusionBench_result.json: the records of HallusionBench.json with "
        "the answer under 'model_prediction' (or 'answer'); also the records of damro run hallusion, the samples of "
        "lmms-eval (hallusion_bench_image) and the predictions of VLMEvalKit (MODEL_HallusionBench.xlsx).",
        run,
    )


def run(args: argparse.Namespace) -> int:
    """Score the answers and print the result.

    Args:
        args: What the parser of `add_parser` made of the command line.

    Returns:
        The exit code, 0.

    Raises:
        EvalError: A file is malformed, or answers a question twice.
    """
    answers = [answer for path in args.answers for answer in load_answers(path)]
    check_once((answer.asked for answer in answers), ", ".join(args.answers))
    show_groups("HallusionBench", score_groups(answers), as_json=args.json)
    return 0
