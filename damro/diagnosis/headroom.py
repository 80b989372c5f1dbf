"""Is there room: how often a contrast could change a token, and what the best alpha and beta do on images held out.

Every alpha and beta is tried on kept logits. The best of them is chosen on one half of the images and judged on the
other, since the best of many looks good where it was chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from damro.diagnosis.knowledge import METHOD
from damro.diagnosis.settings import CONTROLS, PROMPTS
from damro.eval.statistics import Interval, bootstrap_statistic
from damro.inspection.plain import Plain

Array = NDArray[np.float64]


class Counts(NamedTuple):
    """What contrasts change in I images, under N second prompts, A alphas and B betas.

    Attributes:
        better: `(I, N, A, B)`, what they mend: wrong answers made right, words of absent objects that give way to
            words of objects that are there.
        worse: `(I, N, A, B)`, what they spoil, likewise.
        avoided: `(I, N, A, B)`, what is wrong without and not with them: of captions, words of absent objects that
            give way to anything but such a word.
        lost: `(I, N, A, B)`, what is right without and not with them.
        wrong: `(I,)`, answers or words that are wrong without.
        right: `(I,)`, those that are right.
    """

    better: Array
    worse: Array
    avoided: Array
    lost: Array
    wrong: Array
    right: Array

    @property
    def total(self) -> Array:
        """`(I,)`, all answers or words."""
        return self.wrong + self.right


@dataclass(frozen=True)
class Effect(Plain):
    """What a contrast does to the images held out.

    Attributes:
        alpha: the strength that was best on the other half.
        beta: the cutoff that was.
        change: what is mended less what is spoilt, see :class:`Counts`, as a share of all answers or words.
        avoided: share of what is wrong without the contrast that is not with it.
        lost: share of what is right without the contrast that is not with it.
        where_chosen: the change in the half where it was chosen, too good as a rule.
    """

    alpha: float
    beta: float
    change: Interval | None
    avoided: Interval | None
    lost: Interval | None
    where_chosen: float


@dataclass(frozen=True)
class HeadRoom(Plain):
    """Room for a contrast.

    Attributes:
        open_steps: share of the steps with two or more plausible tokens, by beta.
        best: by second prompt, what its best contrast does.
        above_controls: the change under DAMRO's best contrast, less that under each control's.
        change: by second prompt `(A, B)`, the change in all images; chosen by nothing, and so no best is to be read
            out of it.
        alphas: the A strengths.
        betas: the B cutoffs.
        held_out: images that `best` was judged on.
    """

    open_steps: Mapping[float, Interval | None]
    best: Mapping[str, Effect]
    above_controls: Mapping[str, Interval | None]
    change: Mapping[str, tuple[tuple[float, ...], ...]]
    alphas: tuple[float, ...]
    betas: tuple[float, ...]
    held_out: int


def measure_room(
    counts: Counts, open_steps: Sequence[Array], alphas: Sequence[float], betas: Sequence[float], seed: int
) -> HeadRoom:
    """Chooses on one half and judges on the other.

    Args:
        counts: of at least two images.
        open_steps: of each image `(T, B)`, whether two or more tokens were plausible.
        alphas: A strengths, in ascending order.
        betas: B cutoffs, in ascending order.
        seed: of the halves.
    """
    choosing, judging = halves(len(counts.total), seed)
    net = counts.better - counts.worse
    best = {name: choose_setting(net[choosing, number].sum(axis=0)) for number, name in enumerate(PROMPTS)}
    total = counts.total[judging]
    changes = {name: net[judging, number, *best[name]] for number, name in enumerate(PROMPTS)}
    effects = {}
    for number, name in enumerate(PROMPTS):
        strength, cutoff = best[name]
        effects[name] = Effect(
            alpha=alphas[strength],
            beta=betas[cutoff],
            change=_share(changes[name], total),
            avoided=_share(counts.avoided[judging, number, strength, cutoff], counts.wrong[judging]),
            lost=_share(counts.lost[judging, number, strength, cutoff], counts.right[judging]),
            where_chosen=_of(net[choosing, number, strength, cutoff], counts.total[choosing]),
        )
    every = max(1.0, float(counts.total.sum()))
    steps = np.array([len(one) for one in open_steps], dtype=float)
    return HeadRoom(
        open_steps={
            beta: _share(np.array([one[:, number].sum() for one in open_steps]), steps)
            for number, beta in enumerate(betas)
        },
        best=effects,
        above_controls={name: _share(changes[METHOD] - changes[name], total) for name in CONTROLS},
        change={
            name: tuple(map(tuple, (net[:, number].sum(axis=0) / every).tolist()))
            for number, name in enumerate(PROMPTS)
        },
        alphas=tuple(alphas),
        betas=tuple(betas),
        held_out=len(judging),
    )


def halves(images: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two halves of the images at random: on the first is chosen, on the second, the larger one, judged."""
    order = np.random.default_rng(seed).permutation(images)
    return np.sort(order[: images // 2]), np.sort(order[images // 2 :])


def choose_setting(net: Array) -> tuple[int, int]:
    """Places of the best alpha and beta in `(A, B)`; of equals the one that changes least.

    Example:
        >>> choose_setting(np.array([[1.0, 3.0], [3.0, 3.0]]))
        (0, 1)
    """
    strengths, cutoffs = net.shape
    place = int(net[:, ::-1].argmax())  # the least alpha first, of each the greatest beta
    return place // cutoffs, cutoffs - 1 - place % cutoffs


def _share(part: Array, whole: Array) -> Interval | None:
    """A sum by a sum."""

    def share(counts: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            found: Array = (counts @ part) / (counts @ whole)
        return found

    return bootstrap_statistic(share, len(whole))


def _of(part: Array, whole: Array) -> float:
    return float(part.sum() / whole.sum()) if whole.sum() else float("nan")
