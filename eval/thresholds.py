"""What a threshold of P(yes) could make of yes/no questions, without a rule that reads answers.

    AUC = P(P(yes) of a question whose answer is yes > P(yes) of one whose answer is no), ties a half

Thresholds and AUC are those of log-odds in steps of 0.05 between -20 and 20, which is what intervals are made of: by
image, how many of its questions are in each step, those whose answer is yes before those whose answer is no.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from damro.eval.errors import DataFormatError
from damro.eval.groups import Measure, share

if TYPE_CHECKING:
    from damro.eval.statistics import Array, Metric

_STEP, _FARTHEST = 0.05, 20.0
_BINS = round(2 * _FARTHEST / _STEP) + 1
WIDTH = 2 * _BINS
"""How many columns there are."""
UNDECIDED = "neither yes nor no is among the method's plausible tokens, and counted as wrong"
"""What it means that a question has no P(yes)."""


def p_yes_of(fields: Mapping[str, Any], key: str) -> float | None:
    """Return the P(yes) of a record; None where there is none.

    Raises:
        DataFormatError: It is no probability, or the record has an answer and no P(yes).
    """
    value = fields.get("p_yes")
    if value is None and not fields.get("answer"):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise DataFormatError(
            f"record {key!r} must have a probability under 'p_yes', got {value!r:.80}: restore the records or run the "
            "benchmark anew"
        )
    return float(value)


def column_of(label: str, value: float) -> int:
    """Return the column that a question counts in, from 0."""
    odds = math.log(value) - math.log1p(-value) if 0 < value < 1 else math.copysign(math.inf, value - 0.5)
    place = math.floor((min(max(odds, -_FARTHEST), _FARTHEST) + _FARTHEST) / _STEP)  # a half begins a step
    return place + _BINS * (label == "no")


def threshold_measures(first: int, questions: Metric) -> dict[str, Measure]:
    """Return AUC and the best accuracy of a threshold, as metrics.

    Args:
        first: The first of the columns.
        questions: How many questions there are, with those that have no P(yes).
    """

    def won(means: Array) -> Array:
        """Pairs of a yes and a no in which the yes has more P(yes)."""
        there, absent = _halves(means, first)
        total: Array = (there * (absent.cumsum(-1) - 0.5 * absent)).sum(-1)
        return total

    def pairs(means: Array) -> Array:
        there, absent = _halves(means, first)
        total: Array = there.sum(-1) * absent.sum(-1)
        return total

    def right(means: Array) -> Array:
        most: Array = _right_from(means, first).max(-1)
        return most

    return {
        "auc": Measure(share(won, pairs), "AUC", plotted=True),
        "best_accuracy": Measure(share(right, questions), "best accuracy"),
    }


def best_threshold(means: Array, first: int) -> float:
    """Return the threshold of P(yes) with the most right answers; of several the nearest to a half."""
    right = _right_from(means, first)
    best = [place for place in range(_BINS) if math.isclose(right[place], right.max())]
    place = min(best, key=lambda number: abs(number - _BINS // 2))
    return 1 / (1 + math.exp(_FARTHEST - _STEP * place))


def _halves(means: Array, first: int) -> tuple[Array, Array]:
    """By log-odds, the questions whose answer is yes, and those whose answer is no."""
    return means[..., first : first + _BINS], means[..., first + _BINS : first + WIDTH]


def _right_from(means: Array, first: int) -> Array:
    """By threshold, what is right if everything from it on is a yes."""
    there, absent = _halves(means, first)
    right: Array = there[..., ::-1].cumsum(-1)[..., ::-1] + absent.cumsum(-1) - absent
    return right
