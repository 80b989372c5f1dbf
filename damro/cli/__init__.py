"""The command line: parse, call, print. The one place that prints, and the root that puts the rooms together.

Every command is a module with ``add_parser(subparsers)`` and ``run(args) -> int``. None of them imports torch when it
is imported, so that ``damro --help`` and the scorers start at once.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from damro._version import __version__
from damro.cli.parser import Parser
from damro.decoding.errors import DecodingError
from damro.eval.benchmark import BENCHMARKS
from damro.eval.errors import EvalError

_BUG = 70
"""Exit code after an error of this program's own: EX_SOFTWARE of BSD's sysexits."""

_COMMANDS = (
    "demo",
    "answer",
    "attention",
    "explain",
    "app",
    "serve",
    "diagnose",
    "run",
    "compare",
    "reproduce",
    "judge",
    "bench",
    "methods",
    "benchmarks",
    "families",
    "steer",
    "scene",
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
        0, or 2 after an error that the user can mend (its message goes to stderr), or 70 after one of this program's
        own (its traceback goes to stderr, and a line that says so), or 130 after Ctrl-C.
    """
    _be_quiet()
    try:
        args = build_parser().parse_args(argv)
        code = int(args.run(args))
        sys.stdout.flush()  # a full disk is told here, and not by the interpreter when it ends
        return code
    except (DecodingError, EvalError) as error:
        return _tell(str(error))
    except KeyboardInterrupt:
        print("damro: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader (head, less) has left
        _leave_stdout()
        return 0
    except Exception as error:
        told = _everyday(error)
        try:
            sys.stdout.flush()
        except OSError:
            _leave_stdout()
        return _tell_bug(error) if told is None else _tell(told)


def _leave_stdout() -> None:
    """Points stdout elsewhere, so that the interpreter's last flush of what cannot be written is quiet."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _be_quiet() -> None:
    """Leaves stderr to errors: no bars of others where it is no terminal, and of their warnings the errors alone.

    What the caller has in the environment counts. Answers are printed in whatever letters stdout has.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _everyday(error: Exception) -> str | None:
    """What to tell of an error that the system is the cause of; None of any other."""
    out = isinstance(error, RuntimeError) and ("can't allocate memory" in str(error) or "out of memory" in str(error))
    if isinstance(error, MemoryError) or out:  # torch's, which may not be loaded
        told = str(error) or "there is none left"
        return f"memory must suffice, got: {told}; take a smaller image, batch or model, or another dtype"
    if not isinstance(error, OSError) or error.errno is None:  # without, it is no word of the system about a file
        return None
    if error.filename is None:
        return f"the system must allow what the command does, refused: {error.strerror}; mend that"
    return f"path {str(error.filename)!r} must be usable, got: {error.strerror}; mend it or give another"


def _tell(message: str) -> int:
    """Prints an error as one line, and returns its exit code."""
    print(f"damro: {' '.join(message.splitlines())}", file=sys.stderr)
    return 2


def _tell_bug(error: Exception) -> int:
    """Prints a traceback and whose fault it is, and returns the exit code."""
    traceback.print_exception(error)
    print(f"damro: this is a bug of damro {__version__}; please report it with this traceback", file=sys.stderr)
    return _BUG
