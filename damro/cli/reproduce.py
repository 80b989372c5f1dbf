"""``damro reproduce pope|chair RUN...``: recorded runs beside the paper's table for their model."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from damro.cli.results import (
    add_partial_flag,
    add_scoring_flags,
    add_truth_flags,
    compare_loaded,
    print_notes,
    tell_unscored,
)
from damro.eval.errors import EvalError

if TYPE_CHECKING:
    from damro.eval.benchmark import Difference
    from damro.eval.report.published import Beside


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "reproduce",
        help="put recorded runs beside the paper's figures",
        description="Put recorded runs beside the paper's table for their model, and name what differs. The "
        "paper's setting: damro run pope --model llava-hf/llava-1.5-7b-hf --images DIR --methods sample damro@1 "
        "--max-new-tokens 1024 --dtype float32, scored with --rules vcd. A run that differs in what moves a figure is "
        "not comparable, and an interval wider than what DAMRO changes in the paper decides nothing.",
    )
    parser.add_argument("benchmark", help="whose runs they are; the paper has figures for pope and chair")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run: plain decoding, DAMRO, or both")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_partial_flag(parser)
    add_truth_flags(parser)
    add_scoring_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Scores, puts beside and prints."""
    from damro.eval.report.comparison import load_runs
    from damro.eval.report.published import load_published, paper_model, protocol_differences, put_beside
    from damro.eval.report.tables import group_notes, warnings
    from damro.eval.runs.form import OF_PROTOCOL, check_form

    loaded = load_runs(args.runs, partial=args.partial)
    benchmark, model, pinned = loaded.benchmark.name, loaded.model, loaded.records
    if benchmark != args.benchmark:
        raise EvalError(f"runs must be of {args.benchmark}, got runs of {benchmark}")
    for name, record in pinned.items():
        check_form(name, record, OF_PROTOCOL)
    comparison = compare_loaded(args, loaded, args.runs[0])
    rows = put_beside(comparison, pinned)
    differences = {entry.name: protocol_differences(pinned[entry.name], entry.whole) for entry in comparison.entries}
    source = load_published()["source"]
    if args.json:
        shown = [
            {
                "method": row.method,
                "metric": row.metric,
                "published": row.published,
                "measured": None if row.measured is None else row.measured.estimate,
                "ci": None if row.measured is None else row.measured.ends,
                "paper_effect": row.effect,
                "outcome": row.outcome,
            }
            for row in rows
        ]
        told = {
            "protocol_differences": {name: [one.text for one in found] for name, found in differences.items()},
            "not_comparable": {row.method: row.reasons for row in rows if row.reasons},
            "partial": {entry.name: entry.share for entry in comparison.entries if entry.share is not None},
        }
        print(json.dumps({"source": source, "model": model, "rows": shown, **told}, allow_nan=False))
    else:
        title = f"{benchmark.upper()}: {model} beside {paper_model(pinned[rows[0].method])} of {source}"
        _print(title, rows, differences)
        print_notes([*group_notes(comparison, comparison.baseline.whole.name), *warnings(comparison)])
    return tell_unscored(comparison)


def _print(title: str, rows: list[Beside], differences: dict[str, list[Difference]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from damro.eval.report.tables import show_value
    from damro.eval.report.text import to_rich

    table = Table(title=to_rich(title))
    for name in ("method", "metric", "paper", "measured", "paper in interval"):
        table.add_column(name, justify="left" if name in ("method", "metric") else "right")
    for row in rows:
        measured = to_rich(show_value(row.measured, row.measure.unit))
        table.add_row(to_rich(row.method), row.measure.title, f"{100 * row.published:.2f}", measured, row.outcome)
    console = Console()
    console.print(table)
    for name, found in differences.items():
        for harmless, head in (
            (False, "not comparable with the paper, since these differ"),
            (True, "other differences from the paper's protocol"),
        ):
            lines = [one.text for one in found if one.harmless == harmless]
            if lines:
                console.print(to_rich(f"{name}: {head}"), style="bold")
            for line in lines:
                console.print(to_rich(f"  {line}"))
    if any(row.outcome == "not decided" for row in rows):
        console.print("not decided: the interval is wider than what DAMRO changes in the paper")
