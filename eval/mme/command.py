"""``damro score mme``: what a model's answer files are worth."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from damro.eval.errors import EvalError
from damro.eval.mme import MMEScore, load_answers, score

if TYPE_CHECKING:
    from rich.table import Table


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add ``mme`` to the ``score`` commands.

    Args:
        subparsers: What ``add_subparsers`` of the ``score`` parser returned.

    Returns:
        The new parser; its namespace has `run` as ``run``.
    """
    parser = subparsers.add_parser(
        "mme",
        help="score yes/no answers to MME's questions",
        description="Score answer files of MME: image, question, gold and answer a line, with tabs between. The "
        "category is the end of a file's name: existence.txt or my-model_existence.txt.",
    )
    parser.add_argument(
        "--answers", nargs="+", metavar="PATH", required=True, help="answer files, or folders of them (*.txt)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, scores unrounded")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Score the answers and print the result.

    Args:
        args: What the parser of `add_parser` made of the command line.

    Returns:
        The exit code, 0.

    Raises:
        EvalError: A file is malformed, a folder holds none, or an image has not its two questions.
    """
    result = score(answer for path in answer_files(args.answers) for answer in load_answers(path))
    if args.json:
        print(json.dumps(result.to_dict()))
    else:
        from rich.console import Console

        Console().print(_table(result))
    return 0


def answer_files(paths: Sequence[str]) -> list[Path]:
    """Return the files that were given, and those ending in .txt of the folders.

    Raises:
        EvalError: A folder holds no such file.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        found = sorted(path.glob("*.txt")) if path.is_dir() else [path]
        if not found:
            raise EvalError(f"--answers must be answer files or folders of them, got {str(path)!r} with no *.txt in it")
        files += found
    return files


def _table(result: MMEScore) -> Table:
    from rich.table import Table

    table = Table(title="MME")
    table.add_column("category")
    for name in ("accuracy", "accuracy+", "score", "other", "questions", "images"):
        table.add_column(name, justify="right")
    for name, each in result.categories.items():
        shares = (f"{100 * each.accuracy:.2f} %", f"{100 * each.accuracy_plus:.2f} %", f"{each.score:.2f}")
        table.add_row(name, *shares, *map(str, (each.other, each.n_questions, each.n_images)))
    table.add_section()
    if result.hallucination is not None:
        table.add_row("hallucination", "", "", f"{result.hallucination:.2f}")
    table.add_row("total", "", "", f"{result.total:.2f}")
    return table
