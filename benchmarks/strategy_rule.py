"""What lazy costs by the share of steps that need the second pass, against fused: the measurement behind "auto".

``python benchmarks/strategy_rule.py [--dtype float32] [--batch 1] [--new-tokens 48] [--repeats 3]``
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from damro.decoding.generate import decode
from damro.decoding.rules import Contrast, contrast_scores, plausible_tokens
from damro.methods.patches import outlier_view
from damro.speed.shapes import SHAPES, random_inputs, random_model
from damro.speed.timing import Call, machine, measure

EVERY = (1, 2, 3, 4, 8)


@dataclass(frozen=True)
class PeriodicRule:
    """Asks for the second pass at every n-th step and not in between, whatever the logits are."""

    every: int

    def needed(self, full: Tensor, step: int | Tensor) -> Tensor:
        """The plausible tokens at every n-th step, nothing in between."""
        return plausible_tokens(full, 0.1) & (step % self.every == 0)

    def __call__(self, full: Tensor, negative: Tensor | None, step: int | Tensor) -> Tensor:
        """Usual contrast where there are negative logits, none where not."""
        return contrast_scores(full, negative, alpha=1.0, beta=0.1)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args(argv)
    model = random_model(SHAPES["small"], dtype=getattr(torch, args.dtype))
    inputs = random_inputs(model, args.batch)
    contrast = outlier_view(model, inputs).contrast
    calls: dict[str, Call] = {
        "greedy": lambda **options: decode(model, inputs, contrast.full, **options),
        "fused": lambda **options: decode(model, inputs, contrast, strategy="fused", **options),
    }
    for every in EVERY:
        periodic = Contrast(contrast.full, contrast.negative, PeriodicRule(every))
        calls[f"lazy, 1 in {every}"] = lambda periodic=periodic, **options: decode(
            model, inputs, periodic, strategy="lazy", **options
        )
    speeds = dict(measure(model, calls, new_tokens=args.new_tokens, repeats=args.repeats))
    print(machine(model.device), args.dtype, f"batch {args.batch}, {args.new_tokens} new tokens")
    for name, speed in speeds.items():
        print(f"{name:14}{speed.step * 1000:>8.1f} ms a token {speed.step / speeds['greedy'].step:>6.2f}")


if __name__ == "__main__":
    main()
