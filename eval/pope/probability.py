"""POPE scored by P(yes): accuracy at a half, and what a threshold could make of it; no rule reads answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from damro.eval.benchmark import Group, Measure, Note
from damro.eval.pope.groups import MEASURES as OF_ANSWERS
from damro.eval.pope.groups import OUTCOMES
from damro.eval.pope.questions import Question
from damro.eval.thresholds import UNDECIDED, WIDTH, best_threshold, column_of, threshold_measures

if TYPE_CHECKING:
    from damro.eval.statistics import Array

RULE = "logits"
"""Told where other scores tell the rule that read answers."""
MEASURES: dict[str, Measure] = {
    **OF_ANSWERS,
    **threshold_measures(len(OUTCOMES), lambda m: m[..., : len(OUTCOMES)].sum(-1)),
}
"""Of the columns of answers and those of `damro.eval.thresholds`."""


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
        row = counts.setdefault(question.image, np.zeros(len(OUTCOMES) + WIDTH))
        row[OUTCOMES.index(_outcome(question, value))] += 1
        if value is not None:
            row[len(OUTCOMES) + column_of(question.label, value)] += 1
    means = np.mean(list(counts.values()), axis=0)
    outcomes = {name: sum(int(row[place]) for row in counts.values()) for place, name in enumerate(OUTCOMES)}
    outcomes["undecided"] = outcomes.pop("unread")
    found = {name: float(measure.compute(means)) for name, measure in MEASURES.items()}
    scores: dict[str, Any] = {
        **outcomes,
        **{name: value if math.isfinite(value) else None for name, value in found.items()},
        "threshold": best_threshold(means, len(OUTCOMES)),
        "n": len(pairs),
        "rule": RULE,
        **(changes or {}),
    }
    notes = [Note("read", RULE), Note("questions", len(pairs)), Note("best threshold", f"{scores['threshold']:.3g}")]
    notes.append(Note("undecided", outcomes["undecided"], UNDECIDED, doubtful=outcomes["undecided"] > 0))
    notes += [Note(what.replace("_", " "), count) for what, count in (changes or {}).items()]
    rows = {image: tuple(map(float, row)) for image, row in counts.items()}
    return Group(name, scores, rows, MEASURES, notes=tuple(notes))


def _outcome(question: Question, value: float | None) -> str:
    if value is None:
        return "unread"
    if value >= 0.5:
        return "tp" if question.label == "yes" else "fp"
    return "tn" if question.label == "no" else "fn"
