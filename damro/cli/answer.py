"""``damro answer IMAGE "prompt"``: ask a model about an image, plainly and with DAMRO or another method."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from damro.cli.options import add_max_pixels, add_method_flags, add_model_options, check_used, given_flags
from damro.cli.outputs import tell_unknown_words
from damro.cli.parser import filled_text, whole_number
from damro.methods import METHODS, Recipe, parse
from damro.parameters import given


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("answer", help="ask a model about an image, plainly, with DAMRO or otherwise")
    parser.add_argument("image", help="an image file, or tiny:N for embedded scene N")
    parser.add_argument(
        "prompt", type=filled_text, help="the question or instruction; the model's chat template is put around it"
    )
    parser.add_argument(
        "--method",
        default="damro",
        metavar="METHOD",
        help=f"{', '.join(METHODS)}; with parameters as in damro:alpha=0.5, with @T sampled at temperature T "
        "(default: damro)",
    )
    parser.add_argument(
        "--compare", action="store_true", help="show the answer of greedy, too; --keep-tokens prunes for both"
    )
    parser.add_argument(
        "--keep-tokens", type=whole_number, metavar="N", help="patches of a tile to keep (default: all)"
    )
    parser.add_argument("--max-new-tokens", type=whole_number, default=256, metavar="N", help="(default: 256)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_max_pixels(parser)
    add_model_options(parser)
    add_method_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Answers and prints."""
    flags = given_flags(args, dict(METHODS))
    recipe = parse(args.method, flags)
    check_used(flags, [type(recipe.method)])
    from damro.images import MAX_PIXELS, load_image
    from damro.loading import load_model, prepare_inputs
    from damro.pruning import Pruning

    pruning = None if args.keep_tokens is None else Pruning(args.keep_tokens)
    image = load_image(args.image, max_pixels=args.max_pixels or MAX_PIXELS)
    model, processor = load_model(
        args.model,
        device=args.device,
        dtype=args.dtype,
        attn_implementation=args.attn_implementation,
        revision=args.revision,
    )
    tell_unknown_words(processor, args.prompt)
    inputs = prepare_inputs(processor, [image], [args.prompt], model)
    recipes = {one.name: one for one in ((parse("greedy"), recipe) if args.compare else (recipe,))}
    results = {
        name: _answer(model, processor, inputs, image, one, pruning, args.max_new_tokens)
        for name, one in recipes.items()
    }
    if args.json:
        asked = {"model": args.model, "image": args.image, "prompt": args.prompt, "keep_tokens": args.keep_tokens}
        print(json.dumps({**asked, "options": given(recipe.method), "methods": results}))
    elif args.compare:
        for name, result in results.items():
            print(f"{name:>8}: {result['answer']}")
    else:
        print(results[recipe.name]["answer"])
    return 0


def _answer(
    model: Any, processor: Any, inputs: Any, image: Any, recipe: Recipe, pruning: Any, max_new_tokens: int
) -> dict[str, Any]:
    """One method's answer, with what it depended on."""
    from damro.decoding.branches.encoder_decoder import returned_prompt
    from damro.decoding.generate import decode
    from damro.decoding.rules import Contrast
    from damro.generation import sampling_options
    from damro.methods import Scene
    from damro.methods.patches import PatchContrast

    scene = Scene(pruning=pruning, processor=processor, pictures=[image])
    contrast = recipe.method.prepare(model, inputs, scene)
    details: dict[str, Any] = {}
    if isinstance(contrast, Contrast):
        rule: Any = contrast.rule
        details = asdict(rule)
    if isinstance(contrast, PatchContrast):
        details["outliers"] = contrast.outliers.tolist()
    search = {"do_sample": False, "num_beams": 1, "max_new_tokens": max_new_tokens} | sampling_options(recipe)
    ids = decode(model, inputs, contrast, **search)
    text = processor.tokenizer.decode(ids[0, returned_prompt(model, inputs).shape[1] :], skip_special_tokens=True)
    return {"answer": text.strip(), **details}
