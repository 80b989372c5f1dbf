"""``damro reproduce pope|chair RUN...``: recorded runs beside the paper's table for their model."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from damro.cli.results import add_scoring_flags, add_truth_flags, compare_loaded
from damro.eval.errors import EvalError

if TYPE_CHECKING:
    from damro.eval.report.published import Beside


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "reproduce",
        help="put recorded runs beside the paper's figures",
        description="Put recorded runs beside the paper's table for their model, and name what differs. The "
        "paper's setting: damro run pope --model llava-hf/llava-1.5-7b-hf --images DIR --methods sample damro@1 "
        "--max-new-tokens 1024",
    )
    parser.add_argument("benchmark", choices=("pope", "chair"))
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run: plain decoding, DAMRO, or both")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_truth_flags(parser)
    add_scoring_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Scores, puts beside and prints."""
    from damro.eval.report.comparison import load_runs
    from damro.eval.report.published import load_published, paper_model, protocol_differences, put_beside

    loaded = load_runs(args.runs)
    benchmark, model, pinned = loaded.benchmark.name, loaded.model, loaded.records
    if benchmark != args.benchmark:
        raise EvalError(f"runs must be of {args.benchmark}, got runs of {benchmark}")
    comparison = compare_loaded(args, loaded, args.runs[0])
    rows = put_beside(comparison, pinned)
    differences = {name: protocol_differences(record) for name, record in pinned.items()}
    source = load_published()["source"]
    if args.json:
        shown = [
            {
                "method": row.method,
                "metric": row.metric,
                "published": row.published,
                "measured": None if row.measured is None else row.measured.estimate,
                "ci": None if row.measured is None else [row.measured.low, row.measured.high],
            }
            for row in rows
        ]
        print(json.dumps({"source": source, "model": model, "rows": shown, "protocol_differences": differences}))
        return 0
    _print(f"{benchmark.upper()}: {model} beside {paper_model(pinned[rows[0].method])} of {source}", rows, differences)
    return 0


def _print(title: str, rows: list[Beside], differences: dict[str, list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from damro.eval.report.tables import show_value

    table = Table(title=title)
    for name in ("method", "metric", "paper", "measured", "paper in interval"):
        table.add_column(name, justify="left" if name in ("method", "metric") else "right")
    for row in rows:
        inside = {True: "yes", False: "no", None: "-"}[row.inside]
        measured = show_value(row.measured, row.measure.unit).replace("[", "\\[")
        table.add_row(row.method, row.measure.title, f"{100 * row.published:.2f}", measured, inside)
    console = Console()
    console.print(table)
    for name, lines in differences.items():
        console.print(f"{name}: what differs from the paper's protocol", style="bold")
        for line in lines:
            console.print(f"  {line}", markup=False, highlight=False)
