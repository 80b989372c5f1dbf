"""``damro explain IMAGE "prompt"``: a page that shows what DAMRO changed, and why."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from damro.cli.options import add_max_pixels, add_method_flags, add_model_options, given_flags, read_values
from damro.cli.outputs import check_file, tell_unknown_words
from damro.cli.parser import filled_text, whole_number
from damro.decoding.errors import ParameterError
from damro.eval.records import write_whole
from damro.methods import Damro


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("explain", help="a page that shows what DAMRO changed in an answer, word by word")
    parser.add_argument("image", help="an image file, or tiny:N for embedded scene N")
    parser.add_argument(
        "prompt", type=filled_text, help="the question or instruction; the model's chat template is put around it"
    )
    parser.add_argument("--out", default="report.html", metavar="FILE", help="(default: report.html)")
    parser.add_argument("--max-new-tokens", type=whole_number, default=128, metavar="N", help="(default: 128)")
    parser.add_argument(
        "--layers",
        type=int,
        nargs="+",
        metavar="L",
        help="layers of the language model whose attention is averaged, negative from the end (default: all)",
    )
    about = "what the picture shows, of COCO's 80 names; what answers add to it is crossed out (known of tiny:N)"
    parser.add_argument("--objects", nargs="+", metavar="NAME", help=about)
    add_max_pixels(parser)
    add_model_options(parser)
    add_method_flags(parser, ("damro",))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Answers twice, and writes the page."""
    target = Path(args.out)
    check_file(target)
    from damro.images import MAX_PIXELS, load_image
    from damro.loading import load_model
    from damro.pages.explain import explain_answers
    from damro.pages.explain_page import render_page

    method = Damro(**read_values(Damro, given_flags(args, {"damro": Damro}), ParameterError))
    image = load_image(args.image, max_pixels=args.max_pixels or MAX_PIXELS)
    model, processor = load_model(
        args.model,
        device=args.device,
        dtype=args.dtype,
        attn_implementation=args.attn_implementation,
        revision=args.revision,
    )
    tell_unknown_words(processor, args.prompt)
    explanation = explain_answers(
        model,
        processor,
        image,
        args.prompt,
        name=str(args.model).rstrip("/").rsplit("/", 1)[-1],
        **method.to_record(),
        max_new_tokens=args.max_new_tokens,
        layers=args.layers,
        judge=_judge(args.image, args.objects),
    )
    write_whole(target, render_page(explanation))
    print(f"greedy: {explanation.greedy.text}")
    print(f" damro: {explanation.damro.text}")
    print(f"wrote {target}")
    return 0


def _judge(image: str, objects: Sequence[str] | None) -> Any:
    """Tells what of an answer is in the picture; None where nobody knows what it shows.

    Raises:
        ParameterError: a name is none of COCO's.
    """
    from damro.eval.chair.matchers import load_matcher
    from damro.images import scene_number
    from damro.tiny.captions import COCO_IDS
    from damro.tiny.scenes import scene

    unknown = [name for name in objects or () if name not in COCO_IDS]
    if unknown:
        raise ParameterError(f"--objects must be names of COCO's 80 objects, got {unknown[0]!r}; leave it out")
    number = scene_number(image)
    if objects is None and number is None:
        return None
    truth = set(objects) if objects is not None else {thing.name for thing in scene("test", number or 0).objects}
    matcher = load_matcher("builtin")
    return lambda text: [(found.start, found.end, found.name in truth) for found in matcher.find(text)]
