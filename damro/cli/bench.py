"""``damro bench``: how fast plain, naive, lazy and fused decoding are, what the analysis costs, what pruning saves."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from damro.cli.parser import whole_number

_TILES = {64: (8, 1), 576: (24, 1), 2880: (24, 5)}
"""Image tokens: patches along a side of an image, and images."""

_QUESTIONS = 6
_KEPT = (288, 192, 128, 64, 29)
_WITHOUT_PRESET = "damro:alpha=2,beta=0.1,top_k=10"
"""What is measured where the family has no preset: LLaVA-1.5's values."""
_MIB = 2**20


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
    models.of(args.image_tokens[0])  # what is wrong with a checkpoint is told before anything is printed
    if not args.json:
        print(_headline(report))
    for image_tokens, batch, new_tokens in _cells(args):
        model = models.of(image_tokens)
        speeds = _measure(model, _inputs(model, batch, image_tokens), new_tokens, args.repeats)
        report["cells"].append(
            {"image_tokens": image_tokens, "batch": batch, "new_tokens": new_tokens, "methods": speeds}
        )
        if not args.json:
            print(_table(report["cells"][-1]))
    model = models.of(_base(args))
    if not args.no_analysis:
        report["analysis"] = _measure_analysis(model, args)
        if not args.json:
            print(_analysis_table(report["analysis"]))
    if not args.no_pruning and not _is_generic(model):
        report["pruning"] = _measure_pruning(model, args, keep_tokens)
        if not args.json:
            print(_pruning_table(report["pruning"]))
    if not args.no_questions:
        inputs = _inputs(model, _QUESTIONS, _base(args), same_image=True)
        report["questions"] = questions_per_second(model, inputs, _method(model), repeats=args.repeats)
    read, bandwidth = weight_bytes(model), copy_bandwidth(model.device)
    report["roofline"] = {
        "weight_bytes": read,
        "bytes_per_second": bandwidth,
        "seconds_per_token": read / bandwidth,
    }
    print(json.dumps(report) if args.json else _tail(report))
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


def _measure(model: Any, inputs: Any, new_tokens: int, repeats: int) -> dict[str, Any]:
    """Every method's figures, with its ratios to greedy."""
    from damro.methods import Scene, as_recipe
    from damro.speed.timing import measure, methods

    calls = methods(model, inputs, _naive(model), _method(model))
    if _is_generic(model):  # what happens at first use alone is measured by itself
        as_recipe(_method(model)).method.prepare(model, inputs, Scene())
    speeds = measure(model, calls, new_tokens=new_tokens, repeats=repeats)
    greedy = speeds["greedy"]
    return {
        name: {
            **asdict(speed),
            "step_ratio": speed.step / greedy.step if greedy.step else None,
            "whole_ratio": speed.whole / greedy.whole,
        }
        for name, speed in speeds.items()
    }


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
    for speed in measure_pruning(model, inputs, keep_tokens, new_tokens=new_tokens, repeats=args.repeats):
        figures = {**asdict(speed), "image_tokens": images * (speed.kept or grid**2)}
        plain = rows[0] if rows else figures
        for name in ("prefill", "language", "whole", "kv_bytes", "peak_bytes"):
            known = plain[name] and figures[name] is not None
            figures[f"{name.removesuffix('_bytes')}_ratio"] = figures[name] / plain[name] if known else None
        rows.append(figures)
    return {"image_tokens": base, "batch": batch, "new_tokens": new_tokens, "rows": rows}


def _headline(report: dict[str, Any]) -> str:
    return (
        f"{report['config']}, {report['dtype']}, {report['device']}: {report['hardware']}, "
        f"{report['threads']} threads, load {report['load']}, torch {report['torch']}, "
        f"transformers {report['transformers']}, {report['date']}; medians of {report['repeats']}"
    )


def _table(cell: dict[str, Any]) -> str:
    lines = [
        f"\n{cell['image_tokens']} image tokens, batch {cell['batch']}, {cell['new_tokens']} new tokens",
        f"{'':10}{'tokens/s':>10}{'call s':>9}{'ratio':>7}{'step ms':>9}{'ratio':>7}{'vision':>8}{'peak MiB':>10}",
    ]
    for name, speed in cell["methods"].items():
        peak = "" if speed["peak_bytes"] is None else f"{speed['peak_bytes'] / _MIB:.0f}"
        step_ratio = "" if speed["step_ratio"] is None else f"{speed['step_ratio']:.2f}"
        lines.append(
            f"{name:10}{speed['tokens_per_second']:>10.1f}{speed['whole']:>9.3f}{speed['whole_ratio']:>7.2f}"
            f"{speed['step'] * 1000:>9.2f}{step_ratio:>7}{speed['vision_passes']:>8}{peak:>10}"
        )
    return "\n".join(lines)


def _analysis_table(analysis: dict[str, Any]) -> str:
    lines = [
        f"\nanalysis of {analysis['image_tokens']} image tokens",
        f"{'batch':6}{'vision pass s':>15}{'with ranking s':>16}{'ratio':>7}{'once s':>9}",
    ]
    for row in analysis["rows"]:
        once = "" if row["verifying"] is None else f"{row['verifying']:.3f}"
        lines.append(f"{row['batch']:<6}{row['vision']:>15.3f}{row['analysed']:>16.3f}{row['ratio']:>7.2f}{once:>9}")
    lines.append("vision pass: tower and projector; once: looking up which patches become which column, at first use")
    return "\n".join(lines)


def _pruning_table(pruning: dict[str, Any]) -> str:
    lines = [
        f"\npruning of {pruning['image_tokens']} image tokens, batch {pruning['batch']}, {pruning['new_tokens']} new "
        "tokens; ratios to plain with all",
        f"{'':6}{'kept':>6}{'first token s':>15}{'ratio':>7}{'of it LM s':>12}{'ratio':>7}{'call s':>9}{'ratio':>7}"
        f"{'KV MiB':>9}{'ratio':>7}{'peak MiB':>10}{'ratio':>7}",
    ]
    for row in pruning["rows"]:
        line = f"{row['method']:6}{row['image_tokens']:>6}"
        for name, width in (("prefill", 15), ("language", 12), ("whole", 9)):
            line += f"{row[name]:>{width}.3f}{_ratio(row[name + '_ratio'])}"
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / _MIB:.0f}"
        line += f"{row['kv_bytes'] / _MIB:>9.1f}{_ratio(row['kv_ratio'])}{peak:>10}{_ratio(row['peak_ratio'])}"
        lines.append(line)
    lines.append("first token: from the call, the vision tower included; of it LM: its layers over all prompts")
    return "\n".join(lines)


def _ratio(value: float | None) -> str:
    return f"{'' if value is None else format(value, '.2f'):>7}"


def _tail(report: dict[str, Any]) -> str:
    lines = [""]
    if "questions" in report:
        single = report["questions"]["damro, one by one"]
        lines.append(f"{_QUESTIONS} questions about one image, questions/s (ratio to damro, one by one)")
        lines += [f"  {name:22}{rate:>8.2f}{rate / single:>7.2f}" for name, rate in report["questions"].items()]
    roof = report["roofline"]
    lines.append(
        f"roofline: {roof['weight_bytes'] / 1e6:.1f} MB of weights a token over "
        f"{roof['bytes_per_second'] / 1e9:.1f} GB/s (copy) = {roof['seconds_per_token'] * 1000:.2f} ms a token"
    )
    return "\n".join(lines)
