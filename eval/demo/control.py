"""The positive control: a model with the flaw that DAMRO is meant to mend, built to have it."""

from __future__ import annotations

from typing import Final, NamedTuple

from damro.eval.demo.trial import Progress, Way, compare_ways
from damro.eval.report.comparison import Comparison
from damro.eval.report.verdict import judge_controls
from damro.loading import Loaded, load_model
from damro.pruning import Pruning
from damro.tiny.model import GRID
from damro.tiny.registers import REGISTERS

MODEL: Final = "tiny:flawed"
WITHOUT: Final = "greedy without them"
_STRENGTH: Final = "alpha=0.5"
WAYS: Final = {
    "greedy": Way("greedy"),
    "damro": Way(f"damro:{_STRENGTH},top_k={REGISTERS}"),
    "random-k": Way(f"random-k:{_STRENGTH},top_k={REGISTERS}"),
    "least-k": Way(f"least-k:{_STRENGTH},top_k={REGISTERS}"),
    "no-image": Way(f"no-image:{_STRENGTH}"),
    WITHOUT: Way("greedy", Pruning(GRID * GRID - REGISTERS, "unattended")),
}
"""DAMRO, its controls, and plain decoding without the patches that [CLS] looks at."""


class Control(NamedTuple):
    """What was found on the flawed model.

    Attributes:
        pope: The ways to decode, on POPE.
        chair: The ways to decode, on captions.
        sentences: Whether DAMRO beats its controls there.
    """

    pope: Comparison
    chair: Comparison
    sentences: tuple[str, ...]


def run_control(scenes: int, *, loaded: Loaded | None = None, tell: Progress) -> Control:
    """Decode the test scenes with the flawed model.

    Args:
        scenes: How many.
        loaded: The model, if it is at hand.
        tell: Told after each step.
    """
    loaded = loaded or load_model(MODEL, device="cpu")
    pope, chair = (compare_ways(name, scenes, loaded, WAYS, MODEL, tell=tell) for name in ("pope", "chair"))
    return Control(pope, chair, judge_controls(pope, chair))
