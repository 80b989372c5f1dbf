"""``damro scene N``: one of the embedded scenes as a picture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from damro.cli.outputs import check_file
from damro.errors import ParameterError


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "scene",
        help="write one of the embedded scenes as a PNG",
        description="Write one of the rendered scenes that the embedded models know, and tell what it shows. Any "
        "command that takes an image takes tiny:N for test scene N, too.",
    )
    parser.add_argument("number", type=int, metavar="N", help="of the test scene, from 0")
    parser.add_argument("--out", metavar="FILE", help="(default: scene-N.png)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draws and writes."""
    if args.number < 0:
        raise ParameterError(f"N must be the number of a scene, from 0 on, got {args.number}")
    target = Path(args.out or f"scene-{args.number}.png")
    check_file(target)
    from damro.tiny.scenes import scene

    shown = scene("test", args.number)
    shown.image.save(target, format="png")
    print(f"wrote {target}: {', '.join(sorted({thing.name for thing in shown.objects}))}")
    return 0
