"""What the vision tower makes of one image: where it looks, which patches it flags, and how firmly."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from damro.diagnosis.samples import Mask
from damro.errors import ParameterError
from damro.inspection import ViTInspection, inspect_vit, seen_image
from damro.loading import prepare_inputs
from damro.vision.attention import CLSAttention
from damro.vision.outliers import find_outliers, rank_patches
from damro.vision.sources import Source

PROMPT = "Describe this image."
"""Read by no vision tower; by InstructBLIP's Q-Former behind it."""


class Look(NamedTuple):
    """What the vision tower makes of one image; of an image in tiles, of the tile that shows the whole.

    Attributes:
        source: whose attention ranks patches.
        layer: which layer of the tower ranks them for DAMRO.
        other: the layer that it is compared with.
        grid: rows and columns of patches.
        weights: `(patches,)`, attention in the layer that ranks.
        flagged: `(k,)`, the patches with the most, in descending order.
        shares: `(layers,)`, share of the attention to patches that goes to the k patches which have most of it there.
        norm_ratio: mean length of the vectors of flagged patches, to that of all others.
        after_shift: share of the flagged patches that are flagged in the shifted image, too.
        in_other: share of them that the other layer flags, too.
        background: share of the flagged patches on background, and of all others; None where objects' places are not
            known.
    """

    source: Source
    layer: int
    other: int
    grid: tuple[int, int]
    weights: Tensor
    flagged: Tensor
    shares: tuple[float, ...]
    norm_ratio: float
    after_shift: float
    in_other: float
    background: tuple[float, float] | None

    @property
    def chance(self) -> float:
        """What the k patches would hold of an even spread, and what k random ones have in common with them."""
        return len(self.flagged) / self.weights.numel()


def look_at(
    model: PreTrainedModel, processor: Any, image: Image.Image, top_k: int, other: int | None, mask: Mask | None
) -> Look:
    """Runs the vision tower over an image, and over the same image shifted.

    Args:
        model: a supported LVLM.
        processor: its processor.
        image: the image.
        top_k: k, how many patches are flagged.
        other: another layer, negative from the end; None takes the one before DAMRO's.
        mask: where objects are, `(height, width)` of the image; None where nobody knows.

    Raises:
        ParameterError: there is no such layer, or there are fewer than k patches.
        UnsupportedModelError: the family, or what its tower lacks.
    """
    seen = _inspect(model, processor, image, top_k)
    tile = int((seen.tile == 0).nonzero()[0])
    depth = len(seen.layers)
    compared = _check_layer(other, depth, seen.layer)
    maps = seen.per_head.mean(dim=1) if seen.heads == "mean" else seen.merged  # (layers, tiles, patches)
    flagged = rank_patches(seen.weights, top_k)[tile]
    shifted = rank_patches(_inspect(model, processor, shift(image, shift_of(image)), top_k).weights, top_k)[tile]
    return Look(
        source=seen.source,
        layer=seen.layer,
        other=compared,
        grid=seen.grid,
        weights=seen.weights[tile],
        flagged=flagged,
        shares=tuple(top_share(one, top_k) for one in maps[:, tile]),
        norm_ratio=ratio_of(seen.norms[seen.layer, tile], flagged),
        after_shift=in_common(flagged, shifted),
        in_other=in_common(flagged, rank_patches(maps[compared, tile][None], top_k)[0]),
        background=None if mask is None else _background(model, processor, seen, tile, top_k, mask),
    )


def top_share(weights: Tensor, top_k: int) -> float:
    """Share of the attention to patches that the k patches with most of it hold.

    Example:
        >>> top_share(torch.tensor([0.1, 0.2, 0.5]), 1)
        0.625
    """
    return float(weights.topk(top_k).values.sum() / weights.sum())


def ratio_of(values: Tensor, flagged: Tensor) -> float:
    """Mean of some values to the mean of the others.

    Example:
        >>> ratio_of(torch.tensor([8.0, 1.0, 3.0]), torch.tensor([0]))
        4.0
    """
    chosen = torch.zeros(len(values), dtype=torch.bool)
    chosen[flagged] = True
    return float(values[chosen].mean() / values[~chosen].mean())


def in_common(first: Tensor, second: Tensor) -> float:
    """Share of the first patches that are among the second.

    Example:
        >>> in_common(torch.tensor([3, 5]), torch.tensor([5, 9]))
        0.5
    """
    return float(torch.isin(first, second).float().mean())


def shift_of(image: Image.Image) -> int:
    """By how many pixels an image is shifted: one in a hundred of its shorter side, two at least."""
    return max(2, round(min(image.size) / 100))


def shift(image: Image.Image, pixels: int) -> Image.Image:
    """The image so many pixels further down and to the right; what comes in repeats the edge.

    Example:
        >>> np.asarray(shift(Image.fromarray(np.uint8([[1, 2], [3, 4]])), 1)).tolist()
        [[1, 1], [1, 1]]
    """
    values = np.asarray(image)
    around = [(pixels, 0), (pixels, 0), *[(0, 0)] * (values.ndim - 2)]
    return Image.fromarray(np.pad(values, around, mode="edge")[: image.height, : image.width])


def _inspect(model: PreTrainedModel, processor: Any, image: Image.Image, top_k: int) -> ViTInspection:
    return inspect_vit(model, prepare_inputs(processor, [image], [PROMPT], model), top_k=top_k)


def _check_layer(other: int | None, depth: int, ranking: int) -> int:
    """The number of the layer that DAMRO's is compared with."""
    if other is None:
        return ranking - 1 if ranking else min(1, depth - 1)
    if not -depth <= other < depth:
        raise ParameterError(f"layer must name one of the ViT's {depth} layers (0 to {depth - 1}), got {other}")
    return other % depth


def _background(
    model: PreTrainedModel, processor: Any, seen: ViTInspection, tile: int, top_k: int, mask: Mask
) -> tuple[float, float]:
    """Share of the flagged patches, and of the others, that lie on background.

    The mask goes through the processor as a picture, so that it is resized and cropped as the image was.
    """
    painted = Image.fromarray(np.repeat(mask[..., None], 3, axis=-1).astype(np.uint8) * 255)
    inputs = prepare_inputs(processor, [painted], [PROMPT], model)
    area = np.asarray(seen_image(processor, inputs, model=model).convert("L")) > 127
    zero = torch.zeros(1, dtype=torch.long)
    attention = CLSAttention(seen.weights[tile][None], seen.grid, seen.layer, seen.heads, zero, zero)
    found = find_outliers(attention, top_k=top_k, object_mask=torch.from_numpy(area))
    assert found.background is not None and found.background_base is not None  # there is a mask
    flagged, every = float(found.background[0]), float(found.background_base[0])
    patches = seen.weights.shape[-1]
    return flagged, (every * patches - flagged * top_k) / max(1, patches - top_k)
