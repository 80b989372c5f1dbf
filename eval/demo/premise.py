"""Does DAMRO's premise hold: do the patches that [CLS] attends to most lie on background?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from damro.eval.report.tables import is_clear
from damro.eval.statistics import Interval, bootstrap_metrics
from damro.loading import Loaded, prepare_inputs
from damro.tiny.scenes import scene
from damro.vision.attention import CLSAttention, cls_attention
from damro.vision.outliers import find_outliers

_BATCH = 50


@dataclass(frozen=True)
class Premise:
    """Where the flagged patches lie, over scenes.

    Attributes:
        flagged: Share of the flagged patches on background.
        base: Share of all patches on background.
        difference: The first less the second, in the same scenes.
        top_k: Patches flagged in a scene.
        scenes: Number of scenes.
    """

    flagged: Interval
    base: Interval
    difference: Interval
    top_k: int
    scenes: int

    @property
    def holds(self) -> bool | None:
        """Whether flagged patches lie on background more often than any; None if the interval leaves it open.

        Decided as tables decide, on ends rounded to tenths of a percent.
        """
        if not is_clear(self.difference):
            return None
        return self.difference.estimate > 0

    def sentence(self) -> str:
        """Say in one sentence whether the premise holds for this model."""
        verdict = {True: "holds", False: "does not hold", None: "is not decided"}[self.holds]
        return (
            f"DAMRO's premise, that patches with the most [CLS] attention are background, {verdict} for this model: "
            f"{_percent(self.flagged)} of the {self.top_k} flagged patches lie on background, against "
            f"{_percent(self.base)} of all patches."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        figures = {name: asdict(getattr(self, name)) for name in ("flagged", "base", "difference")}
        return {**figures, "top_k": self.top_k, "scenes": self.scenes, "holds": self.holds}


def object_mask(number: int) -> Tensor:
    """Return where the objects of a test scene are, bool ``(96, 96)``."""
    picture = scene("test", number)
    mask = np.zeros(picture.image.size[::-1], dtype=np.bool_)
    for thing in picture.objects:
        mask |= thing.mask
    return torch.from_numpy(mask)


def attend_scenes(loaded: Loaded, scenes: int) -> CLSAttention:
    """Return the [CLS] attention of the first test scenes, a tile a scene."""
    parts = []
    for start in range(0, scenes, _BATCH):
        images = [scene("test", number).image for number in range(start, min(start + _BATCH, scenes))]
        inputs = prepare_inputs(loaded.processor, images, ["Describe this image."] * len(images), loaded.model)
        parts.append(cls_attention(loaded.model, inputs))
    weights = torch.cat([part.weights[part.tile == 0] for part in parts]).float().cpu()
    zeros = torch.zeros(len(weights), dtype=torch.long)
    return CLSAttention(weights, parts[0].grid, parts[0].layer, parts[0].heads, torch.arange(len(weights)), zeros)


def measure_premise(attention: CLSAttention, top_k: int, scenes: int) -> Premise:
    """Measure how often flagged patches lie on background, and how often any patch does."""
    masks = torch.stack([object_mask(number) for number in range(scenes)])
    found = find_outliers(attention, top_k=top_k, object_mask=masks)
    assert found.background is not None and found.background_base is not None
    rows = torch.stack([found.background, found.background_base], dim=-1).numpy()
    intervals = bootstrap_metrics(
        rows,
        {
            "flagged": lambda means: means[..., 0],
            "base": lambda means: means[..., 1],
            "difference": lambda means: means[..., 0] - means[..., 1],
        },
    )
    flagged, base, difference = (intervals[name] for name in ("flagged", "base", "difference"))
    assert flagged and base and difference  # means of numbers are always defined
    return Premise(flagged, base, difference, top_k, scenes)


def _percent(interval: Interval) -> str:
    value, low, high = (100 * number for number in (interval.estimate, interval.low, interval.high))
    return f"{value:.1f} % (95 % interval {low:.1f} to {high:.1f})"
