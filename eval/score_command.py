"""What ``damro score`` does for benchmarks whose answer files hold what is scored: one way in, one table out."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from damro.eval.benchmark import Group, Measure

if TYPE_CHECKING:
    from rich.table import Table

    from damro.eval.statistics import Interval


def add_answers_parser(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    about: str,
    description: str,
    run: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    """Add a benchmark to the ``score`` commands, with ``--answers`` and ``--json``.

    Args:
        subparsers: What ``add_subparsers`` of the ``score`` parser returned.
        name: Of the benchmark.
        about: A line of help.
        description: What files are read.
        run: What the command does.
    """
    parser = subparsers.add_parser(name, help=about, description=description)
    parser.add_argument("--answers", nargs="+", metavar="FILE", required=True, help="answer files")
    parser.add_argument("--json", action="store_true", help="print one JSON object, fractions unrounded")
    parser.set_defaults(run=run)
    return parser


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

    from damro.eval.report.text import to_line

    console = Console()
    console.print(_table(title, groups))
    console.print("Brackets: 95 % bootstrap interval.", markup=False, highlight=False)
    for group in groups:
        told = ", ".join(f"{note.name} {note.value}" for note in group.notes)
        if told:
            console.print(to_line(f"{group.name}: {told}"), markup=False, highlight=False)
    doubtful = {note.name: note.meaning for group in groups for note in group.notes if note.doubtful}
    for name, meaning in doubtful.items():
        console.print(f"WARNING: {name}: {meaning}", markup=False, highlight=False)


def _table(title: str, groups: Sequence[Group]) -> Table:
    from rich.table import Table

    from damro.eval.report.text import to_rich

    measures = groups[0].measures
    table = Table(title=title)
    table.add_column("")
    for measure in measures.values():
        table.add_column(measure.title, justify="right")
    for group in groups:
        found = group.intervals()
        table.add_row(to_rich(group.name), *(to_rich(_cell(found[name], measures[name])) for name in measures))
    return table


def _cell(value: Interval | None, measure: Measure) -> str:
    """A value with its interval, shares in percent."""
    if value is None:
        return "-"
    scale, digits = (100 if measure.unit else 1), measure.digits
    ends = "" if value.ends is None else " [{:.{n}f}, {:.{n}f}]".format(*(scale * end for end in value.ends), n=digits)
    return f"{scale * value.estimate:.2f}{ends}"
