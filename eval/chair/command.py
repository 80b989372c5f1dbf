"""``damro score chair``: which objects in captions are not in the images."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from damro.eval.chair import CAPTION_KEYS, ChairScore, score
from damro.eval.chair.coco import ImageId, Progress, build_objects, read_objects
from damro.eval.chair.matchers import MATCHERS, Matcher, load_matcher
from damro.eval.chair.vocabulary import Vocabulary, load_vocabulary
from damro.eval.records import read_records, write_whole

if TYPE_CHECKING:
    from rich.table import Table


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add ``chair`` to the ``score`` commands.

    Args:
        subparsers: What ``add_subparsers`` of the ``score`` parser returned.

    Returns:
        The new parser; its namespace has `run` as ``run``.
    """
    parser = subparsers.add_parser(
        "chair",
        help="score captions for objects that are not in the image",
        description="CHAIR and recall of recorded captions. Files are .json, .jsonl, or .gz of them.",
    )
    parser.add_argument(
        "--captions",
        metavar="FILE",
        required=True,
        help=f"captions with image_id (or image, a file name) and the text under {', '.join(map(repr, CAPTION_KEYS))}",
    )
    truth = parser.add_mutually_exclusive_group()
    truth.add_argument(
        "--objects", metavar="FILE", help="{image_id: [object, ...]} (default: the shipped file of COCO 2014 train+val)"
    )
    truth.add_argument(
        "--annotations",
        metavar="DIR",
        help="folder with COCO's instances_*.json and captions_*.json, to make the objects from; kept there as JSON",
    )
    parser.add_argument(
        "--matcher",
        choices=("auto", *MATCHERS),
        default="auto",
        help="what finds the objects in a caption (default: nltk where its data is present, else builtin)",
    )
    parser.add_argument(
        "--vocabulary", metavar="FILE", help="words and their synonyms to look for, instead of COCO's 80 objects"
    )
    parser.add_argument(
        "--records", metavar="FILE", help="write one JSON line per caption: its mentions, and the hallucinated ones"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, fractions unrounded")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Score the captions and print the result.

    Args:
        args: What the parser of `add_parser` made of the command line.

    Returns:
        The exit code, 0.

    Raises:
        EvalError: A file is malformed, captions and ground truth do not match, or NLTK's data was asked for and is
            missing.
    """
    captions = read_records(args.captions)
    words = load_vocabulary(args.vocabulary)
    matcher = load_matcher(args.matcher, words)
    if args.matcher == "auto" and matcher.name != "nltk":
        print(
            f"damro: NLTK's data was not found, so the matcher is {matcher.name}; "
            "'damro setup-nltk' downloads the data for the matcher nltk",
            file=sys.stderr,
        )
    objects = _build(Path(args.annotations), matcher, words) if args.annotations else read_objects(args.objects)
    result = score(captions, objects, matcher, words)
    if args.records:
        _write_records(Path(args.records), [json.dumps(record.to_dict()) + "\n" for record in result.records])
    if args.json:
        print(json.dumps(result.to_dict()))
    else:
        from rich.console import Console

        Console().print(_table(result))
    return 0


def _write_records(path: Path, lines: list[str]) -> None:
    """In one step; a device or a pipe (/dev/stdout) must not be replaced by a file."""
    if path.exists() and not path.is_file():
        path.write_text("".join(lines), encoding="utf-8")
    else:
        write_whole(path, lines)


def _build(folder: Path, matcher: Matcher, words: Vocabulary) -> Mapping[ImageId, list[str]]:
    """Ground truth from annotation files, with a bar on stderr."""
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    cache = folder / f"damro_objects.{matcher.name}.json" if os.access(folder, os.W_OK) else None
    with Bars(console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        progress: Progress = show
        return build_objects(folder, matcher, vocabulary=words, cache=cache, progress=progress)


def _table(result: ChairScore) -> Table:
    from rich.table import Table

    table = Table(title="CHAIR", show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    for label, value in (
        ("CHAIRs  captions with a hallucinated object", result.chair_s),
        ("CHAIRi  mentions that are hallucinated", result.chair_i),
        ("CHAIRi  each object once per caption", result.chair_i_unique),
        ("Recall  objects in the images that are named", result.recall),
    ):
        table.add_row(label, "-" if value is None else f"{100 * value:.2f} %")
    table.add_section()
    table.add_row("captions", str(result.n_captions))
    table.add_row("mentions", str(result.n_mentions))
    table.add_row("mean length in words", f"{result.mean_length:.1f}")
    table.add_row("matcher", result.matcher)
    return table
