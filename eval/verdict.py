"""Sentences about a method and its controls, decided by paired intervals."""

from __future__ import annotations

from eval.report import Comparison, Entry
from eval.scores import LOWER_IS_BETTER, Group
from eval.statistics import Interval
from eval.tables import LABELS, show_difference

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
    return against, _cost(chair, method)


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


def _cost(chair: Comparison, method: str) -> str:
    halluc, recall = (_difference(chair, method, chair.baseline.name, metric) for metric in ("chair_i", "recall"))
    return (
        f"Against {chair.baseline.name} decoding, DAMRO changes CHAIRi by {_shown('chair_i', halluc)} and recall by "
        f"{_shown('recall', recall)} points."
    )


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
