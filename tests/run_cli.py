"""One command of the command line by its module: ``python run_cli.py MODULE ARGUMENTS``, as the root would run it."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from damro.decoding.errors import DecodingError
from damro.eval.errors import EvalError


def call(module: str, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    import_module(f"damro.cli.{module}").add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args([module, *arguments])
    return int(args.run(args))


def code_of(words: Sequence[str]) -> int:
    """The exit code of the whole command line, whichever part of it ends the program."""
    from damro.cli import main

    try:
        return main(words)
    except SystemExit as stopped:
        return int(stopped.code or 0)


def main(argv: Sequence[str]) -> int:
    try:
        return call(*argv)
    except (DecodingError, EvalError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
