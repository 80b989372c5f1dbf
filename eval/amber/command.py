"""``damro score amber``: what a model's recorded answers to AMBER are worth."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from damro.eval.amber.groups import AmberAnswer, score_groups
from damro.eval.amber.questions import AmberQuestion, load_questions, load_words
from damro.eval.errors import AlignmentError, DataFormatError
from damro.eval.formats.tables import read_table
from damro.eval.groups import Group
from damro.eval.samples import first_few

if TYPE_CHECKING:
    from rich.table import Table

_ANSWER_KEYS = ("response", "answer", "output", "text")
_ID_KEYS = ("id", "question_id")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add ``amber`` to the ``score`` commands.

    Args:
        subparsers: What ``add_subparsers`` of the ``score`` parser returned.

    Returns:
        The new parser; its namespace has `run` as ``run``.
    """
    parser = subparsers.add_parser(
        "amber",
        help="score descriptions and yes/no answers to AMBER's questions",
        description="Score answers to AMBER: CHAIR, Cover, Hal and Cog of descriptions; accuracy, precision, recall "
        "and F1 of yes/no answers, with no as the positive one; the AMBER score, (100 - CHAIR + F1) / 2. Beside each "
        "value stands what the official script prints.",
    )
    parser.add_argument(
        "--answers", nargs="+", metavar="FILE", required=True, help="answers, {id, response}, .json, .jsonl or tables"
    )
    parser.add_argument(
        "--annotations",
        metavar="DIR",
        required=True,
        help="folder of the official files, data of github.com/junyangwang0410/AMBER (Apache-2.0)",
    )
    parser.add_argument(
        "--yes-no",
        choices=("exact", "start"),
        default="exact",
        help="exact (default): Yes and No are answers and nothing else is, as in the script; start: yes or no as the "
        "first word",
    )
    parser.add_argument(
        "--similarity",
        choices=("exact", "spacy"),
        default="exact",
        help="exact (default): words of AMBER's list and their synonyms; spacy: words of alike vectors too, as in the "
        "script (needs spaCy and en_core_web_lg)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, fractions unrounded")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Score the answers and print the result.

    Args:
        args: What the parser of `add_parser` made of the command line.

    Returns:
        The exit code, 0.

    Raises:
        EvalError: A file is malformed or missing, an answer is of no question, or what reads descriptions is missing.
    """
    folder = Path(args.annotations)
    answers = load_answers(args.answers, load_questions(folder))
    groups = score_groups(answers, load_words(folder), similarity=args.similarity, yes_no=args.yes_no)
    if args.json:
        print(json.dumps({group.name: group.to_dict() for group in groups}, allow_nan=False))
        return 0
    from rich.console import Console

    console = Console()
    console.print(_table(groups))
    for note in {note.name: note for group in groups for note in group.notes if note.name != "unread"}.values():
        console.print(f"{note.name}: {note.value}", markup=False, highlight=False)
    unread = sum(
        group.scores.get("unread", 0) for group in groups if group.name in ("existence", "attribute", "relation")
    )
    if unread:
        console.print(
            f"WARNING: {unread} answers are neither a yes nor a no to the rule, and wrong",
            markup=False,
            highlight=False,
        )
    return 0


def load_answers(paths: Sequence[str], questions: Sequence[AmberQuestion]) -> list[AmberAnswer]:
    """Read files of answers and join them to their questions by id; questions may be left without an answer.

    Raises:
        DataFormatError: A file is malformed; names the file and the line.
        AlignmentError: A question is answered twice, or there is none of an id.
    """
    by_id = {asked.question_id: asked for asked in questions}
    found: dict[str, AmberAnswer] = {}
    unknown: list[str] = []
    for path in paths:
        for where, fields in read_table(path):
            identifier = next((str(fields[key]) for key in _ID_KEYS if fields.get(key) is not None), None)
            text = next((fields[key] for key in _ANSWER_KEYS if key in fields), None)
            if identifier is None or not isinstance(text, str):
                raise DataFormatError(
                    f"{where}: an answer to AMBER must have its question's number under 'id' and a text under "
                    f"'response', got keys {ascii(sorted(map(str, fields)))[:160]}"
                )
            if identifier in found:
                raise AlignmentError(f"{where}: a question must be answered once, {identifier!r:.60} is answered twice")
            if identifier in by_id:
                found[identifier] = AmberAnswer(by_id[identifier], text)
            else:
                unknown.append(identifier)
    if unknown:
        raise AlignmentError(
            f"--answers must be of AMBER's questions, got {len(unknown)} of other ids ({first_few(unknown)}): give the "
            "--annotations that they belong to"
        )
    return list(found.values())


def _table(groups: Sequence[Group]) -> Table:
    from rich.table import Table

    table = Table(title="AMBER")
    table.add_column("")
    for name in ("metric", "value", "95 %", "script"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for group in groups:
        intervals = group.intervals()
        for name, measure in group.measures.items():
            value, interval = group.scores[name], intervals[name]
            scale, unit = (100, " %") if measure.unit else (1, "")
            ends = None if interval is None else interval.ends
            shown = "-" if value is None else f"{scale * value:.2f}{unit}"
            spread = "" if ends is None else f"{scale * ends[0]:.1f}-{scale * ends[1]:.1f}"
            row = (measure.label, shown, spread, str(group.scores["script"][measure.label]))
            table.add_row(group.name if name == next(iter(group.measures)) else "", *row)
        table.add_section()
    return table
