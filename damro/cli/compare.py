"""``damro compare RUN RUN...``: recorded runs beside each other, on the samples that all of them answered."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from damro.cli.outputs import check_folder
from damro.cli.results import (
    add_cost_flag,
    add_partial_flag,
    add_scoring_flags,
    add_truth_flags,
    compare_loaded,
    print_comparison,
    show_costs,
    tell_unscored,
    write_tables,
)


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "compare",
        help="compare recorded runs, paired on the same samples",
        description="Score recorded runs and compare each with the first, on the samples that all of them answered.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run; the first is what others differ from")
    parser.add_argument("--out", metavar="DIR", help="also write scores.json, .csv, .md and report.html there")
    parser.add_argument("--json", action="store_true", help="print the scores as JSON")
    add_partial_flag(parser)
    add_cost_flag(parser, "also show what answers cost, of runs that were made with --cost")
    add_truth_flags(parser)
    add_scoring_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Scores, compares and prints."""
    from damro.eval.report.comparison import load_runs

    if args.out:
        check_folder(args.out)
    loaded = load_runs(args.runs, partial=args.partial)
    comparison = compare_loaded(args, loaded, args.runs[0])
    if args.cost:
        comparison = show_costs(comparison, dict(zip(loaded.runs, map(Path, args.runs), strict=True)))
    if args.out:
        write_tables(comparison, Path(args.out))
    print_comparison(comparison, as_json=args.json)
    return tell_unscored(comparison)
