"""``damro sweep BENCHMARK``: a method and its control under several strengths and numbers of patches."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from damro.cli.outputs import check_folder
from damro.cli.parser import whole_number
from damro.cli.results import add_scoring_flags, origin_of, print_notes, tell_unscored
from damro.cli.run import (
    Ran,
    add_answer_options,
    add_data_options,
    add_model_options,
    add_run_options,
    execute,
)
from damro.eval.benchmark import BENCHMARKS
from damro.eval.errors import EvalError
from damro.eval.records import write_whole
from damro.eval.runs.record import folder_name
from damro.eval.runs.request import TINY

_NAMES = 3
"""Columns of the table that say what a row is of: method, alpha, top-k."""
_NOTE = "Brackets: 95 % bootstrap interval over images; * marks a difference whose interval is without zero."


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    names = ", ".join(BENCHMARKS)
    parser = subparsers.add_parser(
        "sweep",
        help="a method and its control over alpha and top-k: a table and a figure",
        description="Run a benchmark by plain decoding, and by a method and its control under every alpha and top-k. "
        "Each is a run of damro run in a folder of its own, and goes on where it stopped when the command is given "
        "again. Writes sweep.csv, sweep.md and sweep.svg beside what damro run writes.",
    )
    parser.add_argument("benchmark", metavar="BENCHMARK", help=names)
    group = parser.add_argument_group("sweep")
    group.add_argument(
        "--alpha", nargs="+", type=float, default=[0, 0.5, 1, 2], dest="alphas", metavar="ALPHA",
        help="strengths of the contrast (default: 0 0.5 1 2)",
    )  # fmt: skip
    group.add_argument(
        "--top-k", nargs="+", type=whole_number, default=[], dest="top_ks", metavar="K",
        help="numbers of patches (default: the preset's)",
    )  # fmt: skip
    group.add_argument("--method", default="damro", help="NAME or NAME:PARAMETER=VALUE,... (default: damro)")
    group.add_argument("--control", default="random-k", help="beside it; none for none (default: random-k)")
    add_answer_options(group)
    add_data_options(parser)
    add_model_options(parser)
    add_run_options(parser)
    add_scoring_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs, scores, draws and prints."""
    from damro.eval.report.sweep import plan_points

    swept = [args.method] if args.control == "none" else [args.method, args.control]
    points = [point for text in swept for point in plan_points(text, args.alphas, args.top_ks)]
    methods = list(dict.fromkeys(["greedy", *(point.recipe.text for point in points)]))
    out = Path(args.out or Path("sweeps", args.benchmark, folder_name(args.model or TINY)))
    check_folder(out)
    if len({point.method for point in points}) < len(swept):
        raise EvalError(f"--control must be another method than --method, got {args.control!r}")
    told = {**vars(args), "methods": methods, "source": None, "out": str(out)}
    ran = execute(argparse.Namespace(**told))
    if ran is None:  # another process leads
        return 0
    _tell(args, ran, points, dict(zip(methods, ran.runs, strict=False)))
    return tell_unscored(ran.comparison)


def _tell(args: argparse.Namespace, ran: Ran, points: Any, names: dict[str, str]) -> None:
    """Writes and prints the table, and draws the figure."""
    from damro.eval.report.html import Picture, write_report
    from damro.eval.report.plots import draw_sweep, to_data_uri
    from damro.eval.report.sweep import find_points, to_csv, to_markdown, to_rows
    from damro.eval.report.tables import to_json, warnings
    from damro.figures import save_figure

    comparison, out = ran.comparison, ran.out
    plain, found = find_points(comparison, ran.benchmark, points, names)
    lines = to_rows(comparison.baseline.name, plain, found)
    title = f"{comparison.benchmark.upper()}, {comparison.model}: over alpha and top-k"
    figure = draw_sweep(comparison.baseline.name, plain, found, title)
    picture = Picture(to_data_uri(figure), f"{title}; the numbers are in the table.", title)
    write_whole(out / "sweep.csv", to_csv(found))
    write_whole(out / "sweep.md", to_markdown(lines))
    save_figure(figure, out / "sweep.svg")
    write_report(comparison, out / "report.html", origin_of(args, comparison, ran.runs, ran.open_image), [picture])
    if args.json:
        print(to_json(comparison))
    elif args.latex:
        from damro.eval.report.latex import to_tabular

        print(to_tabular(lines))
    else:
        _print(lines)
        print_notes([_NOTE, *warnings(comparison)])
    print(f"written to {out}: sweep.csv, sweep.md, sweep.svg, report.html", file=sys.stderr)


def _print(lines: list[list[str]]) -> None:
    from rich.console import Console

    from damro.eval.report.columns import fit_tables

    console = Console()
    for table in fit_tables("", lines[0], lines[1:], console.width, names=_NAMES):
        console.print(table)
