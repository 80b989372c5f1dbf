"""``damro score pope``: what a model's recorded answers are worth."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from damro.eval.errors import EvalError
from damro.eval.pope import POPE_SPLITS, RULES, align, load_answers, load_questions, score_pairs
from damro.eval.pope.labels import correct_pairs, load_labels

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
    parser.add_argument("--labels", metavar="FILE", help="corrected labels, with exclusions")
    parser.add_argument(
        "--labels-complete", action="store_true", help="exclude what the file of labels does not name (RePOPE)"
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
    if args.labels_complete and args.labels is None:
        raise EvalError("--labels-complete must come with --labels, got no file: give it, or leave this out")
    questions = load_questions(args.split or args.questions)
    pairs = align(questions, load_answers(args.answers))
    changes: dict[str, int] = {}
    if args.labels is not None:
        pairs, changes = correct_pairs(pairs, load_labels(args.labels, complete=args.labels_complete))
    rules = RULES if args.rule == _ALL else (args.rule,)
    results = [{**score_pairs(pairs, rule).to_dict(), **changes} for rule in rules]
    if args.json:
        print(json.dumps(results if args.rule == _ALL else results[0]))
    else:
        from rich.console import Console

        Console().print(_table(results))
    return 0


def _table(results: Sequence[Mapping[str, int | float | str | None]]) -> Table:
    # Rules are columns: five of them fit a terminal of 80 characters, twelve measures would not.
    from rich.table import Table

    table = Table(title="POPE")
    table.add_column("rule")
    for result in results:
        table.add_column(str(result["rule"]), justify="right")
    for name in results[0]:
        if name != "rule":
            table.add_row(name, *(_cell(result[name]) for result in results))
    return table


def _cell(value: int | float | str | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.2f} %" if isinstance(value, float) else str(value)
