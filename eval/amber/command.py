"""``damro score amber``: what a model's recorded answers to AMBER are worth."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from damro.eval.amber.benchmark import AmberScoring
from damro.eval.amber.files import load_answers
from damro.eval.amber.groups import score_groups
from damro.eval.amber.questions import load_words
from damro.eval.groups import Group
from damro.eval.score_command import add_answers_parser, add_scoring_flags

if TYPE_CHECKING:
    from rich.table import Table


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add ``amber`` to the ``score`` commands.

    Args:
        subparsers: What ``add_subparsers`` of the ``score`` parser returned.

    Returns:
        The new parser; its namespace has `run` as ``run``.
    """
    parser = add_answers_parser(
        subparsers,
        "amber",
        "score descriptions and yes/no answers to AMBER's questions",
        "Score answers to AMBER: CHAIR, Cover, Hal and Cog of descriptions; accuracy, precision, recall and F1 of "
        "yes/no answers, with no as the positive one; the AMBER score, (100 - CHAIR + F1) / 2. Beside each value "
        "stands what the official script prints. Also samples of lmms-eval (amber_g) and predictions of VLMEvalKit "
        "(MODEL_AMBER.xlsx).",
        run,
        answers="answers, {id, response}, .json, .jsonl or tables",
    )
    parser.add_argument(
        "--annotations",
        metavar="DIR",
        help="folder of the official files, data of github.com/junyangwang0410/AMBER (Apache-2.0); VLMEvalKit's "
        "predictions need none",
    )
    add_scoring_flags(parser, AmberScoring)
    return parser


def run(args: argparse.Namespace) -> int:
    """Score the answers and print the result.

    Args:
        args: What the parser of `add_parser` made of the command line.

    Returns:
        The exit code, 0.

    Raises:
        EvalError: A file is malformed or missing, an answer is of no question, or what reads descriptions is missing.
    """
    folder = None if args.annotations is None else Path(args.annotations)
    words = None if folder is None else load_words(folder)
    answers = load_answers(args.answers, folder)
    groups = score_groups(answers, words, similarity=args.similarity, yes_no=args.yes_no)
    if args.json:
        print(json.dumps({group.name: group.to_dict() for group in groups}, allow_nan=False))
        return 0
    from rich.console import Console

    console = Console()
    console.print(_table(groups))
    for note in {note.name: note for group in groups for note in group.notes if note.name != "unread"}.values():
        console.print(f"{note.name}: {note.value}", markup=False, highlight=False)
    unread = sum(
        group.scores.get("unread", 0) for group in groups if group.name in ("existence", "attribute", "relation")
    )
    if unread:
        console.print(
            f"WARNING: {unread} answers are neither a yes nor a no to the rule, and wrong",
            markup=False,
            highlight=False,
        )
    return 0


def _table(groups: Sequence[Group]) -> Table:
    from rich.table import Table

    table = Table(title="AMBER")
    table.add_column("")
    for name in ("metric", "value", "95 %", "script"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for group in groups:
        intervals = group.intervals()
        for name, measure in group.measures.items():
            value, interval = group.scores[name], intervals[name]
            scale, unit = (100, " %") if measure.unit else (1, "")
            ends = None if interval is None else interval.ends
            shown = "-" if value is None else f"{scale * value:.2f}{unit}"
            spread = "" if ends is None else f"{scale * ends[0]:.1f}-{scale * ends[1]:.1f}"
            row = (measure.label, shown, spread, str(group.scores["script"][measure.label]))
            table.add_row(group.name if name == next(iter(group.measures)) else "", *row)
        table.add_section()
    return table
