"""Does the language model follow: where it looks in the image while it writes, and what is flagged there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from damro.eval.statistics import Interval, bootstrap
from damro.inspection.plain import Plain


@dataclass(frozen=True)
class FollowingFindings(Plain):
    """What language model and vision tower have in common, over images.

    Attributes:
        overlap: share of the k patches that a token looks at most which are flagged.
        overlap_above: the same, less what k random patches would have (k of all patches).
        share: share of a token's attention to the image that the flagged patches get.
        share_above: the same, less what k random patches would get.
        chance: what k random patches would have, and get.
    """

    overlap: Interval
    overlap_above: Interval
    share: Interval
    share_above: Interval
    chance: float


def measure_following(
    overlaps: Sequence[float], shares: Sequence[float], chances: Sequence[float]
) -> FollowingFindings:
    """Averages over images.

    Args:
        overlaps: of each image, the share of patches in common.
        shares: of each image, the share of attention that flagged patches get.
        chances: of each image, k of all patches: the mean overlap of k patches drawn at random (hypergeometric).

    Example:
        >>> found = measure_following([0.5, 0.3], [0.4, 0.4], [0.1, 0.1])
        >>> round(found.overlap.estimate, 2), round(found.overlap_above.estimate, 2), found.chance
        (0.4, 0.3, 0.1)
    """
    chance = np.asarray(chances)
    return FollowingFindings(
        overlap=bootstrap(overlaps),
        overlap_above=bootstrap(np.asarray(overlaps) - chance),
        share=bootstrap(shares),
        share_above=bootstrap(np.asarray(shares) - chance),
        chance=float(chance.mean()),
    )
