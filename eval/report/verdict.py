"""Sentences about a method and its controls, decided by paired intervals."""

from __future__ import annotations

from damro.eval.report.comparison import Comparison, Entry
from damro.eval.report.tables import LABELS, show_difference
from damro.eval.scores import LOWER_IS_BETTER, Group
from damro.eval.statistics import Interval

CONTROLS = ("random-k", "least-k", "no-image")
_MEASURES = (("pope", "accuracy"), ("chair", "chair_i"))


def judge_controls(pope: Comparison, chair: Comparison, method: str = "damro") -> tuple[str, str]:
    """Say in a sentence whether a method beats its controls, and in another what it costs.

    It beats a control on a measure if the 95 % interval of their paired difference lies wholly on the better side.
    """
    parts, beaten = [], []
    for comparison, (_, metric) in zip((pope, chair), _MEASURES, strict=True):
        differences = {name: _difference(comparison, method, name, metric) for name in CONTROLS}
        beaten += [is_better(metric, found) for found in differences.values()]
        shown = "; ".join(f"{_shown(metric, found)} against {name}" for name, found in differences.items())
        parts.append(f"{comparison.benchmark.upper()} {_name(metric)} {shown}")
    if all(beaten):
        verdict = "DAMRO beats all its controls on both measures"
    elif any(beaten):
        verdict = f"DAMRO beats its controls in {sum(beaten)} of {len(beaten)} comparisons only"
    else:
        verdict = "DAMRO does not beat its controls"
    against = f"{verdict} (differences in points with 95 % intervals: {'. '.join(parts)})."
    return against, _against_baseline(pope, chair, method)


def judge_sampling(chair: Comparison, method: str, plain: str, cooler: str) -> str:
    """Say what a method does to captions under sampling, beside plain sampling that is merely cooler.

    Args:
        chair: The captions of all three.
        method: The method under sampling.
        plain: Plain sampling at the same temperature.
        cooler: Plain sampling at a lower temperature.
    """
    changes = [
        f"{_shown('chair_i', _difference(chair, method, other, 'chair_i'))} against {other}"
        for other in (plain, cooler)
    ]
    verdict = {True: "beats", False: "does not beat"}[
        is_better("chair_i", _difference(chair, method, cooler, "chair_i"))
    ]
    return f"Under sampling, {method} {verdict} plain sampling at a lower temperature: CHAIRi {' and '.join(changes)}."


def is_better(metric: str, difference: Interval | None) -> bool:
    """Whether a difference is an improvement beyond doubt.

    Example:
        >>> is_better("chair_i", Interval(-0.02, -0.03, -0.01, 0.95, 2000))
        True
        >>> is_better("accuracy", Interval(0.01, -0.01, 0.03, 0.95, 2000))
        False
    """
    if difference is None:
        return False
    return difference.high < 0 if metric in LOWER_IS_BETTER else difference.low > 0


def _against_baseline(pope: Comparison, chair: Comparison, method: str) -> str:
    measures = ((pope, "accuracy", "POPE accuracy"), (chair, "chair_i", "CHAIRi"), (chair, "recall", "recall"))
    accuracy, hallucinated, recall = (
        f"{name} by {_shown(metric, _difference(comparison, method, comparison.baseline.name, metric))}"
        for comparison, metric, name in measures
    )
    return f"Against {chair.baseline.name} decoding, DAMRO changes {accuracy}, {hallucinated} and {recall} points."


def _difference(comparison: Comparison, method: str, other: str, metric: str) -> Interval | None:
    return _whole(_entry(comparison, method)).differences(_whole(_entry(comparison, other)))[metric]


def _entry(comparison: Comparison, name: str) -> Entry:
    return next(entry for entry in comparison.entries if entry.name == name)


def _whole(entry: Entry) -> Group:
    """All splits together, or the only group."""
    return entry.groups[-1]


def _shown(metric: str, difference: Interval | None) -> str:
    return show_difference(metric, difference).rstrip("*") or "not defined"


def _name(metric: str) -> str:
    return LABELS[metric].removesuffix(" %")
