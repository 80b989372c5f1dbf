"""``damro steer``: directions for the method vti, from images with two captions each."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from damro.cli.options import add_max_pixels, add_model_options, load_from
from damro.cli.outputs import check_file
from damro.cli.parser import whole_number

_KEYS = ("image", "question", "value", "h_value")


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    about = "compute the directions of the method vti and write them into a safetensors file"
    parser = subparsers.add_parser("steer", help=about, description=about)
    parser.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help="JSON lines with image (a file's name), question, value (a caption) and h_value (the same with something "
        "that is not there), as VTI's authors have them",
    )
    parser.add_argument("--images", required=True, metavar="FOLDER", help="where the images are")
    parser.add_argument("--count", type=whole_number, metavar="N", help="only the first N lines (default: all)")
    parser.add_argument(
        "--mask-ratio", type=float, default=0.99, help="share of the patches that a mask hides (default: 0.99)"
    )
    parser.add_argument("--trials", type=whole_number, default=50, metavar="N", help="masks an image (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the masks (default: 0)")
    parser.add_argument("--text-only", action="store_true", help="no direction for the vision tower")
    parser.add_argument("--out", required=True, metavar="FILE", help="such as llava.safetensors")
    add_max_pixels(parser)
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Computes and writes."""
    check_file(args.out)
    lines = read_lines(args.data, args.count)  # before the model is loaded
    from damro.images import MAX_PIXELS, load_image
    from damro.methods.directions import Demonstration, compute_directions, save_directions

    pixels = args.max_pixels or MAX_PIXELS
    demonstrations = [
        Demonstration(load_image(Path(args.images) / line[0], max_pixels=pixels), *line[1:]) for line in lines
    ]
    model, processor = load_from(args)
    directions = compute_directions(
        model,
        processor,
        demonstrations,
        vision=not args.text_only,
        mask_ratio=args.mask_ratio,
        trials=args.trials,
        seed=args.seed,
    )
    save_directions(directions, args.out)
    print(
        f"{args.out}: directions of {len(directions.text)} layers from {len(lines)} images; vti:directions={args.out}"
    )
    return 0


def read_lines(path: str, count: int | None) -> list[tuple[str, str, str, str]]:
    """Image, question, caption and wrong caption of each line.

    Raises:
        ParameterError: there is no such file, or a line that is none of these.
    """
    from damro.errors import ParameterError

    try:
        texts = [text for text in Path(path).read_text(encoding="utf-8").splitlines() if text.strip()][:count]
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(
            f"--data must be a file of JSON lines, got {path!r} ({error}); give one that is there"
        ) from error
    found = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            line = None
        if not isinstance(line, dict) or not all(isinstance(line.get(key), str) for key in _KEYS):
            raise ParameterError(
                f"--data must have {', '.join(_KEYS)} as texts in every line, got {text[:60]!r} in line {number} of "
                f"{path!r}; see experiments/data of github.com/shengliu66/VTI"
            )
        found.append((line["image"], line["question"], line["value"], line["h_value"]))
    return found
