"""POPE scored by P(yes): accuracy at a half, and what a threshold could make of it, without a rule that reads answers.

    AUC = P(P(yes) of a question about an object that is there > P(yes) of one about an object that is not), ties a half

Thresholds and AUC are those of log-odds in steps of 0.05 between -20 and 20, which is what intervals are made of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from damro.eval.benchmark import Group, Measure, Note, share
from damro.eval.errors import DataFormatError
from damro.eval.pope.groups import MEASURES as OF_ANSWERS
from damro.eval.pope.groups import OUTCOMES
from damro.eval.pope.questions import Question

if TYPE_CHECKING:
    from damro.eval.statistics import Array

RULE = "logits"
"""Told where other scores tell the rule that read answers."""
_STEP, _FARTHEST = 0.05, 20.0
_BINS = round(2 * _FARTHEST / _STEP) + 1
_UNDECIDED = "neither yes nor no is among the method's plausible tokens, and counted as wrong"


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


def score_shares(
    name: str, pairs: Sequence[tuple[Question, float | None]], changes: Mapping[str, int] | None = None
) -> Group:
    """Score the questions of one split by their P(yes).

    Args:
        name: Of the split.
        pairs: Each question with its P(yes), or None.
        changes: What corrected labels changed.
    """
    import numpy as np

    counts: dict[str, Array] = {}
    for question, value in pairs:
        row = counts.setdefault(question.image, np.zeros(len(OUTCOMES) + 2 * _BINS))
        row[OUTCOMES.index(_outcome(question, value))] += 1
        if value is not None:
            row[len(OUTCOMES) + _BINS * (question.label == "no") + _bin(value)] += 1
    means = np.mean(list(counts.values()), axis=0)
    outcomes = {name: sum(int(row[place]) for row in counts.values()) for place, name in enumerate(OUTCOMES)}
    outcomes["undecided"] = outcomes.pop("unread")
    found = {name: float(measure.compute(means)) for name, measure in MEASURES.items()}
    scores: dict[str, Any] = {
        **outcomes,
        **{name: value if math.isfinite(value) else None for name, value in found.items()},
        "threshold": _best_threshold(means),
        "n": len(pairs),
        "rule": RULE,
        **(changes or {}),
    }
    notes = [Note("read", RULE), Note("questions", len(pairs)), Note("best threshold", f"{scores['threshold']:.3g}")]
    notes.append(Note("undecided", outcomes["undecided"], _UNDECIDED, doubtful=outcomes["undecided"] > 0))
    notes += [Note(what.replace("_", " "), count) for what, count in (changes or {}).items()]
    rows = {image: tuple(map(float, row)) for image, row in counts.items()}
    return Group(name, scores, rows, MEASURES, notes=tuple(notes))


def _outcome(question: Question, value: float | None) -> str:
    if value is None:
        return "unread"
    if value >= 0.5:
        return "tp" if question.label == "yes" else "fp"
    return "tn" if question.label == "no" else "fn"


def _bin(value: float) -> int:
    odds = math.log(value) - math.log1p(-value) if 0 < value < 1 else math.copysign(math.inf, value - 0.5)
    return math.floor((min(max(odds, -_FARTHEST), _FARTHEST) + _FARTHEST) / _STEP)  # a half begins a step


def _there(means: Array) -> Array:
    """By log-odds, the questions about objects that are there."""
    return means[..., len(OUTCOMES) : len(OUTCOMES) + _BINS]


def _absent(means: Array) -> Array:
    return means[..., len(OUTCOMES) + _BINS :]


def _won(means: Array) -> Array:
    """Pairs of a question about something there and one about something absent in which the former has more P(yes)."""
    absent = _absent(means)
    won: Array = (_there(means) * (absent.cumsum(-1) - 0.5 * absent)).sum(-1)
    return won


def _pairs(means: Array) -> Array:
    pairs: Array = _there(means).sum(-1) * _absent(means).sum(-1)
    return pairs


def _right_from(means: Array) -> Array:
    """By threshold, what is right if everything from it on is a yes."""
    there, absent = _there(means), _absent(means)
    right: Array = there[..., ::-1].cumsum(-1)[..., ::-1] + absent.cumsum(-1) - absent
    return right


def _best_threshold(means: Array) -> float:
    """The threshold of P(yes) with the most right answers; of several the nearest to a half."""
    right = _right_from(means)
    best = [place for place in range(_BINS) if math.isclose(right[place], right.max())]
    place = min(best, key=lambda number: abs(number - _BINS // 2))
    return 1 / (1 + math.exp(_FARTHEST - _STEP * place))


MEASURES: dict[str, Measure] = {
    **OF_ANSWERS,
    "auc": Measure(share(_won, _pairs), "AUC", plotted=True),
    "best_accuracy": Measure(
        share(lambda m: _right_from(m).max(-1), lambda m: m[..., : len(OUTCOMES)].sum(-1)), "best accuracy"
    ),
}
"""Of the columns of answers and, by log-odds, the questions about what is there and those about what is not."""
