"""From the attention of a vision tower's tokens to that of the columns its patches become."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from damro.decoding.errors import UnsupportedModelError
from damro.decoding.families.generic.attention import RecordedLayer
from damro.decoding.families.generic.features import deepest_layer
from damro.decoding.families.generic.layout import ImageColumns, images_of, patch_grids
from damro.decoding.families.generic.maps import column_map


def column_weights(model: Any, inputs: Mapping[str, Any], recorded: RecordedLayer) -> list[tuple[ImageColumns, Tensor]]:
    """For each image its base tile, and the attention to its columns `(columns,)`: the sum over the patches of each.

    Args:
        model: the LVLM.
        inputs: what its processor returned.
        recorded: what was recorded of a run over them.

    Raises:
        UnsupportedModelError: if the tower does not attend where it can be seen, or columns are not made of patches.
    """
    return [(image, heads.mean(dim=0)) for image, heads in column_heads(model, inputs, recorded)]


def column_heads(model: Any, inputs: Mapping[str, Any], recorded: RecordedLayer) -> list[tuple[ImageColumns, Tensor]]:
    """What :func:`column_weights` returns, head by head: `(heads, columns)`.

    With [CLS] a tile's weights are its shares of that token's attention. Of a tower without they are the mean over the
    patches of the tile, whose sum is 1.
    """
    if not recorded.calls:
        raise UnsupportedModelError(
            f"vision tower of {model.config.model_type} must attend through AttentionInterface, got none there; load "
            "the model with attn_implementation='sdpa' and without code of its own, or take a method that chooses no "
            "patches (vcd, icd, m3id, no-image)"
        )
    found = _columns(model, inputs, recorded.calls, cls=recorded.source == "cls")
    if recorded.source == "cls":
        return [(image, columns) for image, columns, _ in found]
    return [(image, columns / tile.mean(dim=0).sum()) for image, columns, tile in found]


def column_means(
    model: Any, inputs: Mapping[str, Any], calls: list[Tensor], *, cls: bool
) -> list[tuple[ImageColumns, Tensor]]:
    """For each image its base tile, and the mean of a value of patches over those of each column: `(columns,)`.

    Args:
        model: the LVLM.
        inputs: what its processor returned.
        calls: the values `(batch, tokens)`, in the order in which the tower has computed them.
        cls: whether a [CLS] token stands in front.
    """
    found = _columns(model, inputs, [call[:, None] for call in calls], cls=cls)
    return [(image, columns[0] / image.merge**2) for image, columns, _ in found]


def _columns(
    model: Any, inputs: Mapping[str, Any], calls: list[Tensor], *, cls: bool
) -> list[tuple[ImageColumns, Tensor, Tensor]]:
    """For each image its base tile, the sums over the patches of each column `(heads, columns)`, and those patches."""
    sizes = [rows * columns for rows, columns in patch_grids(model, inputs)]
    tiles, first = _tiles(model.config.model_type, calls, sizes, cls)
    last = deepest_layer(model)  # behind it tokens are mixed no more: there it shows what becomes of each
    found = []
    for image in images_of(model, inputs):
        tile = tiles[image.tile]
        of_patch = column_map(model, inputs, image, last, first).to(tile.device)
        sums = tile.new_zeros(len(tile), image.columns).index_add_(1, of_patch, tile)
        found.append((image, sums, tile))
    return found


def _tiles(kind: str, calls: list[Tensor], sizes: list[int], cls: bool) -> tuple[list[Tensor], int]:
    """Values of the patches of every tile, `(heads, patches)` each, and how many tokens stand before them."""
    batch, tokens = sum(map(len, calls)), calls[0].shape[-1]
    if cls:
        first = tokens - sizes[0]
        if batch != len(sizes) or first < 1 or len(set(sizes)) > 1:
            raise _unlike(kind, calls, sizes)
        return list(torch.cat(calls)[..., first:]), first
    row = torch.cat([call.movedim(1, 0).flatten(1) for call in calls], dim=1)  # (heads, tokens of all tiles)
    if row.shape[1] == sum(sizes):  # one tile behind the other
        return list(torch.split(row, sizes, dim=1)), 0
    if batch == len(sizes) and tokens >= max(sizes):  # side by side, filled up
        return [tile[:, :size] for tile, size in zip(torch.cat(calls), sizes, strict=True)], 0
    raise _unlike(kind, calls, sizes)


def _unlike(kind: str, calls: list[Tensor], sizes: list[int]) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"vision tower of {kind} must attend over the {sum(sizes)} patches of {len(sizes)} tiles, got weights of "
        f"shapes {[tuple(call.shape) for call in calls[:3]]}; its patches cannot be told from other tokens"
    )
