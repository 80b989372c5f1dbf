"""``damro score chair``: which objects in captions are not in the images."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from damro.eval.chair.benchmark import ChairScoring
from damro.eval.chair.coco import ImageId, Progress, build_objects, read_objects
from damro.eval.chair.groups import EQUAL_LENGTH, ReadCaptions, cut_captions, drop_cut_sentences, score_group
from damro.eval.chair.matchers import Matcher, load_matcher
from damro.eval.chair.scoring import align, parse_captions
from damro.eval.chair.texts import shortest
from damro.eval.chair.vocabulary import Vocabulary, load_vocabulary
from damro.eval.errors import EvalError
from damro.eval.formats.captions import CAPTION_KEYS, IMAGE_KEYS, read_captions
from damro.eval.groups import Group, Note
from damro.eval.records import write_whole
from damro.eval.score_command import add_scoring_flags

if TYPE_CHECKING:
    from rich.table import Table

    from damro.eval.statistics import Interval

_ROWS = (
    ("CHAIRs  captions with a hallucinated object", "chair_s"),
    ("CHAIRi  mentions that are hallucinated", "chair_i"),
    ("CHAIRi unique  each object once per caption", "chair_i_unique"),
    ("Recall  objects in the images that are named", "recall"),
    ("Precision  objects named that are in the images", "precision"),
    ("F1  of precision and recall", "f1"),
    ("Len  tokens, punctuation counted", "mean_tokens"),
    ("Words  between spaces", "mean_length"),
)


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
        description="CHAIR, recall and length of recorded captions. Files are .json, .jsonl, .csv, .tsv, .gz of them, "
        ".xlsx or .parquet: records, {image_id: caption}, or imgToEval of the original script.",
    )
    parser.add_argument(
        "--captions",
        nargs="+",
        metavar="FILE",
        required=True,
        help=f"captions with their image under {', '.join(map(repr, IMAGE_KEYS))} and the text under "
        f"{', '.join(map(repr, CAPTION_KEYS))}; several files of the same images are also scored at equal length",
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
    add_scoring_flags(parser, ChairScoring, ("matcher", "drop_cut_sentence"))
    parser.add_argument(
        "--vocabulary", metavar="FILE", help="words and their synonyms to look for, instead of COCO's 80 objects"
    )
    parser.add_argument(
        "--records",
        metavar="FILE",
        help="of one file of captions: write one JSON line per caption: its mentions, and the hallucinated ones",
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
    if args.records and len(args.captions) > 1:
        raise EvalError(
            f"--records must come with one file of captions, got {len(args.captions)}: score them one by one"
        )
    files = {path: parse_captions(read_captions(path)) for path in args.captions}
    notes: dict[str, list[Note]] = {path: [] for path in files}
    if args.drop_cut_sentence:
        for path, captions in files.items():
            files[path], note = drop_cut_sentences(captions)
            notes[path].append(note)
    words = load_vocabulary(args.vocabulary)
    matcher = load_matcher(args.matcher, words)
    if args.matcher == "auto" and matcher.name != "nltk":
        print(
            f"damro: NLTK's data was not found, so the matcher is {matcher.name}; "
            "'damro setup-nltk' downloads the data for the matcher nltk",
            file=sys.stderr,
        )
    objects = _build(Path(args.annotations), matcher, words) if args.annotations else read_objects(args.objects)
    truth = {path: align(captions, objects, words) for path, captions in files.items()}
    read = {
        path: ReadCaptions(captions, [matcher.read(caption.text) for caption in captions], matcher.name)
        for path, captions in files.items()
    }
    whole = {path: score_group(one, truth[path], notes[path]) for path, one in read.items()}
    if args.records:
        (only,) = whole.values()
        _write_records(Path(args.records), [json.dumps(record.to_dict()) + "\n" for record in only.captions])
    cut = _at_equal_length(read, truth)
    if args.json:
        print(json.dumps(_to_dict(whole, cut), allow_nan=False))
    else:
        _print(whole, cut)
    return 0


def _at_equal_length(
    read: Mapping[str, ReadCaptions], truth: Mapping[str, Mapping[str, frozenset[str]]]
) -> dict[str, Group]:
    """The captions of each image up to the length of the shortest; nothing for one file, or files of other images."""
    lengths = [
        {caption.image_id: reading.n_tokens for caption, reading in zip(one.captions, one.readings, strict=True)}
        for one in read.values()
    ]
    if len(lengths) == 1:
        return {}
    if any(of_file.keys() != lengths[0].keys() for of_file in lengths):
        print("damro: the files are of different images, so they are not scored at equal length", file=sys.stderr)
        return {}
    limits = shortest(lengths)
    return {
        path: score_group(cut_captions(one, limits), truth[path], name=EQUAL_LENGTH, beside=True)
        for path, one in read.items()
    }


def _to_dict(whole: Mapping[str, Group], cut: Mapping[str, Group]) -> dict[str, Any]:
    told = {path: _scores(group) for path, group in whole.items()}
    if len(told) == 1:
        return next(iter(told.values()))
    at_equal_length = {path: _scores(group) for path, group in cut.items()} or None
    return {"files": told, "equal_length": at_equal_length}


def _scores(group: Group) -> dict[str, Any]:
    return group.to_dict()


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


def _print(whole: Mapping[str, Group], cut: Mapping[str, Group]) -> None:
    from rich.console import Console

    console = Console()
    console.print(_table("CHAIR", whole))
    if cut:
        console.print(_table("CHAIR at equal length: each image's captions up to the shortest", cut))
    console.print("Beside or below a value: its 95 % bootstrap interval over images.", markup=False, highlight=False)


def _table(title: str, groups: Mapping[str, Group]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, show_header=len(groups) > 1)
    table.add_column(justify="left")
    for path in groups:
        table.add_column(Text(Path(path).name), justify="right")
    below = len(groups) > 1
    intervals = [group.intervals() for group in groups.values()]
    for text, name in _ROWS:
        label = text.partition("  ")[0] if below else text  # there is room for what it means beside one column
        unit = next(iter(groups.values())).measures[name].unit
        table.add_row(label, *(Text(_cell(each[name], unit, below=below)) for each in intervals))
    table.add_section()
    table.add_row("mentions", *(str(group.scores["n_mentions"]) for group in groups.values()))
    for notes in zip(*(group.notes for group in groups.values()), strict=True):  # captions, matcher, ...
        table.add_row(notes[0].name, *(str(note.value) for note in notes))
    return table


def _cell(value: Interval | None, unit: str, *, below: bool) -> str:
    if value is None:
        return "-"
    shown = f"{100 * value.estimate:.2f} %" if unit else f"{value.estimate:.1f}"
    if value.ends is None:
        return shown
    low, high = (f"{(100 if unit else 1) * end:.1f}" for end in value.ends)
    return shown + (f"\n{low}-{high}" if below else f" [{low}, {high}]")
