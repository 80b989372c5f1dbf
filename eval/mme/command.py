"""``damro score mme``: what a model's answer files are worth."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from damro.eval.errors import EvalError
from damro.eval.mme import MMEScore, score
from damro.eval.mme.benchmark import ALL, score_groups
from damro.eval.mme.files import load_files
from damro.eval.mme.scoring import CATEGORIES, SUMS
from damro.eval.score_command import add_answers_parser

if TYPE_CHECKING:
    from rich.table import Table

    from damro.eval.statistics import Interval


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add ``mme`` to the ``score`` commands.

    Args:
        subparsers: What ``add_subparsers`` of the ``score`` parser returned.

    Returns:
        The new parser; its namespace has `run` as ``run``.
    """
    parser = add_answers_parser(
        subparsers,
        "mme",
        "score yes/no answers to MME's questions",
        "Score answer files of MME: image, question, gold and answer a line, with tabs between. The category is the "
        "end of a file's name: existence.txt or my-model_existence.txt. Also answers of lmms-eval (*_samples_*.jsonl), "
        "VLMEvalKit (.xlsx, .tsv, .json), DAMRO's and LLaVA's scripts (.jsonl).",
        run,
        answers="answer files, or folders of them (*.txt)",
    )
    parser.add_argument(
        "--questions",
        metavar="DIR",
        help="MME's folder, for the gold labels of answers that have none (LLaVA's .jsonl)",
    )
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
    answers = [answer for path in answer_files(args.answers) for answer in load_files(path, args.questions)]
    result = score(answers)
    answers.sort(key=lambda answer: CATEGORIES.index(answer.category))  # whatever the order of the files
    groups = {group.name: group for group in score_groups(answers)}
    if args.json:
        print(json.dumps({**result.to_dict(), "ci": {name: one.to_dict()["ci"] for name, one in groups.items()}}))
    else:
        from rich.console import Console

        console = Console()
        console.print(_table(result, {name: group.intervals() for name, group in groups.items()}))
        console.print("95 %: bootstrap interval of the score, over images.", markup=False, highlight=False)
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


def _table(result: MMEScore, intervals: Mapping[str, Mapping[str, Interval | None]]) -> Table:
    from rich.table import Table

    table = Table(title="MME")
    table.add_column("category")
    for name in ("accuracy", "accuracy+", "score", "95 %", "other"):
        table.add_column(name, justify="right")
    for name, each in result.categories.items():
        shares = (f"{100 * each.accuracy:.2f} %", f"{100 * each.accuracy_plus:.2f} %")
        score_of = (f"{each.score:.2f}", _ends(intervals[name]["score"]))
        table.add_row(name, *shares, *score_of, str(each.other))
    table.add_section()
    sums = intervals.get(ALL, {})  # of one category there are none
    for name in (*SUMS, "total"):
        value = getattr(result, name)
        if value is not None:
            table.add_row(name, "", "", f"{value:.2f}", _ends(sums.get(name)))
    return table


def _ends(interval: Interval | None) -> str:
    ends = None if interval is None else interval.ends
    return "" if ends is None else f"{ends[0]:.0f}-{ends[1]:.0f}"
