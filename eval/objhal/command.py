"""``damro score objhal``: which objects of detailed descriptions are not in the images, by a judge's lists of them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from damro.eval.chair.coco import ImageId, build_objects, image_key, read_objects
from damro.eval.chair.matchers import MATCHERS, load_matcher
from damro.eval.errors import AlignmentError, DataFormatError, EvalError
from damro.eval.formats.captions import read_captions
from damro.eval.groups import Note
from damro.eval.judged.command import add_judge_flags, check_judge_flags, judge_answers, read_recorded
from damro.eval.objhal.benchmark import ObjhalScoring, read_answers, to_answer
from damro.eval.objhal.judging import MAX_TOKENS, SCRIPT, ObjhalAnswer, ask_about, load_prompt
from damro.eval.objhal.scoring import ReadAnswer, score_groups
from damro.eval.objhal.words import load_words, parse_names
from damro.eval.records import Record
from damro.eval.score_command import add_answers_parser, show_groups

_NAMED, _TRUE = "mscoco_generated_words", "mscoco_gt_words"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add ``objhal`` to the ``score`` commands.

    Args:
        subparsers: What ``add_subparsers`` of the ``score`` parser returned.

    Returns:
        The new parser; its namespace has `run` as ``run``.
    """
    parser = add_answers_parser(
        subparsers,
        "objhal",
        "score descriptions of Object HalBench by the objects that a judge extracts",
        "Score descriptions as RLHF-V's scripts write them (image_id, prompt, text), or the records of damro run "
        "objhal. Without --judgements this package's matcher reads them. A file that the official script writes, "
        "hall_*.json, holds the objects already and is scored as it is.",
        run,
    )
    truth = parser.add_mutually_exclusive_group()
    truth.add_argument(
        "--objects", metavar="FILE", help="{image_id: [object, ...]} (default: the shipped file of COCO 2014 train+val)"
    )
    truth.add_argument(
        "--annotations",
        metavar="DIR",
        help="folder with COCO's instances_*.json and captions_*.json, to make the objects from as the official script "
        "does; kept there as JSON",
    )
    parser.add_argument(
        "--tagger",
        choices=("nltk", "spacy"),
        default="nltk",
        help="what tells nouns in the names that a judge extracts: nltk (default), or spacy for the official script's "
        "en_core_web_trf",
    )
    parser.add_argument(
        "--matcher",
        choices=("auto", *MATCHERS),
        default="auto",
        help="what finds objects in descriptions without a judge, and in the captions of --annotations (default: nltk "
        "where its data is present, else builtin)",
    )
    add_judge_flags(parser, SCRIPT)
    return parser


def run(args: argparse.Namespace) -> int:
    """Have the objects extracted where that is asked for, score the descriptions and print the result.

    Args:
        args: What the parser of `add_parser` made of the command line.

    Returns:
        The exit code, 0.

    Raises:
        EvalError: A file is malformed, an image is described twice or has no ground truth, a description has no
            judgement, or the judge cannot be asked.
    """
    check_judge_flags(args)
    records = [record for path in args.answers for record in read_captions(path, (_NAMED, _TRUE))]
    whole = [record for record in records if "error" not in record.fields]
    notes = _failed(len(records) - len(whole))
    if any(_NAMED in record.fields for record in whole):
        _refuse_unheeded(args)
        notes.insert(0, Note("judge", "that of the official script's file"))
        show_groups("Object HalBench", score_groups(_of_official(whole), notes), as_json=args.json)
        return 0
    answers = [to_answer(fields, where) for where, fields in whole]
    judgements = read_recorded(args) if args.judge is None else _extract(args, answers)
    objects = _build(Path(args.annotations), args.matcher) if args.annotations else read_objects(args.objects)
    scoring = ObjhalScoring(tagger=args.tagger, matcher=args.matcher)
    read, told = read_answers(answers, objects, judgements, scoring)
    show_groups("Object HalBench", score_groups(read, [*told, *notes]), as_json=args.json)
    return 0


def _refuse_unheeded(args: argparse.Namespace) -> None:
    for name in ("objects", "annotations", "judgements", "judge"):
        if getattr(args, name) is not None:
            raise EvalError(
                f"--{name} must be left out where the official script's file holds the objects that were found and "
                f"those of the images, got {getattr(args, name)!r}: leave it out, or give the descriptions alone"
            )


def _failed(count: int) -> list[Note]:
    return [Note("failed", count, "samples of the run have no answer", doubtful=True)] if count else []


def _extract(args: argparse.Namespace, answers: Sequence[ObjhalAnswer]) -> Any:
    prompt = load_prompt(args.judge_prompt)
    return judge_answers(args, ask_about(answers, prompt), prompt, max_tokens=MAX_TOKENS, check=parse_names)


def _of_official(records: Sequence[Record]) -> list[ReadAnswer]:
    """Descriptions of the official script's file, with the objects that it found.

    Raises:
        DataFormatError: A record lacks something.
        AlignmentError: An image is described twice.
    """
    read: dict[str, ReadAnswer] = {}
    for where, fields in records:
        text, named, true = (fields.get(name) for name in ("caption", _NAMED, _TRUE))
        sound = isinstance(named, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in named)
        if not sound or not isinstance(text, str) or not isinstance(true, list):
            raise DataFormatError(
                f"{where}: must have 'caption', {_NAMED!r} and {_TRUE!r} as the official script writes them, got keys "
                f"{ascii(sorted(map(str, fields)))[:120]}"
            )
        key = image_key(fields.get("image_id", ""))
        if key in read:
            raise AlignmentError(f"{where}: answers must be one an image, got a further one for {key}: give each once")
        read[key] = ReadAnswer(key, text, [str(name) for _, name in named or ()], frozenset(map(str, true)))
    return list(read.values())


def _build(folder: Path, matcher: str) -> Mapping[ImageId, Collection[str]]:
    """Ground truth from annotation files, their captions read by the words of Object HalBench."""
    words = load_words()
    reads = load_matcher(matcher, words)
    cache = folder / f"damro_objhal_objects.{reads.name}.json" if os.access(folder, os.W_OK) else None
    return build_objects(folder, reads, vocabulary=words, cache=cache)
