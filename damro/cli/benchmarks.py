"""``damro benchmarks``: what there is to run, with every parameter and its source."""

from __future__ import annotations

import argparse
from typing import Any

from damro.cli.listing import print_listing
from damro.eval.benchmark import BENCHMARKS


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "benchmarks",
        help="list the benchmarks, their parameters and sources",
        description="List the benchmarks. Their parameters are options of damro run.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the list."""
    print_listing("benchmark", dict(BENCHMARKS), as_json=args.json)
    return 0
