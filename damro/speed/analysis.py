"""What DAMRO adds to the vision pass: recording its attention and ranking what it looks at."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from damro.decoding.families import family_of
from damro.decoding.families.generic.maps import forget
from damro.speed.timing import now
from damro.vision.attention import CLSAttention, family_heads, read_layer, record_layers
from damro.vision.outliers import rank_patches

_TOP_K = 10


@dataclass(frozen=True)
class AnalysisSpeed:
    """Medians of seconds.

    Attributes:
        vision: the vision pass alone: tower and projector.
        analysed: the same, recorded, with the patches or columns ranked.
        verifying: looking up which patches become which column, as happens once for a model and a shape of image;
            None for models whose patches are ranked as they are.
    """

    vision: float
    analysed: float
    verifying: float | None


@torch.no_grad()
def measure_analysis(model: PreTrainedModel, inputs: Mapping[str, Tensor], *, repeats: int = 3) -> AnalysisSpeed:
    """Times the vision pass with and without what DAMRO needs of it, in turn.

    A first round, not counted, warms up.

    Args:
        model: the LVLM.
        inputs: of the batch that it looks at.
        repeats: rounds of which the median is taken.
    """
    family: Any = family_of(model)
    layer = family.feature_layer(model, reference=True)

    def alone() -> None:
        family.encode(model, inputs)

    def recorded() -> Callable[[], CLSAttention]:
        with record_layers(family, model, inputs, [layer]) as kept:
            encoding = family.encode(model, inputs)
        return lambda: read_layer(family, model, inputs, kept, encoding, layer, family_heads(family))

    def analysed() -> None:
        rank_patches(recorded()().weights, _TOP_K)

    ways: dict[str, Callable[[], object]] = {"vision": alone, "analysed": analysed}
    if hasattr(family, "column_weights"):
        read = recorded()

        def verifying() -> None:
            forget(model)
            read()

        ways["verifying"] = verifying
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(repeats + 1):
        for name, way in ways.items():
            start = now(model.device)
            way()
            if round_number:
                seconds[name].append(now(model.device) - start)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    return AnalysisSpeed(medians["vision"], medians["analysed"], medians.get("verifying"))
