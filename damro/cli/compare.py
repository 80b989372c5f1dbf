"""``damro compare RUN RUN...``: recorded runs beside each other, on the samples that all of them answered."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from damro.cli.run import add_scoring_options, make_scoring, print_comparison, write_tables
from damro.eval.runs.request import load_run, to_request


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
    parser.add_argument("--objects", metavar="FILE", help="chair: ground truth instead of the shipped one")
    add_scoring_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Scores, compares and prints."""
    from damro.eval.report.comparison import compare, load_runs

    benchmark, model, runs = load_runs(args.runs)
    comparison = compare(benchmark, model, runs, make_scoring(args, benchmark, truth_of(args, benchmark)))
    if args.out:
        write_tables(comparison, Path(args.out))
    print_comparison(comparison, as_json=args.json)
    return 0


def truth_of(args: argparse.Namespace, benchmark: str) -> Any:
    """The objects that captions are scored with: of the embedded scenes, or of COCO."""
    if benchmark != "chair":
        return {}
    from damro.eval.chair.coco import read_objects
    from damro.eval.samples import caption_truth

    request = to_request(load_run(args.runs[0]))
    if args.objects or request.objects:
        return read_objects(args.objects or request.objects)
    return caption_truth(request)
