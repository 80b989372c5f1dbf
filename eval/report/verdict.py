"""Sentences about a method and its controls, decided by paired intervals."""

from __future__ import annotations

from damro.eval.benchmark import Measure
from damro.eval.report.comparison import Comparison, Entry
from damro.eval.report.tables import is_clear, show_difference
from damro.eval.statistics import Interval

CONTROLS = ("random-k", "least-k", "no-image")
_ACCURACY, _HALLUCINATED = "accuracy", "chair_i"


def judge_controls(pope: Comparison, chair: Comparison, method: str = "damro") -> tuple[str, str]:
    """Say in a sentence whether a method beats its controls, and in another what it costs.

    It beats a control on a measure if the 95 % interval of their paired difference lies wholly on the better side.
    """
    parts, beaten = [], []
    for comparison, metric in ((pope, _ACCURACY), (chair, _HALLUCINATED)):
        measure = comparison.baseline.whole.measures[metric]
        differences = {name: _difference(comparison, method, name, metric) for name in CONTROLS}
        beaten += [is_better(measure, found) for found in differences.values()]
        shown = "; ".join(f"{_shown(found)} against {name}" for name, found in differences.items())
        parts.append(f"{comparison.benchmark.upper()} {measure.label} {shown}")
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
    measure = chair.baseline.whole.measures[_HALLUCINATED]
    found = {other: _difference(chair, method, other, _HALLUCINATED) for other in (plain, cooler)}
    changes = " and ".join(f"{_shown(one)} against {other}" for other, one in found.items())
    verdict = "beats" if is_better(measure, found[cooler]) else "does not beat"
    return f"Under sampling, {method} {verdict} plain sampling at a lower temperature: {measure.label} {changes}."


def is_better(measure: Measure, difference: Interval | None) -> bool:
    """Whether a difference is an improvement beyond doubt: to the better side, and with a star in tables.

    Example:
        >>> from damro.eval.statistics import first_column
        >>> is_better(Measure(first_column, "CHAIRi", better="lower"), Interval(-0.02, -0.03, -0.01, 0.95, 2000))
        True
        >>> is_better(Measure(first_column, "accuracy"), Interval(0.01, -0.01, 0.03, 0.95, 2000))
        False
    """
    if difference is None or measure.better is None or not is_clear(difference, measure.unit, measure.digits):
        return False
    return difference.high < 0 if measure.better == "lower" else difference.low > 0


def _against_baseline(pope: Comparison, chair: Comparison, method: str) -> str:
    measures = ((pope, _ACCURACY, "POPE accuracy"), (chair, _HALLUCINATED, "CHAIRi"), (chair, "recall", "recall"))
    accuracy, hallucinated, recall = (
        f"{name} by {_shown(_difference(comparison, method, comparison.baseline.name, metric))}"
        for comparison, metric, name in measures
    )
    return f"Against {chair.baseline.name} decoding, DAMRO changes {accuracy}, {hallucinated} and {recall} points."


def _difference(comparison: Comparison, method: str, other: str, metric: str) -> Interval | None:
    return _entry(comparison, method).whole.differences(_entry(comparison, other).whole)[metric]


def _entry(comparison: Comparison, name: str) -> Entry:
    return next(entry for entry in comparison.entries if entry.name == name)


def _shown(difference: Interval | None) -> str:
    return show_difference(difference).rstrip("*") or "not defined"
