"""``damro compare RUN RUN...``: recorded runs beside each other, on the samples that all of them answered."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from damro.cli.outputs import check_folder
from damro.cli.results import (
    add_cost_flag,
    add_form_flags,
    add_partial_flag,
    add_scoring_flags,
    add_truth_flags,
    compare_loaded,
    find_images,
    origin_of,
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
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="folder of a run, or of runs; the first is what others differ from, of a folder greedy or the oldest",
    )
    parser.add_argument("--out", metavar="DIR", help="also write scores.json, .csv, .md and report.html there")
    add_form_flags(parser)
    add_partial_flag(parser)
    add_cost_flag(parser, "also show what answers cost, of runs that were made with --cost")
    add_truth_flags(parser)
    add_scoring_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Scores, compares and prints."""
    from damro.eval.report.comparison import find_runs, load_runs

    if args.out:
        check_folder(args.out)
    folders = [run for path in args.runs for run in find_runs(path)]
    loaded = load_runs(folders, partial=args.partial)
    comparison = compare_loaded(args, loaded, str(folders[0]))
    if args.cost:
        comparison = show_costs(comparison, dict(zip(loaded.runs, map(Path, folders), strict=True)))
    if args.out:
        images = find_images(next(iter(loaded.records.values())))
        write_tables(comparison, Path(args.out), origin_of(args, comparison, loaded.records, images))
    print_comparison(comparison, as_json=args.json, as_latex=args.latex)
    return tell_unscored(comparison)
