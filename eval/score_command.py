"""What ``damro score`` does for benchmarks whose answer files hold what is scored: one way in, one table out."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from damro.eval.benchmark import Group, Measure, Scoring
from damro.parameters import parameters

if TYPE_CHECKING:
    from damro.eval.statistics import Interval


def add_answers_parser(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    about: str,
    description: str,
    run: Callable[[argparse.Namespace], int],
    *,
    answers: str = "answer files",
) -> argparse.ArgumentParser:
    """Add a benchmark to the ``score`` commands, with ``--answers`` and ``--json``.

    Args:
        subparsers: What ``add_subparsers`` of the ``score`` parser returned.
        name: Of the benchmark.
        about: A line of help.
        description: What files are read.
        run: What the command does.
        answers: Help of ``--answers``.
    """
    parser = subparsers.add_parser(name, help=about, description=description)
    parser.add_argument("--answers", nargs="+", metavar="FILE", required=True, help=answers)
    parser.add_argument("--json", action="store_true", help="print one JSON object, fractions unrounded")
    parser.set_defaults(run=run)
    return parser


def add_scoring_flags(
    parser: argparse.ArgumentParser, scoring: type[Scoring], names: Collection[str] | None = None
) -> None:
    """Add a flag for every parameter of a benchmark's scoring, as ``damro run`` has them.

    Args:
        parser: Of the command.
        scoring: The class.
        names: Those to add; None adds all.
    """
    for one in parameters(scoring):
        if names is not None and one.name not in names:
            continue
        default = "" if one.default in (None, False) else f" (default: {one.default})"
        options: dict[str, Any] = {"help": f"{one.help.rstrip('.')}{default}", "default": one.default}
        if one.kind is bool:
            parser.add_argument(one.flag, action="store_true", **options)
        elif one.choices:
            parser.add_argument(one.flag, choices=one.choices, **options)
        else:
            parser.add_argument(one.flag, metavar="FILE", **options)


def show_groups(title: str, groups: Sequence[Group], *, as_json: bool) -> None:
    """Print scores with their intervals and what a reader must know of them.

    Args:
        title: What the benchmark is called.
        groups: What was scored; all have the same metrics.
        as_json: Print one JSON object, a key a group, in place of a table.
    """
    if as_json:
        print(json.dumps({group.name: group.to_dict() for group in groups}, allow_nan=False))
        return
    from rich.console import Console

    from damro.eval.report.columns import fit_tables
    from damro.eval.report.text import to_line

    console, measures = Console(), groups[0].measures
    rows = [
        [group.name, *(_cell(found[name], one) for name, one in measures.items())]
        for group in groups
        for found in (group.intervals(),)
    ]
    header = ["", *(one.title for one in measures.values())]
    for table in fit_tables(title, header, rows, console.width):
        console.print(table)
    console.print("Beside or below a value: its 95 % bootstrap interval.", markup=False, highlight=False)
    for group in groups:
        told = ", ".join(f"{note.name} {note.value}" for note in group.notes)
        if told:
            console.print(to_line(f"{group.name}: {told}"), markup=False, highlight=False)
    doubtful = {note.name: note.meaning for group in groups for note in group.notes if note.doubtful}
    for name, meaning in doubtful.items():
        console.print(f"WARNING: {name}: {meaning}", markup=False, highlight=False)


def _cell(value: Interval | None, measure: Measure) -> str:
    """A value with its interval, shares in percent."""
    if value is None:
        return "-"
    scale, digits = (100 if measure.unit else 1), measure.digits
    shown = f"{scale * value.estimate:.2f}"
    if value.ends is None:
        return shown
    low, high = (f"{scale * end:.{digits}f}" for end in value.ends)
    return f"{shown} [{low}, {high}]"
