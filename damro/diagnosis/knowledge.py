"""What the second prompts know: which objects they tell apart by the probability that they give to naming them.

AUC is the probability that a thing of one kind, drawn at random, has a higher log-probability than one of another kind
(Mann and Whitney's U by the number of pairs; ties count half). Intervals are of images drawn with all that was asked
about them: a resample with image i w_i times has `w W w / (w p)(w n)`, W_ij the wins of i's things of one
kind over j's of the other, p and n how many there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from damro.diagnosis.settings import CONTROLS, PROMPTS
from damro.eval.statistics import Interval, bootstrap_statistic
from damro.inspection.plain import Plain

Array = NDArray[np.float64]
METHOD = PROMPTS[0]


@dataclass(frozen=True)
class Pairs:
    """Things of two kinds in I images, compared pair by pair.

    Attributes:
        wins: `(I, I)`, how many pairs the things of one kind in image i win over those of the other in image j.
        positives: `(I,)`, things of the first kind.
        negatives: `(I,)`, things of the second kind.
    """

    wins: Array
    positives: Array
    negatives: Array

    def auc(self, counts: Array) -> Array:
        """AUC where images are drawn so often: `(R, I)` to `(R,)`; NaN where a kind is missing."""
        with np.errstate(divide="ignore", invalid="ignore"):
            won = np.einsum("ri,ij,rj->r", counts, self.wins, counts, optimize=True)
            found: Array = won / ((counts @ self.positives) * (counts @ self.negatives))
        return found


def compare_pairs(positive: Sequence[ArrayLike], negative: Sequence[ArrayLike]) -> Pairs:
    """Compares every thing of one kind with every thing of the other.

    Args:
        positive: of each image, the scores of its things of one kind; may be empty.
        negative: likewise, of the other kind.

    Example:
        >>> pairs = compare_pairs([[3.0], []], [[1.0], [3.0, 4.0]])
        >>> pairs.wins.tolist(), float(pairs.auc(np.array([[1, 1]]))[0])
        ([[1.0, 0.5], [0.0, 0.0]], 0.5)
    """
    (first, of_first), (second, of_second) = _flat(positive), _flat(negative)
    won = (first[:, None] > second).astype(np.float64) + 0.5 * (first[:, None] == second)
    images = len(positive)
    wins = _members(of_first, images) @ won @ _members(of_second, images).T
    return Pairs(wins, _members(of_first, images).sum(axis=1), _members(of_second, images).sum(axis=1))


def _flat(groups: Sequence[ArrayLike]) -> tuple[Array, NDArray[np.int64]]:
    """All scores in a row, and the number of the image of each."""
    values = [np.asarray(group, dtype=np.float64).reshape(-1) for group in groups]
    return np.concatenate(values), np.repeat(np.arange(len(values)), [len(group) for group in values])


def _members(image: NDArray[np.int64], images: int) -> Array:
    """`(images, things)`, 1 where a thing is of an image."""
    found: Array = (image == np.arange(images)[:, None]).astype(np.float64)
    return found


@dataclass(frozen=True)
class QuestionKnowledge(Plain):
    """How well log P(yes) under each second prompt tells objects apart, by the name of the prompt.

    Attributes:
        present: AUC of objects that are there over absent ones that the model denies.
        hallucinated: AUC of absent objects that the model says are there over those that it denies.
        difference: the second less the first; above zero, a contrast takes more from what is hallucinated than from
            what is there.
        above_controls: `hallucinated` under DAMRO's prompt, less that under each control.
        rate: share of the absent objects asked for that the model says are there.
        counts: objects present, hallucinated and denied.
        hallucinating_images: images of which the model says yes to an absent object.
    """

    present: Mapping[str, Interval | None]
    hallucinated: Mapping[str, Interval | None]
    difference: Mapping[str, Interval | None]
    above_controls: Mapping[str, Interval | None]
    rate: Interval | None
    counts: Mapping[str, int]
    hallucinating_images: int


@dataclass(frozen=True)
class CaptionKnowledge(Plain):
    """How well the log-probability of an object's word tells hallucinated ones from true ones, by prompt.

    Attributes:
        hallucinated: AUC of hallucinated words over true ones.
        above_chance: the same less a half.
        above_controls: `hallucinated` under DAMRO's prompt, less that under each control.
        rate: share of the words that are hallucinated.
        counts: words true and hallucinated.
        hallucinating_images: images whose caption names an absent object.
    """

    hallucinated: Mapping[str, Interval | None]
    above_chance: Mapping[str, Interval | None]
    above_controls: Mapping[str, Interval | None]
    rate: Interval | None
    counts: Mapping[str, int]
    hallucinating_images: int


Groups = Mapping[str, Sequence[Sequence[ArrayLike]]]
"""By kind, of each image, of each thing: `(N,)`, its log-probability under each second prompt."""


def measure_questions(scores: Groups) -> QuestionKnowledge:
    """Compares what was asked about.

    Args:
        scores: of the kinds "present", "hallucinated" and "denied".
    """
    images = len(scores["denied"])
    present = _compare(scores["present"], scores["denied"])
    hallucinated = _compare(scores["hallucinated"], scores["denied"])
    counts = {kind: [len(things) for things in of_images] for kind, of_images in scores.items()}
    return QuestionKnowledge(
        present={name: bootstrap_statistic(pairs.auc, images) for name, pairs in present.items()},
        hallucinated={name: bootstrap_statistic(pairs.auc, images) for name, pairs in hallucinated.items()},
        difference={name: _difference(hallucinated[name], present[name], images) for name in PROMPTS},
        above_controls={name: _difference(hallucinated[METHOD], hallucinated[name], images) for name in CONTROLS},
        rate=_rate(counts["hallucinated"], counts["denied"]),
        counts={kind: sum(of_images) for kind, of_images in counts.items()},
        hallucinating_images=sum(count > 0 for count in counts["hallucinated"]),
    )


def measure_captions(scores: Groups) -> CaptionKnowledge:
    """Compares what captions name.

    Args:
        scores: of the kinds "true" and "hallucinated".
    """
    images = len(scores["true"])
    pairs = _compare(scores["hallucinated"], scores["true"])
    counts = {kind: [len(things) for things in of_images] for kind, of_images in scores.items()}
    return CaptionKnowledge(
        hallucinated={name: bootstrap_statistic(one.auc, images) for name, one in pairs.items()},
        above_chance={name: _above_chance(one, images) for name, one in pairs.items()},
        above_controls={name: _difference(pairs[METHOD], pairs[name], images) for name in CONTROLS},
        rate=_rate(counts["hallucinated"], counts["true"]),
        counts={kind: sum(of_images) for kind, of_images in counts.items()},
        hallucinating_images=sum(count > 0 for count in counts["hallucinated"]),
    )


def _compare(positive: Sequence[Sequence[ArrayLike]], negative: Sequence[Sequence[ArrayLike]]) -> dict[str, Pairs]:
    """The pairs under every second prompt."""
    one, two = ([np.array(things).reshape(-1, len(PROMPTS)) for things in kind] for kind in (positive, negative))
    return {
        name: compare_pairs([things[:, number] for things in one], [things[:, number] for things in two])
        for number, name in enumerate(PROMPTS)
    }


def _difference(first: Pairs, second: Pairs, images: int) -> Interval | None:
    return bootstrap_statistic(lambda counts: first.auc(counts) - second.auc(counts), images)


def _above_chance(pairs: Pairs, images: int) -> Interval | None:
    return bootstrap_statistic(lambda counts: pairs.auc(counts) - 0.5, images)


def _rate(part: Sequence[int], rest: Sequence[int]) -> Interval | None:
    """Share of the first among both."""
    some, every = np.array(part, dtype=float), np.array(part, dtype=float) + np.array(rest)

    def share(counts: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            found: Array = (counts @ some) / (counts @ every)
        return found

    return bootstrap_statistic(share, len(some))
