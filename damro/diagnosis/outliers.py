"""Are there outliers: how attention is spread, what flagged patches are, and whether they stay the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from damro.diagnosis.looking import Look
from damro.eval.statistics import Interval, bootstrap
from damro.inspection.plain import Plain
from damro.vision.sources import Source


@dataclass(frozen=True)
class OutlierFindings(Plain):
    """The flagged patches, over images; intervals are 95 % bootstrap intervals over images.

    Attributes:
        source: whose attention flags them: "cls", or "received" of a ViT without [CLS].
        layer: the layer that flags them.
        other: the layer that it is compared with.
        top_k: how many are flagged.
        uniform: their share of all patches: what they would hold of an even spread, and what as many random ones
            have in common with them.
        share: share of the attention to patches that they hold.
        by_layer: the same in every layer, of the patches with most of it there.
        norm_ratio: mean length of their vectors, to that of the others.
        after_shift: share of them that are flagged when the image is shifted by a few pixels.
        in_other: share of them that the other layer flags, too.
        background: share of them on background; None where objects' places are not known.
        background_others: share of the other patches on background.
        background_difference: the first less the second, in the same images.
        placed: images whose objects' places are known.
    """

    source: Source
    layer: int
    other: int
    top_k: int
    uniform: float
    share: Interval
    by_layer: tuple[Interval, ...]
    norm_ratio: Interval
    after_shift: Interval
    in_other: Interval
    background: Interval | None
    background_others: Interval | None
    background_difference: Interval | None
    placed: int


def measure_outliers(looks: Sequence[Look]) -> OutlierFindings:
    """Averages over images.

    Args:
        looks: one an image, at least one.
    """
    first = looks[0]
    placed = np.array([look.background for look in looks if look.background is not None]).reshape(-1, 2)
    by_layer = np.array([look.shares for look in looks])  # (images, layers)
    return OutlierFindings(
        source=first.source,
        layer=first.layer,
        other=first.other,
        top_k=len(first.flagged),
        uniform=float(np.mean([look.chance for look in looks])),
        share=bootstrap(by_layer[:, first.layer]),
        by_layer=tuple(bootstrap(column) for column in by_layer.T),
        norm_ratio=bootstrap([look.norm_ratio for look in looks]),
        after_shift=bootstrap([look.after_shift for look in looks]),
        in_other=bootstrap([look.in_other for look in looks]),
        background=bootstrap(placed[:, 0]) if len(placed) else None,
        background_others=bootstrap(placed[:, 1]) if len(placed) else None,
        background_difference=bootstrap(placed[:, 0] - placed[:, 1]) if len(placed) else None,
        placed=len(placed),
    )
