"""``damro answer IMAGE "prompt"``: ask a model about an image, plainly and with DAMRO."""

from __future__ import annotations

import argparse
import json
from typing import Any

from damro.cli.options import add_contrast_options, add_model_options

_METHODS = ("greedy", "damro")


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("answer", help="ask a model about an image, plainly or with DAMRO")
    parser.add_argument("image", help="an image file")
    parser.add_argument("prompt", help="the question or instruction; the model's chat template is put around it")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--method", choices=_METHODS, default="damro", help="(default: damro)")
    which.add_argument("--compare", action="store_true", help="show both")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="(default: 256)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_model_options(parser)
    add_contrast_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Answers and prints."""
    from damro.loading import load_image, load_model, prepare_inputs

    image = load_image(args.image)
    model, processor = load_model(
        args.model,
        device=args.device,
        dtype=args.dtype,
        attn_implementation=args.attn_implementation,
        revision=args.revision,
    )
    inputs = prepare_inputs(processor, [image], [args.prompt], model)
    methods = _METHODS if args.compare else (args.method,)
    results = {method: _answer(args, model, processor, inputs, method) for method in methods}
    if args.json:
        print(json.dumps({"model": args.model, "image": args.image, "prompt": args.prompt, "methods": results}))
    elif args.compare:
        for method, result in results.items():
            print(f"{method:>7}: {result['answer']}")
    else:
        print(results[args.method]["answer"])
    return 0


def _answer(args: argparse.Namespace, model: Any, processor: Any, inputs: Any, method: str) -> dict[str, Any]:
    """One method's answer, with what it depended on."""
    from damro.processor import DAMROProcessor

    options: dict[str, Any] = {"do_sample": False, "num_beams": 1, "max_new_tokens": args.max_new_tokens}
    details: dict[str, Any] = {}
    if method == "damro":
        contrast = DAMROProcessor(
            model,
            inputs,
            alpha=args.alpha,
            beta=args.beta,
            top_k=args.top_k,
            task=args.task,
            variant=args.variant,
        )
        options["logits_processor"] = contrast
        details = {"alpha": contrast.alpha, "beta": contrast.beta, "outliers": contrast.outliers.tolist()}
    ids = model.generate(**inputs, **options)
    text = processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return {"answer": text.strip(), **details}
