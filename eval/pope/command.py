"""``damro score pope``: what a model's recorded answers are worth."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from damro.eval.errors import EvalError
from damro.eval.pope import POPE_SPLITS, RULES
from damro.eval.pope.benchmark import PopeScoring
from damro.eval.pope.joining import BY_KEY, Part, join_files
from damro.eval.pope.labels import correct_pairs, load_labels
from damro.eval.score_command import add_answers_parser, add_scoring_flags

if TYPE_CHECKING:
    from rich.table import Table

_ALL = "all"
_SIDE_BY_SIDE = 2
"""So many columns fit 80 characters with intervals beside the values; with more they stand below."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add ``pope`` to the ``score`` commands.

    Args:
        subparsers: What ``add_subparsers`` of the ``score`` parser returned.

    Returns:
        The new parser; its namespace has `run` as ``run``.
    """
    parser = add_answers_parser(
        subparsers,
        "pope",
        "score yes/no answers to POPE questions",
        "Score recorded yes/no answers to POPE questions: of this program, of lmms-eval (*_samples_*.jsonl), "
        "VLMEvalKit (.xlsx, .tsv, .json), LLaVA's and DAMRO's scripts. Files are .json, .jsonl, .csv, .tsv, .gz of "
        "them, .xlsx or .parquet. With --json, several splits come with their mean, and --rule all gives a list.",
        run,
        answers="answers under 'answer', 'text', 'output' or 'response': a file a split, or one with all of them",
    )
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument(
        "--questions",
        nargs="+",
        metavar="FILE",
        help="questions with question_id, image, text and label, a file a split",
    )
    asked.add_argument(
        "--split",
        nargs="+",
        choices=POPE_SPLITS,
        metavar="SPLIT",
        help=f"shipped questions: {', '.join(POPE_SPLITS)}; neither where the answers have labels of their own",
    )
    parser.add_argument(
        "--by-order",
        action="store_true",
        help="join answers to questions by nothing but their order; the result says so",
    )
    parser.add_argument(
        "--rule",
        choices=(*RULES, _ALL),
        default="pope",
        help="how an answer's text becomes yes or no (default: pope, the official one); all: a column for each",
    )
    add_scoring_flags(parser, PopeScoring, ("labels", "labels_complete"))
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
    parts = join_files(args.split or args.questions or (), args.answers, by_order=args.by_order)
    changes: list[dict[str, int]] = [{} for _ in parts]
    if args.labels is not None:
        labels = load_labels(args.labels, complete=args.labels_complete)
        for number, part in enumerate(parts):
            pairs, changes[number] = correct_pairs(part.pairs, labels)
            parts[number] = part._replace(pairs=pairs)
    rules = RULES if args.rule == _ALL else (args.rule,)
    results = [_score(parts, changes, rule) for rule in rules]
    if args.json:
        told = [result["splits"][parts[0].name] if len(parts) == 1 else result for result in results]
        print(json.dumps(told if args.rule == _ALL else told[0], allow_nan=False))
    else:
        _print(parts, results)
    return 0


def _score(parts: Sequence[Part], changes: Sequence[Mapping[str, int]], rule: str) -> dict[str, Any]:
    """The scores of each split under one rule and, of several, their mean, all with intervals under ``ci``."""
    from damro.eval.pope.groups import mean_group, score_group

    groups = [score_group(part.name, part.pairs, rule, changed) for part, changed in zip(parts, changes, strict=True)]
    splits = {
        part.name: {**group.scores, "joined": part.joined, "ci": group.to_dict()["ci"]}
        for part, group in zip(parts, groups, strict=True)
    }
    if len(groups) == 1:
        return {"splits": splits}
    mean = mean_group(groups)
    return {"rule": rule, "splits": splits, "mean": {**mean.scores, "ci": mean.to_dict()["ci"]}}


def _print(parts: Sequence[Part], results: Sequence[Mapping[str, Any]]) -> None:
    """One split: rules are columns. Several: a table a rule, splits and their mean are columns."""
    from rich.console import Console

    console = Console()
    if len(parts) == 1:
        scores = [result["splits"][parts[0].name] for result in results]
        console.print(_table("POPE", {str(one["rule"]): one for one in scores}))
    else:
        for result in results:
            console.print(_table(f"POPE, rule {result['rule']}", {**result["splits"], "mean": result["mean"]}))
    console.print("Beside or below a value: its 95 % bootstrap interval over images.", markup=False, highlight=False)
    for part in parts:
        if part.joined != BY_KEY:
            console.print(f"{part.name}: answers joined by {part.joined}.", markup=False, highlight=False)


def _table(title: str, columns: Mapping[str, Mapping[str, Any]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title)
    table.add_column("")
    for name in columns:
        table.add_column(Text(name), justify="right")  # of a file, which may be called as markup is written
    first = next(iter(columns.values()))
    for name in first:
        if name not in ("rule", "ci", "joined"):
            below = len(columns) > _SIDE_BY_SIDE
            table.add_row(name, *(Text(_cell(one, name, below=below)) for one in columns.values()))
    return table


def _cell(scores: Mapping[str, Any], name: str, *, below: bool) -> str:
    value, ends = scores.get(name), scores["ci"].get(name)
    if value is None:
        return "-" if name in scores else ""
    if not isinstance(value, float):
        return str(value)
    if ends is None:
        return f"{100 * value:.2f} %"
    low, high = (f"{100 * end:.1f}" for end in ends)
    return f"{100 * value:.2f} %" + (f"\n{low}-{high}" if below else f" [{low}, {high}]")
