"""The command line: parse, call, print. The one place that prints, and the root that puts the rooms together.

Every command is a module with ``add_parser(subparsers)`` and ``run(args) -> int``. None of them imports torch when it
is imported, so that ``damro --help`` and the scorers start at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from damro._version import __version__
from damro.cli.parser import Parser
from damro.decoding.errors import DecodingError
from damro.eval.benchmark import BENCHMARKS
from damro.eval.errors import EvalError

_COMMANDS = (
    "demo",
    "answer",
    "attention",
    "explain",
    "app",
    "run",
    "compare",
    "reproduce",
    "judge",
    "bench",
    "methods",
    "benchmarks",
    "setup_nltk",
)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = Parser(
        prog="damro",
        description="Find the outlier visual tokens of an LVLM, decode against them, and measure what changed.",
    )
    parser.add_argument("--version", action="version", version=f"damro {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    score = commands.add_parser("score", help="score recorded answers or captions; runs no model")
    scorers = score.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True)
    for benchmark in BENCHMARKS.values():
        if benchmark.command is not None:
            import_module(benchmark.command).add_parser(scorers)
    for name in _COMMANDS:
        import_module(f"damro.cli.{name}").add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        0, or 2 after an error that the user can mend (its message goes to stderr), or 130 after Ctrl-C.
    """
    try:
        args = build_parser().parse_args(argv)
        return int(args.run(args))
    except (DecodingError, EvalError) as error:
        return _tell(str(error))
    except KeyboardInterrupt:
        print("damro: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has left. Point stdout elsewhere, so that the interpreter's last flush is quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno is None:  # raised by a program, and no word of the system about a file
            raise
        if error.filename is None:
            return _tell(f"the system must allow what the command does, refused: {error.strerror}; mend that")
        return _tell(f"path {str(error.filename)!r} must be usable, got: {error.strerror}; mend it or give another")


def _tell(message: str) -> int:
    """Prints an error as one line, and returns its exit code."""
    print(f"damro: {' '.join(message.splitlines())}", file=sys.stderr)
    return 2
