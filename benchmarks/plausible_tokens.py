"""How often a step has more than one plausible token, and how many it has then: what "lazy" lives by.

``python benchmarks/plausible_tokens.py [--scenes 100] [--beta 0.1]``: the embedded models, captions of the test scenes,
DAMRO's greedy decoding with each family's preset.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor

import damro
from damro import tiny
from damro.decoding.rules import plausible_tokens
from damro.tiny.scenes import scene

PROMPT = "Generate a short caption of this image."


class Count(LogitsProcessor):
    """Notes the number of plausible tokens of every step; changes nothing."""

    def __init__(self, beta: float) -> None:
        self.counts: list[int] = []
        self._beta = beta

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Counts, `(1, V)`."""
        self.counts.append(int(plausible_tokens(scores.float(), self._beta).sum()))
        return scores


def counts_of(family: str, scenes: int, beta: float) -> list[int]:
    """Plausible tokens of every step of every caption."""
    model, processor = tiny.load(family)
    text: Any = f"USER: <image>\n{PROMPT} ASSISTANT:" if family != "instructblip" else PROMPT
    counted = []
    for index in range(scenes):
        inputs = processor(images=scene("test", index).image, text=text, return_tensors="pt")
        count, contrast = Count(beta), damro.DAMROProcessor(model, inputs, task="chair")
        model.generate(**inputs, logits_processor=[count, contrast], max_new_tokens=64, do_sample=False)
        counted += count.counts
    return counted


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--beta", type=float, default=0.1)
    args = parser.parse_args(argv)
    print(f"{'':14}{'steps':>7}{'undecided':>11}{'median':>8}{'90 %':>6}{'most':>6}   plausible tokens where undecided")
    for family in ("llava", "llava_next", "instructblip"):
        counts = counts_of(family, args.scenes, args.beta)
        open_steps = sorted(count for count in counts if count > 1) or [0]
        median, ninth = statistics.median(open_steps), open_steps[int(0.9 * (len(open_steps) - 1))]
        share = sum(count > 1 for count in counts) / len(counts)
        print(f"{family:14}{len(counts):>7}{share:>11.2f}{median:>8.0f}{ninth:>6}{open_steps[-1]:>6}")


if __name__ == "__main__":
    main()
