"""``damro bench``: how fast plain, naive, lazy and fused decoding are, what the analysis costs, what pruning saves."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from damro.cli.bench_tables import analysis_table, headline, pruning_table, table_head, table_row, tail
from damro.cli.parser import whole_number

if TYPE_CHECKING:
    from damro.speed.timing import Speed

_TILES = {64: (8, 1), 576: (24, 1), 2880: (24, 5)}
"""Image tokens: patches along a side of an image, and images."""

_QUESTIONS = 6
_KEPT = (288, 192, 128, 64, 29)
_WITHOUT_PRESET = "damro:alpha=2,beta=0.1,top_k=10"
"""What is measured where the family has no preset: LLaVA-1.5's values."""


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "bench",
        help="measure decoding speed: plain, naive, lazy, fused",
        description="Times plain decoding, the naive two-pass processor and damro.generate in one process, in turn, "
        "and prints medians. Random weights in the shape of a real model unless CONFIG is a checkpoint.",
    )
    parser.add_argument(
        "--config",
        default="small",
        help="small, small-qwen2.5-vl, llava-1.5-7b, micro, micro-qwen2.5-vl, or a checkpoint (default: small)",
    )
    parser.add_argument("--device", help="cpu or cuda (default: the GPU if there is one)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--batch", type=whole_number, nargs="+", default=[1, 4], metavar="B", help="(default: 1 4)")
    parser.add_argument("--new-tokens", type=whole_number, nargs="+", default=[64], metavar="N", help="(default: 64)")
    parser.add_argument(
        "--image-tokens",
        type=int,
        nargs="+",
        choices=sorted(_TILES),
        default=[64, 576, 2880],
        metavar="T",
        help="64, 576, 2880: how the cost grows, at the first batch size (default: all). 2880 is five images of 576",
    )
    parser.add_argument(
        "--repeats", type=whole_number, default=3, help="runs of which the median is taken (default: 3)"
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="also measure compiled steps: stock generate with a static cache, plain and fused; the first run of each, "
        "which is not counted, takes minutes",
    )
    parser.add_argument("--no-questions", action="store_true", help="leave out the questions about one image")
    parser.add_argument(
        "--keep-tokens",
        type=whole_number,
        nargs="+",
        metavar="K",
        help="image tokens of an image that pruning keeps, at the first batch size and number of new tokens "
        f"(default: {' '.join(map(str, _KEPT))}, as far as the image has more)",
    )
    parser.add_argument("--no-pruning", action="store_true", help="leave out what pruning saves")
    parser.add_argument(
        "--no-analysis", action="store_true", help="leave out the vision pass with and without DAMRO's look"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measures and prints."""
    import torch

    from damro.decoding.branches.compiling import check_compiles
    from damro.decoding.families import family_of
    from damro.devices import check_device
    from damro.speed.timing import copy_bandwidth, machine, questions_per_second, weight_bytes

    keep_tokens = _keep_tokens(args)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    report: dict[str, Any] = {
        "config": args.config,
        "dtype": args.dtype,
        "repeats": args.repeats,
        **machine(torch.device(device)),
        "cells": [],
    }
    models = _Models(args.config, device, args.dtype)
    model = models.of(args.image_tokens[0])  # what is wrong with a checkpoint is told before anything is printed
    if args.compile:
        check_compiles(family_of(model).decoder(model))
    if not args.json:
        print(headline(report))
    for image_tokens, batch, new_tokens in _cells(args):
        model = models.of(image_tokens)
        cell: dict[str, Any] = {"image_tokens": image_tokens, "batch": batch, "new_tokens": new_tokens, "methods": {}}
        report["cells"].append(cell)
        if not args.json:
            print(table_head(cell), flush=True)
        with _progress() as tell:
            for name, speed in _measure(model, _inputs(model, batch, image_tokens), new_tokens, args, tell):
                cell["methods"][name] = speed
                if not args.json:
                    print(table_row(name, speed), flush=True)
    model = models.of(_base(args))
    if not args.no_analysis:
        report["analysis"] = _measure_analysis(model, args)
        if not args.json:
            print(analysis_table(report["analysis"]))
    if not args.no_pruning and not _is_generic(model):
        report["pruning"] = _measure_pruning(model, args, keep_tokens)
        if not args.json:
            print(pruning_table(report["pruning"]))
    if not args.no_questions:
        inputs = _inputs(model, _QUESTIONS, _base(args), same_image=True)
        report["asked"] = _QUESTIONS
        report["questions"] = questions_per_second(model, inputs, _method(model), repeats=args.repeats)
    read, bandwidth = weight_bytes(model), copy_bandwidth(model.device)
    report["roofline"] = {
        "weight_bytes": read,
        "bytes_per_second": bandwidth,
        "seconds_per_token": read / bandwidth,
    }
    print(json.dumps(report) if args.json else tail(report))
    return 0


def _cells(args: argparse.Namespace) -> Iterator[tuple[int, int, int]]:
    """Image tokens, batch and new tokens of everything to be measured.

    Batches and new tokens vary at one number of image tokens; the others stand for themselves.
    """
    for tokens in args.image_tokens:
        for batch in args.batch if tokens == _base(args) else args.batch[:1]:
            for new_tokens in args.new_tokens if tokens == _base(args) else args.new_tokens[:1]:
                yield tokens, batch, new_tokens


def _base(args: argparse.Namespace) -> int:
    """The number of image tokens at which everything else is measured: LLaVA-1.5's, if it is asked for."""
    return 576 if 576 in args.image_tokens else int(args.image_tokens[-1])


def _keep_tokens(args: argparse.Namespace) -> list[int]:
    """How many tokens of an image to keep, one measurement each.

    Raises:
        ParameterError: if an image does not have more.
    """
    from damro.errors import ParameterError

    patches = _TILES[_base(args)][0] ** 2
    for kept in args.keep_tokens or ():
        if kept >= patches:
            raise ParameterError(f"--keep-tokens must be below the {patches} tokens of an image, got {kept}")
    return list(args.keep_tokens or [kept for kept in _KEPT if kept < patches])


class _Models:
    """The model for a number of image tokens; one is held at a time."""

    def __init__(self, config: str, device: str, dtype: str) -> None:
        self._config = config
        self._device = device
        self._dtype = dtype
        self._grid = 0
        self._model: Any = None

    def of(self, image_tokens: int) -> Any:
        """A random model whose images have the wanted number of columns, or the checkpoint.

        Raises:
            UnsupportedModelError: if a checkpoint is not LLaVA-1.5, or has other image tokens.
        """
        grid = _TILES[image_tokens][0]
        if grid != self._grid:
            self._model = None  # before the next one is made
            self._model, self._grid = self._make(grid), grid
        return self._model

    def _make(self, grid: int) -> Any:
        import torch

        from damro.errors import UnsupportedModelError
        from damro.loading import load_model
        from damro.speed.shapes import SHAPES, random_model, with_grid

        if self._config in SHAPES:
            dtype = getattr(torch, self._dtype)
            return random_model(with_grid(SHAPES[self._config], grid), device=self._device, dtype=dtype)
        model: Any = load_model(self._config, device=self._device, dtype=self._dtype).model
        vision = model.config.vision_config
        if model.config.model_type != "llava" or vision.image_size // vision.patch_size != grid:
            raise UnsupportedModelError(
                f"config must be a LLaVA-1.5 of {grid**2} image tokens to be measured at so many, got "
                f"{model.config.model_type} with {(vision.image_size // vision.patch_size) ** 2}; "
                "set --image-tokens to what it has"
            )
        return model


def _inputs(model: Any, batch: int, image_tokens: int, *, same_image: bool = False) -> Any:
    from damro.speed.shapes import random_inputs

    return random_inputs(model, batch, images=_TILES[image_tokens][1], same_image=same_image)


def _is_generic(model: Any) -> bool:
    """Whether the model has no module of its own, and so no preset, no pruning and no naive processor."""
    from damro.decoding.families import family_of, generic

    return family_of(model) is generic


def _method(model: Any) -> str:
    return _WITHOUT_PRESET if _is_generic(model) else "damro"


def _naive(model: Any) -> Any:
    """The naive processor, which is part of the repository and not of the package; it embeds prompts itself."""
    if _is_generic(model):
        return None
    try:
        from benchmarks.naive_processor import NaiveProcessor
    except ModuleNotFoundError:
        return None
    return NaiveProcessor


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr, where that is a terminal; rows are printed above it."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("bench", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def _measure(
    model: Any, inputs: Any, new_tokens: int, args: argparse.Namespace, tell: Callable[[str, int, int], None]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Method by method its figures, with its ratios to greedy, which comes first."""
    from damro.methods import Scene, as_recipe
    from damro.speed.timing import measure, methods

    calls = methods(model, inputs, _naive(model), _method(model), compiled=args.compile)
    if _is_generic(model):  # what happens at first use alone is measured by itself
        as_recipe(_method(model)).method.prepare(model, inputs, Scene())
    greedy: Speed | None = None
    for name, speed in measure(model, calls, new_tokens=new_tokens, repeats=args.repeats, tell=tell):
        greedy = greedy or speed
        step_ratio = speed.step / greedy.step if greedy.step else None
        yield name, {**asdict(speed), "step_ratio": step_ratio, "whole_ratio": speed.whole / greedy.whole}


def _measure_analysis(model: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Figures of the vision pass by batch size, alone and with what DAMRO needs of it."""
    from damro.speed.analysis import measure_analysis

    base, rows = _base(args), []
    for batch in args.batch:
        speed = measure_analysis(model, _inputs(model, batch, base), repeats=args.repeats)
        rows.append({"batch": batch, **asdict(speed), "ratio": speed.analysed / speed.vision})
    return {"image_tokens": base, "rows": rows}


def _measure_pruning(model: Any, args: argparse.Namespace, keep_tokens: Sequence[int]) -> dict[str, Any]:
    """Figures of plain decoding and DAMRO by image tokens kept, with their ratios to plain decoding with all."""
    from damro.speed.pruned import measure_pruning

    base, batch, new_tokens = _base(args), args.batch[0], args.new_tokens[0]
    inputs = _inputs(model, batch, base)
    grid, images = _TILES[base]
    rows: list[dict[str, Any]] = []
    options = {"new_tokens": new_tokens, "repeats": args.repeats, "compiled": args.compile}
    for speed in measure_pruning(model, inputs, keep_tokens, **options):
        figures = {**asdict(speed), "image_tokens": images * (speed.kept or grid**2)}
        plain = rows[0] if rows else figures
        for name in ("prefill", "language", "whole", "kv_bytes", "peak_bytes"):
            known = plain[name] and figures[name] is not None
            figures[f"{name.removesuffix('_bytes')}_ratio"] = figures[name] / plain[name] if known else None
        rows.append(figures)
    return {"image_tokens": base, "batch": batch, "new_tokens": new_tokens, "rows": rows}
