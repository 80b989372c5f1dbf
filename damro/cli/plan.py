"""From the options of ``damro run`` to the runs that they ask for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from damro.cli.options import add_temperature, check_used, every_method, given_flags, read_values
from damro.eval.benchmark import BENCHMARKS, find_benchmark
from damro.eval.errors import EvalError
from damro.eval.runs.record import folder_name, load_run
from damro.eval.runs.request import TINY, RunRequest, to_request
from damro.methods import METHODS, Recipe, labels, parse
from damro.tiny import checkpoint_of

ALL = "all"
"""In the place of methods: every one."""
_REQUEST_OPTIONS = (
    *("revision", "images", "limit", "seed", "keep_tokens", "top_p", "max_new_tokens", "prompt"),
    *("dtype", "device", "device_map", "quantization", "attn_implementation", "max_pixels"),
    *("compile", "continuous", "exact"),
)


class Planned(NamedTuple):
    """One run of a command.

    Attributes:
        label: Its name in tables.
        folder: Its folder's name.
        request: What it is asked for.
    """

    label: str
    folder: str
    request: RunRequest


def tell(sentence: str) -> None:
    """Tells a sentence on stderr."""
    print(f"damro: {sentence}", file=sys.stderr)


def plan(args: argparse.Namespace) -> list[Planned]:
    """The runs that the options ask for, one a method.

    Raises:
        EvalError: An option is out of range or one that the benchmark does not have, or two methods are the same.
        ParameterError: There is no such method, a parameter is out of range or one that no method named has.
    """
    if (args.source is None) == (args.benchmark is None):
        raise EvalError(f"give either a benchmark ({', '.join(BENCHMARKS)}) or --from RUN, got both or neither")
    if args.source is not None:
        return [_plan_again(args)]
    flags = given_flags(args, dict(METHODS))
    named = every_method(tell) if args.methods == [ALL] else args.methods or [args.method]
    texts = [add_temperature(text, args.temperature) for text in named]
    recipes = [parse(text, flags) for text in texts]
    check_used(flags, [type(recipe.method) for recipe in recipes])
    folders = [folder_name(parse(text).text) for text in texts]
    if len(set(recipes)) < len(recipes) or len(set(folders)) < len(folders):
        raise EvalError(f"--methods must be different, got {' '.join(texts)}")
    _check_together(args, recipes)
    options = {name: getattr(args, name) for name in _REQUEST_OPTIONS}
    options |= {"model": args.model or TINY, **({} if args.scenes is None else {"scenes": args.scenes})}
    options["batch_size"] = None if args.batch_size == "auto" else _whole_number(args.batch_size)
    data = read_values(BENCHMARKS.find(args.benchmark), given_flags(args, dict(BENCHMARKS)), EvalError)
    if args.cost and find_benchmark(args.benchmark, data).reads_logits:
        raise EvalError("--cost must come with answers that are written, got answers read from logits: leave it out")
    if args.cost and args.compile:
        raise EvalError("--cost must be left out with --compile, got both: passes are not counted in a compiled graph")
    if args.cost and args.continuous:
        raise EvalError("--cost must be left out with --continuous, got both: answers share what is measured")
    if args.scenes is not None and find_benchmark(args.benchmark, data).has_images:
        raise EvalError(f"--scenes must be left out where the data bring their images, got {args.scenes}: leave it out")
    return [
        Planned(label, folder, RunRequest(args.benchmark, method=recipe.text, data=data, **options))
        for label, folder, recipe in zip(labels(recipes), folders, recipes, strict=True)
    ]


def _check_together(args: argparse.Namespace, recipes: Sequence[Recipe]) -> None:
    """Refuses options that nothing would heed beside the others."""
    if args.scenes is not None and (args.images is not None or checkpoint_of(args.model or TINY) is None):
        raise EvalError(f"--scenes must come with the embedded model and no --images, got {args.scenes}: leave it out")
    if args.top_p != 1 and not any(recipe.temperature for recipe in recipes):
        raise EvalError(
            f"--top-p must come with a method that samples, got {args.top_p} with "
            f"{', '.join(recipe.name for recipe in recipes)}: add a temperature, such as {recipes[0].method.name}@1"
        )
    if args.device is not None and args.device_map is not None:
        raise EvalError(f"--device must be left out with --device-map, got {args.device!r}: give one of them")


def _plan_again(args: argparse.Namespace) -> Planned:
    """What a run.json says."""
    if args.out is None:
        raise EvalError("--from must come with --out, the folder for the new records")
    flags = (*given_flags(args, dict(METHODS)), *given_flags(args, dict(BENCHMARKS)))
    for name in ("methods", "method", "model", "scenes", "batch_size", "temperature", *_REQUEST_OPTIONS, *flags):
        if name != "images" and getattr(args, name) != getattr(args.defaults, name):
            raise EvalError(
                f"--{name.replace('_', '-')} must be left out with --from, got {getattr(args, name)!r}: "
                "the run.json says it; start a run of its own to change it"
            )
    request = to_request(load_run(args.source))
    name = request.recipe.name
    return Planned(name, folder_name(name), replace(request, images=args.images or request.images))


def _whole_number(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise EvalError(f"--batch-size must be auto or a whole number, got {text!r}")
    return int(text)
