"""``damro score pope``: what a model's recorded answers are worth."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from damro.eval.pope import POPE_SPLITS, RULES, PopeScore, align, load_answers, load_questions, score_pairs

if TYPE_CHECKING:
    from rich.table import Table

_ALL = "all"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add ``pope`` to the ``score`` commands.

    Args:
        subparsers: What ``add_subparsers`` of the ``score`` parser returned.

    Returns:
        The new parser; its namespace has `run` as ``run``.
    """
    parser = subparsers.add_parser(
        "pope",
        help="score yes/no answers to POPE questions",
        description="Score recorded yes/no answers to POPE questions. Files are .json, .jsonl, or .gz of them.",
    )
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--questions", metavar="FILE", help="questions with question_id, image, text and label")
    asked.add_argument(
        "--split", choices=POPE_SPLITS, metavar="SPLIT", help=f"shipped questions: {', '.join(POPE_SPLITS)}"
    )
    parser.add_argument(
        "--answers", metavar="FILE", required=True, help="answers under 'answer', 'text', 'output' or 'response'"
    )
    parser.add_argument(
        "--rule",
        choices=(*RULES, _ALL),
        default="pope",
        help="how an answer's text becomes yes or no (default: pope, the official one); all: a column for each",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, fractions unrounded (a list with --rule all)"
    )
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Score the answers and print the result.

    Args:
        args: What the parser of `add_parser` made of the command line.

    Returns:
        The exit code, 0.

    Raises:
        EvalError: A file is malformed, or questions and answers do not match.
    """
    questions = load_questions(args.split or args.questions)
    pairs = align(questions, load_answers(args.answers))
    rules = RULES if args.rule == _ALL else (args.rule,)
    scores = [score_pairs(pairs, rule) for rule in rules]
    if args.json:
        results = [result.to_dict() for result in scores]
        print(json.dumps(results if args.rule == _ALL else results[0]))
    else:
        from rich.console import Console

        Console().print(_table(scores))
    return 0


def _table(scores: list[PopeScore]) -> Table:
    # Rules are columns: five of them fit a terminal of 80 characters, twelve measures would not.
    from rich.table import Table

    table = Table(title="POPE")
    table.add_column("rule")
    for result in scores:
        table.add_column(result.rule, justify="right")
    rows = [result.to_dict() for result in scores]
    for name in rows[0]:
        if name != "rule":
            table.add_row(name, *(_cell(row[name]) for row in rows))
    return table


def _cell(value: int | float | str | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.2f} %" if isinstance(value, float) else str(value)
