"""POPE's scores with what intervals are made of: a group a split, and the mean over splits that papers quote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from damro.eval.benchmark import Group, Measure, Note, share
from damro.eval.errors import EvalError
from damro.eval.pope.questions import Question
from damro.eval.pope.scoring import judge, score_pairs

if TYPE_CHECKING:
    from damro.eval.statistics import Array, Metric

MEAN = "mean of splits"
"""Name of the group of `mean_group`."""
OUTCOMES = ("tp", "fp", "tn", "fn", "unread")
"""The first columns of a group."""
_MEANINGS = {
    "unparsed": "neither a yes nor a no to a neutral reader, and counted all the same",
    "misread": "a yes or a no to a neutral reader, and not the same to the rule",
}


def _questions(means: Array) -> Array:
    total: Array = means[..., : len(OUTCOMES)].sum(-1)
    return total


def _both_sides(means: Array) -> Array:
    """What F1 divides by; nothing where there is no right yes, of which precision and recall have no harmonic mean."""
    sides: Array = (2 * means[..., 0] + means[..., 1] + means[..., 3]) * (means[..., 0] > 0)
    return sides


MEASURES: dict[str, Measure] = {
    "accuracy": Measure(share(lambda m: m[..., 0] + m[..., 2], _questions), "accuracy", plotted=True),
    "precision": Measure(share(lambda m: m[..., 0], lambda m: m[..., 0] + m[..., 1]), "precision"),
    "recall": Measure(share(lambda m: m[..., 0], lambda m: m[..., 0] + m[..., 3]), "recall"),
    "f1": Measure(share(lambda m: 2 * m[..., 0], _both_sides), "F1", plotted=True),
    "yes_ratio": Measure(share(lambda m: m[..., 0] + m[..., 1], _questions), "yes", better=None, plotted=True),
}
"""Of the columns tp, fp, tn, fn, unread. F1 from counts is the harmonic mean of precision and recall."""


def score_group(
    name: str,
    pairs: Sequence[tuple[Question, str]],
    rule: str,
    changes: Mapping[str, int] | None = None,
    *,
    beside: bool = False,
) -> Group:
    """Score the questions of one split under one rule.

    Args:
        name: Of the split.
        pairs: Each question with its answer.
        rule: One of `damro.eval.pope.rules.RULES`.
        changes: What corrected labels changed, as `damro.eval.pope.labels.correct_pairs` counts it.
        beside: Whether this is another reading of answers that an earlier group has already.

    Raises:
        EvalError: The rule is unknown, or there are no questions.
    """
    counts: dict[str, list[float]] = {}
    for question, text in pairs:
        counts.setdefault(question.image, [0.0] * len(OUTCOMES))[OUTCOMES.index(judge(question, text, rule))] += 1
    result, changes = score_pairs(pairs, rule), changes or {}
    notes = [Note("rule", rule), Note("questions", result.n)]
    notes += [
        Note(what, count, _MEANINGS[what], doubtful=count > 0)
        for what, count in (("unparsed", result.unparsed), ("misread", result.misread))
    ]
    notes += [Note(what.replace("_", " "), count) for what, count in changes.items()]
    columns_of = {image: tuple(row) for image, row in counts.items()}
    title = f"{name} ({rule})" if beside else name
    return Group(title, {**result.to_dict(), **changes}, columns_of, MEASURES, notes=tuple(notes), beside=beside)


def mean_group(groups: Sequence[Group]) -> Group:
    """Return the mean of each metric over splits, as papers average POPE; images are drawn in all splits together.

    A metric that one of the splits does not have has no mean.

    Raises:
        EvalError: There are no groups.
    """
    if not groups:
        raise EvalError("groups must hold at least one split, got none")
    first = groups[0]
    width = len(next(iter(first.counts.values())))
    measures = {
        name: one._replace(compute=_mean_of(one.compute, len(groups), width)) for name, one in first.measures.items()
    }
    scores: dict[str, float | None] = {}
    for name in measures:
        values = [group.scores[name] for group in groups]
        scores[name] = None if None in values else sum(values) / len(values)
    nothing = (0.0,) * width
    images = dict.fromkeys(image for group in groups for image in group.counts)
    counts = {image: tuple(n for group in groups for n in group.counts.get(image, nothing)) for image in images}
    kept = [note for note in first.notes if note.name in ("rule", "read")]
    title = f"{MEAN} ({first.scores['rule']})" if first.beside else MEAN
    return Group(title, scores, counts, measures, notes=(*kept, Note("splits", len(groups))), beside=first.beside)


def _mean_of(metric: Metric, splits: int, width: int) -> Metric:
    """The mean of a metric over splits whose columns stand side by side."""

    def mean(means: Array) -> Array:
        total: Array = sum(metric(means[..., width * n : width * (n + 1)]) for n in range(splits))  # type: ignore[assignment]
        return total / splits

    return mean
