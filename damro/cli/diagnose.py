"""``damro diagnose MODEL``: whether DAMRO can help a model, in minutes, and why."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from damro.cli.options import add_flags, add_loading_options, add_max_pixels, given_flags, load_from, read_values
from damro.cli.outputs import check_folder
from damro.cli.parser import whole_number
from damro.decoding.errors import ParameterError
from damro.diagnosis.settings import Settings
from damro.eval.errors import EvalError
from damro.tiny import checkpoint_of

if TYPE_CHECKING:
    from damro.diagnosis import AnnotatedImage
    from damro.diagnosis.diagnose import Diagnosis
    from damro.diagnosis.reading import Progress
    from damro.eval.chair.vocabulary import Vocabulary

_LIMIT = 200
_FLAGS = {"diagnose": Settings}


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "diagnose",
        help="tell in minutes whether DAMRO can help a model",
        description="Look once at each of a few hundred images: whether the vision tower has outliers, whether the "
        "language model follows them, what they know of what it hallucinates, and what room there is for a contrast. "
        "Writes diagnosis.json and diagnosis.html.",
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "model", metavar="MODEL", help="folder, Hub name, or 'tiny' ('tiny:llava_next', ...) for an embedded model"
    )
    add_loading_options(model)
    data = parser.add_argument_group("data", "an embedded model needs none: it is shown embedded scenes")
    data.add_argument("--images", metavar="DIR", help="a folder of annotated images")
    data.add_argument(
        "--objects",
        metavar="FILE",
        help="what they show: COCO's instances, which tell where objects are, or {image_id: [object, ...]} (default: "
        "the shipped objects of COCO 2014)",
    )
    data.add_argument("--vocabulary", metavar="FILE", help="words for objects and their synonyms, if not COCO's")
    data.add_argument(
        "--limit", type=whole_number, default=_LIMIT, metavar="N", help=f"at most N images (default: {_LIMIT})"
    )
    add_max_pixels(data)
    measures = parser.add_argument_group("measurements")
    add_flags(measures, _FLAGS, leave_out=("seed",))
    measures.add_argument(
        "--seed", type=int, default=Settings.seed, help=f"of everything drawn at random (default: {Settings.seed})"
    )
    parser.add_argument("--out", default="diagnosis", metavar="DIR", help="(default: diagnosis)")
    parser.add_argument("--json", action="store_true", help="print diagnosis.json instead of sentences")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Looks, writes and prints."""
    settings = Settings(**read_values(Settings, given_flags(args, _FLAGS), ParameterError), seed=args.seed)
    check_folder(args.out)
    _check_together(args)
    vocabulary = _vocabulary(args)
    images = _images(args, vocabulary)
    from damro.diagnosis.diagnose import diagnose
    from damro.diagnosis.page import render_page
    from damro.eval.records import write_whole

    model, processor = load_from(args)
    with _show_progress() as progress:
        found = diagnose(model, processor, images, settings, vocabulary=vocabulary, progress=progress)
    place = Path(args.out)
    text = json.dumps({"model": args.model, **found.to_json()}, indent=2, allow_nan=False)
    write_whole(place / "diagnosis.html", render_page(found, str(args.model).rstrip("/").rsplit("/", 1)[-1]))
    write_whole(place / "diagnosis.json", text + "\n")
    if args.json:
        print(text)
    else:
        _print(found)
    print(f"written: {place / 'diagnosis.json'}, {place / 'diagnosis.html'}", file=sys.stderr)
    return 0


def _vocabulary(args: argparse.Namespace) -> Vocabulary | None:
    if args.vocabulary is None:
        return None
    from damro.eval.chair.vocabulary import load_vocabulary

    return load_vocabulary(args.vocabulary)


def _images(args: argparse.Namespace, vocabulary: Vocabulary | None) -> Sequence[AnnotatedImage]:
    """Annotated images of the folder, or embedded scenes."""
    from damro.diagnosis import folder_images, scene_images

    if args.images is None:
        return scene_images(args.limit)
    return folder_images(
        args.images,
        args.objects,
        limit=args.limit,
        seed=args.seed,
        vocabulary=vocabulary,
        max_pixels=args.max_pixels,
    )


def _check_together(args: argparse.Namespace) -> None:
    """Refuses options that need a folder of images and have none.

    Raises:
        EvalError: a model that is not embedded has no images, or there are objects or words without a folder.
    """
    if args.images is not None:
        return
    for name in ("objects", "vocabulary"):
        if getattr(args, name) is not None:
            raise EvalError(
                f"--{name} must come with --images, got {getattr(args, name)!r} alone: give the folder of the images"
            )
    if checkpoint_of(args.model) is None:
        raise EvalError(
            f"--images must be the folder of annotated images for a model that is not embedded, got none for "
            f"{args.model!r}: give a folder such as COCO val2014, or take the model 'tiny'"
        )


def _print(found: Diagnosis) -> None:
    from rich.console import Console

    from damro.diagnosis.words import caveats, sections, summary

    console = Console()

    def show(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    for line in (*summary(found), *caveats(found)):
        show(line)
    for heading, lines in sections(found).items():
        show(f"\n{heading}")
        for line in lines:
            show(f"- {line}")
    console.print()


@contextmanager
def _show_progress() -> Iterator[Progress | None]:
    """A bar on stderr; nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True)) as bar:
        task = bar.add_task("images", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
