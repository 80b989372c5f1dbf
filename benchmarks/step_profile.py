"""Where the time of a decoding step goes: products, attention, copies, other operators, and Python between them.

    python -m benchmarks.step_profile [--config small] [--image-tokens 64 576] [--dtype float32] [--compile]

Steps are those of plain decoding (stock forward and cache); of the second pass alone, as the naive processor has it and
as lazy adds it to a step; and of both branches in one batch; with random weights. First milliseconds a step without a
profiler, in turn, medians of rounds; then by torch's profiler, which slows steps down by itself: shares say more than
sums. Also how long a product of few rows takes by the library that computes it, which is where most of the time goes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import DynamicCache

from damro.decoding.branches.compiled import CompiledBranches
from damro.decoding.branches.fused import Branches, prefill
from damro.decoding.branches.negative import NegativeBranch
from damro.decoding.compat import CACHE
from damro.decoding.families import family_of
from damro.decoding.prompts import embedded
from damro.decoding.rules import Contrast
from damro.methods import Scene, as_recipe
from damro.speed.shapes import SHAPES, random_inputs, random_model, with_grid

KINDS = {
    "products": ("mm", "addmm", "bmm", "_linear_pointwise", "_mkl_linear"),
    "attention": ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math"),
    "copies": ("cat", "copy_", "index_copy_", "index_select", "clone"),
}
COLUMNS = (*KINDS, "others", "Python", "step")
Step = Callable[[], None]


def in_turn(ways: Mapping[str, Step], steps: int, rounds: int) -> dict[str, float]:
    """Milliseconds a step: medians of rounds, in each of which every way takes its steps; the first is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, step in ways.items():
            start = time.perf_counter()
            for _ in range(steps if number else 3):
                step()
            if number:
                taken[name].append((time.perf_counter() - start) * 1e3 / steps)
    return {name: statistics.median(times) for name, times in taken.items()}


def profiled(step: Step, steps: int) -> dict[str, float]:
    """Milliseconds a step by kind of operator; what no operator takes is Python's."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        start = time.perf_counter()
        for _ in range(steps):
            step()
        whole = time.perf_counter() - start
    taken = dict.fromkeys((*KINDS, "others"), 0.0)
    for event in seen.key_averages():
        if "::" in event.key:
            name = event.key.rpartition("::")[2]
            kind = next((kind for kind, names in KINDS.items() if name in names), "others")
            taken[kind] += event.self_cpu_time_total / 1e3
    per_step = {kind: value / steps for kind, value in taken.items()}
    step_ms = whole * 1e3 / steps
    return {**per_step, "Python": step_ms - sum(per_step.values()), "step": step_ms}


@torch.no_grad()
def steps_of(model: Any, compiled: bool) -> dict[str, Step]:
    """A step of each way to decode."""
    decoder: Any = family_of(model).decoder(model)
    inputs = random_inputs(model, 1)
    contrast: Any = as_recipe("damro").method.prepare(model, inputs, Scene())
    assert isinstance(contrast, Contrast)
    full, negative = embedded(contrast.full), embedded(contrast.negative)  # type: ignore[arg-type]
    token = torch.tensor([[7]])
    second = NegativeBranch(decoder, model.get_input_embeddings(), negative)
    lengths, plausible = count(1), torch.arange(12)
    read = [prefill(decoder, prompt) for prompt in (full, negative)]

    def stock(prompt: int) -> Step:
        cache, places = DynamicCache(), count(int(read[prompt].position) + 1)
        for number, layer in enumerate(read[prompt].cache.layers):
            held: Any = layer
            cache.update(held.keys, held.values, number)

        @torch.no_grad()
        def step() -> None:
            place = torch.tensor([[next(places)]])
            decoder(input_ids=token, position_ids=place, use_cache=True, logits_to_keep=1, **{CACHE: cache})

        return step

    def lazily() -> None:
        second.logits(torch.full((1, next(lengths)), 7), plausible)

    def together(kind: Any, prompts: int) -> Step:
        branches = kind(decoder, [one.copied() for one in read[:prompts]])
        return lambda: branches.step(token[0])

    ways = {"plain": stock(0), "naive second": stock(1), "lazy second": lazily, "fused": together(Branches, 2)}
    if compiled:
        ways |= {"plain-compiled": together(CompiledBranches, 1), "fused-compiled": together(CompiledBranches, 2)}
    return ways


@torch.no_grad()
def product_times(dtype: torch.dtype, wide: int = 1536, narrow: int = 576, count: int = 70) -> None:
    """Prints gigabytes of weights a second in products of 1, 2, 4 and 8 rows."""
    weights = [torch.randn(wide, narrow).to(dtype) for _ in range(count)]
    size = sum(weight.nbytes for weight in weights) / 1e9
    print(f"\nproducts with {count} weights of {wide} x {narrow}, {dtype}: GB of weights a second")
    print(f"{'rows':6}{'linear (MKL)':>14}{'oneDNN, packed':>16}")
    for rows in (1, 2, 4, 8):
        states = torch.randn(rows, narrow).to(dtype)
        plain = _median(lambda: [torch.nn.functional.linear(states, weight) for weight in weights])  # noqa: B023
        packed: list[Tensor] = []
        if dtype == torch.float32:
            packed = [torch.ops.mkldnn._reorder_linear_weight(weight, rows) for weight in weights]
        run = torch.ops.mkldnn._linear_pointwise
        other = _median(lambda: [run(states, weight, None, "none", [], "") for weight in packed])  # noqa: B023
        print(f"{rows:<6}{size / plain:>14.1f}{size / other if packed else float('nan'):>16.1f}", flush=True)


def _median(run: Callable[[], Any], repeats: int = 9) -> float:
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main() -> None:
    """Prints a table a number of image tokens, and one of products."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="small", choices=("micro", "small", "llava-1.5-7b"))
    parser.add_argument("--image-tokens", type=int, nargs="+", default=[64, 576], choices=(64, 576))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--compile", action="store_true", help="compiled steps too; compiling takes minutes")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    for tokens in args.image_tokens:
        model = random_model(with_grid(SHAPES[args.config], int(tokens**0.5)), dtype=dtype)
        print(f"\n{args.config}, {tokens} image tokens, {args.dtype}, batch 1, {torch.get_num_threads()} threads")
        ways = steps_of(model, args.compile)
        times = in_turn(ways, args.steps, args.rounds)
        print(f"ms a step, medians of {args.rounds} rounds of {args.steps}")
        for name, milliseconds in times.items():
            print(f"{name:16}{milliseconds:>11.1f}{milliseconds / times['plain']:>11.2f}", flush=True)
        print("ms a step under the profiler\n" + " " * 16 + "".join(f"{column:>11}" for column in COLUMNS))
        for name, step in ways.items():
            found = profiled(step, args.steps)
            print(f"{name:16}" + "".join(f"{found[column]:>11.1f}" for column in COLUMNS), flush=True)
    product_times(dtype)


if __name__ == "__main__":
    main()
