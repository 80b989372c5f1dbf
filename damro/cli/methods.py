"""``damro methods``: what there is to decode by, with every parameter and its source."""

from __future__ import annotations

import argparse
from typing import Any

from damro.cli.listing import print_listing
from damro.methods import METHODS, Method


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "methods",
        help="list the methods, their parameters and sources",
        description="List the methods. A method is named with its parameters, damro:alpha=0.5,top_k=20, and behind an "
        "at sign with the temperature to sample at, damro:alpha=0.5@1.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


_OF_NOBODY = ("control", "what model.generate does")
"""Sources that are no paper."""


def run(args: argparse.Namespace) -> int:
    """Prints the list."""
    print_listing("method", dict(METHODS), as_json=args.json, more=_price)
    return 0


def _price(method: type[Method]) -> dict[str, str]:
    """What a method costs beside plain decoding, and where it does not work."""
    passes, looks, memory = method.cost
    told = {
        "cost": f"language passes a token +{passes:g}, vision passes an image +{looks:g}, memory: {memory}",
        "does not work with": ", ".join(method.limits) or "nothing known",
        "authors' code": method.code or "none",
    }
    if method.source in _OF_NOBODY:
        del told["authors' code"]
    return told
