"""``damro answer IMAGE "prompt"``: ask a model about an image, plainly and with DAMRO or another method."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from damro.cli.options import add_contrast_options, add_method_options, add_model_options, given_options
from damro.eval.methods import CONTRASTS, PATCHES, TAKEN_BY, check_options, parse_method
from damro.eval.runs.request import RunRequest


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("answer", help="ask a model about an image, plainly, with DAMRO or otherwise")
    parser.add_argument("image", help="an image file")
    parser.add_argument("prompt", help="the question or instruction; the model's chat template is put around it")
    parser.add_argument(
        "--method",
        choices=("greedy", *CONTRASTS),
        default="damro",
        metavar="METHOD",
        help=f"greedy, {', '.join(CONTRASTS)} (default: damro)",
    )
    parser.add_argument(
        "--compare", action="store_true", help="show the answer of greedy, too; --keep-tokens prunes for both"
    )
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="(default: 256)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_model_options(parser)
    add_contrast_options(parser)
    add_method_options(parser.add_argument_group("pruning, and options of single methods"))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Answers and prints."""
    from damro.eval.strengths import check_request
    from damro.loading import load_image, load_model, prepare_inputs

    given = given_options(args)
    check_options(given, [parse_method(args.method)])
    # The rules for a run's options are those for an answer's; the benchmark does not matter to them.
    check_request(RunRequest("chair", args.model, method=args.method, keep_tokens=args.keep_tokens, **given))
    image = load_image(args.image)
    model, processor = load_model(
        args.model,
        device=args.device,
        dtype=args.dtype,
        attn_implementation=args.attn_implementation,
        revision=args.revision,
    )
    inputs = prepare_inputs(processor, [image], [args.prompt], model)
    methods = dict.fromkeys(("greedy", args.method) if args.compare else (args.method,))
    results = {method: _answer(args, model, processor, inputs, method) for method in methods}
    if args.json:
        asked = {"model": args.model, "image": args.image, "prompt": args.prompt, "keep_tokens": args.keep_tokens}
        print(json.dumps({**asked, "options": given, "methods": results}))
    elif args.compare:
        for method, result in results.items():
            print(f"{method:>8}: {result['answer']}")
    else:
        print(results[args.method]["answer"])
    return 0


def _answer(args: argparse.Namespace, model: Any, processor: Any, inputs: Any, method: str) -> dict[str, Any]:
    """One method's answer, with what it depended on."""
    from damro.decoding.branches.encoder_decoder import returned_prompt
    from damro.decoding.generate import decode
    from damro.decoding.rules import Contrast
    from damro.generation import MethodOptions, least_patches, make_contrast, random_patches, view_patches
    from damro.pruning import Pruning

    named = {name: getattr(args, name) for name in ("task", *TAKEN_BY) if getattr(args, name) is not None}
    pruning = None if args.keep_tokens is None else Pruning(args.keep_tokens)
    options = MethodOptions(pruning=pruning, processor=processor, **named)
    details: dict[str, Any] = {}
    contrast: Any
    if method in PATCHES:
        choose = {"random-k": random_patches(options.seed), "least-k": least_patches}.get(method)
        view = view_patches(model, inputs, options, choose)
        contrast, details = view.contrast, {"outliers": view.outliers.tolist()}
    else:
        contrast = make_contrast(model, inputs, method, options)
    if isinstance(contrast, Contrast):
        rule: Any = contrast.rule
        details = {**asdict(rule), **details}
    ids = decode(model, inputs, contrast, do_sample=False, num_beams=1, max_new_tokens=args.max_new_tokens)
    text = processor.tokenizer.decode(ids[0, returned_prompt(model, inputs).shape[1] :], skip_special_tokens=True)
    return {"answer": text.strip(), **details}
