"""From the attention of a vision tower's tokens to that of the columns its patches become."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from damro.decoding.errors import UnsupportedModelError
from damro.decoding.families.generic.attention import RecordedLayer
from damro.decoding.families.generic.layout import Grid, ImageColumns, images_of, patch_grids
from damro.decoding.families.generic.maps import column_map


def column_weights(
    model: Any, inputs: Mapping[str, Any], recorded: RecordedLayer, layer: int
) -> list[tuple[ImageColumns, Tensor]]:
    """For each image its base tile, and the attention to its columns `(columns,)`: the sum over the patches of each.

    Args:
        model: the LVLM.
        inputs: what its processor returned.
        recorded: what was recorded of a run over them.
        layer: which layer that is.

    Raises:
        UnsupportedModelError: if the tower does not attend where it can be seen, or columns are not made of patches.
    """
    images = images_of(model, inputs)
    grids = patch_grids(model, inputs)
    tiles, first = tile_weights(model, recorded, grids)
    found = []
    for image in images:
        of_patch = column_map(model, inputs, image, layer, first).to(tiles[image.tile].device)
        weights = tiles[image.tile].new_zeros(image.columns).index_add_(0, of_patch, tiles[image.tile])
        found.append((image, weights))
    return found


def tile_weights(model: Any, recorded: RecordedLayer, grids: list[Grid]) -> tuple[list[Tensor], int]:
    """The attention to the patches of every tile, `(patches,)` each, and how many tokens stand before them.

    With [CLS] a tile's weights are its shares of that token's attention. Of a tower without they are the mean over the
    patches of the tile, whose sum is 1.
    """
    sizes = [rows * columns for rows, columns in grids]
    calls, kind = recorded.calls, model.config.model_type
    if not calls:
        raise UnsupportedModelError(
            f"vision tower of {kind} must attend through AttentionInterface, got none there; its patches cannot be "
            "ranked by attention"
        )
    batch, tokens = sum(map(len, calls)), calls[0].shape[1]
    if recorded.source == "cls":
        first = tokens - sizes[0]
        if batch != len(sizes) or first < 1 or len(set(sizes)) > 1:
            raise _unlike(kind, calls, sizes)
        return list(torch.cat(calls)[:, first:]), first
    flat = torch.cat([call.flatten() for call in calls])
    if len(flat) == sum(sizes):  # one tile behind the other
        tiles = list(torch.split(flat, sizes))
    elif batch == len(sizes) and tokens >= max(sizes):  # side by side, filled up
        tiles = [row[:size] for row, size in zip(torch.cat(calls), sizes, strict=True)]
    else:
        raise _unlike(kind, calls, sizes)
    return [tile / tile.sum() for tile in tiles], 0


def _unlike(kind: str, calls: list[Tensor], sizes: list[int]) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"vision tower of {kind} must attend over the {sum(sizes)} patches of {len(sizes)} tiles, got weights of "
        f"shapes {[tuple(call.shape) for call in calls[:3]]}; its patches cannot be told from other tokens"
    )
