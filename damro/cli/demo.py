"""``damro demo``: the whole job on the embedded models, offline."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from damro.cli.outputs import check_folder

if TYPE_CHECKING:
    from damro.eval.demo.demo import Demo
    from damro.eval.demo.summary import Line
    from damro.eval.demo.trial import Progress


_NARROW = 78
"""Columns that the table takes."""


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "demo",
        help="the whole job on the embedded models: POPE and CHAIR of DAMRO and its controls, with pictures",
        description="Caption embedded scenes and ask about them, plainly, with DAMRO, its controls and by sampling, "
        "then again with a model that was built to have the flaw; score all of it and write metrics.json and "
        "report.html. Needs no download.",
    )
    parser.add_argument("--out", default="demo", metavar="DIR", help="(default: demo)")
    parser.add_argument("--scenes", type=int, default=200, metavar="N", help="(default: 200)")
    parser.add_argument("--full", action="store_true", help="print every table and sentence, as report.html has them")
    parser.add_argument("--json", action="store_true", help="print metrics.json instead of tables")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs, writes and prints."""
    from damro.eval.demo.demo import run_demo
    from damro.eval.errors import EvalError

    if args.scenes < 10:
        raise EvalError(f"--scenes must be at least 10 to make questions of, got {args.scenes}")
    check_folder(args.out)
    with _progress() as progress:
        demo = run_demo(args.out, args.scenes, progress=progress)
    if args.json:
        print(json.dumps(demo.metrics))
    elif args.full:
        _print_all(demo)
    else:
        _print_summary(demo)
    place = Path(args.out)
    print(f"written: {place / 'metrics.json'}, {place / 'report.html'} ({demo.metrics['seconds']} s)", file=sys.stderr)
    return 0


def _print_summary(demo: Demo) -> None:
    """The verdict in three sentences, and one table that fits into 80 columns."""
    from rich.console import Console

    from damro.eval.demo.summary import MEASURES, lines, sentences

    console = Console()
    for sentence in sentences(demo):
        console.print(f"{sentence}\n", markup=False, highlight=False)
    if console.width < _NARROW:
        _print_lines(console, lines(demo), MEASURES)
    else:
        console.print(_table(lines(demo), MEASURES))
    console.print(
        "In percent; below, the difference to greedy in points, with its 95 % interval; * marks one without zero. "
        "--full and report.html tell the rest.",
        markup=False,
        highlight=False,
    )


def _table(rows: Sequence[Line], titles: Sequence[str]) -> Any:
    """A row a method: values, and below them by how much they differ from greedy search."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("method")
    for title in titles:
        table.add_column(title, no_wrap=True)
    model = ""
    for line in rows:
        if line.model != model:
            model = line.model
            table.add_row(f"[bold]{model}[/]")
        below = [f"\n{found}" for found in line.differences] or [""] * len(line.values)
        table.add_row(line.method, *map("".join, zip(line.values, below, strict=True)))
    return table


def _print_lines(console: Any, rows: Sequence[Line], titles: Sequence[str]) -> None:
    """The same without a table, where one would be cut."""
    for line in rows:
        console.print(f"{line.model}, {line.method}", markup=False, highlight=False, style="bold")
        for title, value, found in zip(titles, line.values, line.differences or [""] * len(titles), strict=True):
            console.print(f"  {title} {value} {found}".rstrip(), markup=False, highlight=False)


def _print_all(demo: Demo) -> None:
    from rich.console import Console

    from damro.cli.results import print_comparison
    from damro.eval.demo.demo import lead

    for comparison in (demo.pope, demo.chair, demo.control.pope, demo.control.chair):
        print_comparison(comparison, as_json=False)
    console = Console()
    for sentence in lead(demo):
        console.print(f"\n{sentence}", markup=False, highlight=False)


@contextmanager
def _progress() -> Iterator[Progress | None]:
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True)) as bar:
        task = bar.add_task("demo", total=None)

        def update(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield update
