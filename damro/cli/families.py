"""``damro families``: every image-text model type of the transformers at hand, and how it is served."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "families",
        help="list every image-text model type of transformers, and how it is served",
        description="List every image-text model type of the transformers that is installed: served by a module of its "
        "own or as every model (generic), its patches ranked by the attention of [CLS] or by the attention they "
        "receive, compared with a reference in the tests or not, and what does not work. It takes a quarter of a "
        "minute, since every model class is looked at.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the list."""
    from damro.decoding.families.survey import RANKED, survey

    if args.json:
        for one in survey():
            print(json.dumps(one._asdict()))
        return 0
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="image-text models")
    for title in ("model type", "served", "ranked by", "tested", "what to know"):
        table.add_column(title, no_wrap=title != "what to know")
    for one in survey():
        cells = (one.model_type, one.how, RANKED[one.ranked], "yes" if one.tested else "", one.note)
        table.add_row(*map(escape, cells), style="dim" if one.how == "refused" else None)
    Console().print(table)
    return 0
