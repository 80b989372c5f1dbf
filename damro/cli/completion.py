"""``damro completion SHELL``: what has a shell complete commands, options and their values."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

SHELLS = ("bash", "zsh", "tcsh")
_FILES = ("FILE", "IMAGE", "image")
_FOLDERS = ("DIR", "RUN", "RUNS")


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "completion",
        help="print a script with which a shell completes damro's options (needs damro[completion])",
        description='Print a script for a shell. bash: eval "$(damro completion bash)" in ~/.bashrc; zsh: damro '
        "completion zsh > a file _damro in a folder of $fpath.",
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the script."""
    from damro.cli import build_parser
    from damro.vision.dinov2_small import MissingExtraError

    try:
        import shtab
    except ImportError as error:
        raise MissingExtraError(
            "damro completion needs the package shtab, which is not installed; pip install 'damro[completion]'"
        ) from error
    parser = build_parser()
    for action in _actions(parser):
        if action.metavar in _FILES or action.dest in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar in _FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    print(shtab.complete(parser, args.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every option of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
