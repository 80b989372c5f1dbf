"""How long a command with several methods takes: method after method, in turn over each batch, continuously, exactly.

    python benchmarks/run_throughput.py chair [--samples 500] [--batch-size N] [--repeats 3]
    python benchmarks/run_throughput.py pope [--scenes 100] [--batch-size N] [--repeats 3]

All ways run in one process on the embedded model, in turn, and the medians of their seconds are compared. So are their
answers. Continuously (``damro run --continuous``) is for captions alone; exactly (``--exact``) has no batches.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from damro.eval.runs.request import RunRequest
from damro.eval.runs.run import Asked, Prepared, prepare, run_benchmark, run_benchmarks

METHODS = {
    "chair": ("greedy", "damro"),
    "pope": ("greedy", "damro", "random-k", "least-k", "no-image", "vcd", "icd", "m3id"),
}

_OWN = ("seconds", "digest")
"""What differs between records of one and the same answer."""


def after_another(requests: list[RunRequest], folder: Path, prepared: Prepared) -> None:
    """Every method over all samples."""
    for request in requests:
        run_benchmark(request, folder / request.method, prepared=prepared)


def in_turn(requests: list[RunRequest], folder: Path, prepared: Prepared) -> None:
    """Every method over a batch."""
    run_benchmarks([Asked(request, folder / request.method) for request in requests], prepared=prepared)


def continuously(requests: list[RunRequest], folder: Path, prepared: Prepared) -> None:
    """The next sample in the place of each that is written, every method over so many samples."""
    in_turn([replace(request, continuous=True) for request in requests], folder, prepared)


def exactly(requests: list[RunRequest], folder: Path, prepared: Prepared) -> None:
    """Every sample by itself, every method over a batch."""
    in_turn([replace(request, exact=True, batch_size=None) for request in requests], folder, prepared)


def answers(folder: Path) -> list[dict[str, Any]]:
    """All records of a folder, without their seconds and the digest of their run."""
    lines = [line for path in sorted(folder.glob("*/records.jsonl")) for line in path.read_text().splitlines()]
    return [{name: value for name, value in json.loads(line).items() if name not in _OWN} for line in lines]


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("benchmark", choices=METHODS)
    parser.add_argument("--samples", type=int, default=500, help="of chair (default: 500)")
    parser.add_argument("--scenes", type=int, default=100, help="of pope, with questions about each (default: 100)")
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="of batches, and places (default: 8, and 32 places)"
    )
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    scenes = args.samples if args.benchmark == "chair" else args.scenes
    first = RunRequest(args.benchmark, "tiny", device="cpu", scenes=scenes, batch_size=args.batch_size)
    requests = [replace(first, method=method) for method in METHODS[args.benchmark]]
    prepared = prepare(*requests)
    ways: list[Callable[..., None]] = [after_another, in_turn, *[continuously] * (args.benchmark == "chair"), exactly]
    took: dict[str, list[float]] = {way.__name__: [] for way in ways}
    for _ in range(args.repeats):
        found = []
        for way in ways:
            with tempfile.TemporaryDirectory() as folder:
                began = time.perf_counter()
                way(requests, Path(folder), prepared)
                took[way.__name__].append(time.perf_counter() - began)
                found.append(answers(Path(folder)))
                print(f"{way.__name__}: {took[way.__name__][-1]:.2f} s", file=sys.stderr, flush=True)
        if any(one != found[0] for one in found):
            print("the records differ", file=sys.stderr)
            return 1
    print(f"{len(prepared.dataset.samples)} samples, {len(requests)} methods, medians of {args.repeats}:")
    medians = {name: median(seconds) for name, seconds in took.items()}
    for name, seconds in medians.items():
        print(f"{name} {seconds:.2f} s, ratio {medians['after_another'] / seconds:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
