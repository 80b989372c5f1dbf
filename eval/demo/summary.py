"""What the demo found in a few lines: three sentences that anybody understands, and one narrow table."""

from __future__ import annotations

from typing import NamedTuple

from damro.eval.demo.control import MODEL
from damro.eval.demo.demo import Demo
from damro.eval.report.comparison import Comparison
from damro.eval.report.tables import show_difference
from damro.eval.report.verdict import CONTROLS, Claim, claims_against

METHOD = "damro"
MEASURES = ("POPE acc.", "CHAIRi", "recall")
"""What the table shows of each method."""
_MEASURES = (("pope", "accuracy"), ("chair", "chair_i"), ("chair", "recall"))


class Line(NamedTuple):
    """A row of the table.

    Attributes:
        model: Name of the model; shown once.
        method: Name of the method.
        values: POPE accuracy, CHAIRi and recall in percent.
        differences: Each to greedy search, with its interval; empty for greedy search itself.
    """

    model: str
    method: str
    values: tuple[str, ...]
    differences: tuple[str, ...]


def sentences(demo: Demo) -> tuple[str, str, str]:
    """Return what was found: with the flaw, without it, and what that says of other models."""
    return (
        f"With the flaw ({MODEL}, built to have it): {_verdict(demo.control.pope, demo.control.chair)}",
        f"Without it (tiny): {_verdict(demo.pope, demo.chair)}",
        "Which of the two your model is like, damro diagnose tells in minutes; nothing here speaks of a 7B model.",
    )


def lines(demo: Demo) -> list[Line]:
    """Return a row for every method of both models."""
    found = []
    for model, pope, chair in ((MODEL, demo.control.pope, demo.control.chair), ("tiny", demo.pope, demo.chair)):
        comparisons = {"pope": pope, "chair": chair}
        for place, entry in enumerate(pope.entries):
            wholes = [comparisons[name].entries[place].whole for name, _ in _MEASURES]
            below = [comparisons[name].baseline.whole for name, _ in _MEASURES]
            values = [f"{100 * whole.scores[metric]:.1f}" for whole, (_, metric) in zip(wholes, _MEASURES, strict=True)]
            differences = [
                show_difference(whole.differences(base)[metric])
                for whole, base, (_, metric) in zip(wholes, below, _MEASURES, strict=True)
            ]
            found.append(Line(model, entry.name, tuple(values), tuple(differences) if place else ()))
    return found


def _verdict(pope: Comparison, chair: Comparison) -> str:
    base = pope.baseline.name
    against_base = claims_against(pope, chair, METHOD, [base])[METHOD, base]
    against_controls = [
        claim for one in claims_against(pope, chair, METHOD, CONTROLS).values() for claim in one.values()
    ]
    helps = any(claim.verdict == "helps" for claim in against_base.values())
    hurts = any(claim.verdict == "hurts" for claim in against_base.values())
    said = {(True, False): "DAMRO helps", (False, True): "DAMRO hurts", (True, True): "DAMRO helps and hurts"}
    beaten = sum(claim.verdict == "helps" for claim in against_controls)
    changes = ", ".join(f"{name} {_points(claim)}" for name, claim in against_base.items())
    return (
        f"{said.get((helps, hurts), 'DAMRO changes nothing that can be told')} ({changes} points); it beats its "
        f"controls in {beaten} of {len(against_controls)} comparisons."
    )


def _points(claim: Claim) -> str:
    return "not defined" if claim.difference is None else f"{100 * claim.difference.estimate:+.1f}"
