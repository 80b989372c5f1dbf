"""LLaVA-1.5: CLIP patches of one layer through a projector, one column a patch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from damro.decoding.compat import older_than
from damro.decoding.families.base import (
    LVLM,
    ColumnPatches,
    Encoding,
    clip_feature_layer,
    embed_prompt,
    leading_columns,
    patch_grid,
    rows_of_images,
)
from damro.decoding.families.generic.support import SINCE
from damro.decoding.prompts import VisualPrompt

REQUIRED_INPUTS: tuple[str, ...] = ()
PIXELS: tuple[str, ...] = ("pixel_values",)
DEFAULT_HEADS = "merged"
POOLED_AS_LIST = True
full_prompt = embed_prompt


def serves(model: LVLM) -> bool:
    """Whether this module is for the model.

    ViTs that read images of any size (Pixtral) need none, where transformers is new enough.
    """
    return bool(model.config.vision_config.model_type != "pixtral") or older_than(SINCE)


def vision_tower(model: LVLM, inputs: Mapping[str, Any] | None = None) -> nn.Module:
    """The CLIP ViT."""
    tower: nn.Module = model.model.vision_tower
    return tower


def decoder(model: LVLM) -> nn.Module:
    """The model itself: given `inputs_embeds` alone it is its language model and head."""
    module: nn.Module = model
    return module


def feature_layer(model: LVLM, *, reference: bool) -> int:
    """The layer that produces the features; the released code reads the same."""
    return clip_feature_layer(model)


def encode(model: LVLM, inputs: Mapping[str, Any]) -> Encoding:
    """Runs CLIP and the projector once."""
    pixels = inputs["pixel_values"]
    outputs = model.model.get_image_features(pixels, return_dict=True, **_sizes(model, inputs))
    features = list(outputs.pooler_output)
    return Encoding(
        outputs,
        features,
        rows_of_images(model, inputs, features),
        (1,) * len(features),
        patch_grid(model.config, pixels),
    )


def _sizes(model: LVLM, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of images, for ViTs that read images of any size (Pixtral); others have no use for them."""
    tower, sizes = getattr(model.model, "vision_tower", None), inputs.get("image_sizes")
    if tower is None or sizes is None or "image_sizes" not in inspect.signature(tower.forward).parameters:
        return {}
    return {"image_sizes": sizes}


def prompt_of_patches(model: LVLM, inputs: Mapping[str, Any], encoding: Encoding, patches: Tensor) -> VisualPrompt:
    """Keeps the columns of some patches of each image."""
    prompt = full_prompt(model, inputs, encoding)
    return prompt.keep(patch_columns(encoding, patches, len(prompt.image_mask)))


def column_patches(model: LVLM, inputs: Mapping[str, Any], encoding: Encoding) -> list[ColumnPatches]:
    """One column a patch, in image order; in front of them [CLS] and registers, as far as the model keeps them."""
    patches = torch.arange(encoding.grid[0] * encoding.grid[1])
    numbers = [
        torch.cat([patches.new_full((leading_columns(len(feature), encoding.grid),), -1), patches])
        for feature in encoding.features
    ]
    return [ColumnPatches(patch, torch.zeros_like(patch)) for patch in numbers]


def patch_columns(encoding: Encoding, patches: Tensor, rows: int, *, tile_columns: int | None = None) -> list[Tensor]:
    """The image columns of the chosen patches, row by row.

    Args:
        encoding: the vision tower's run.
        patches: `(tiles of all images, k)`; the first tile of each image is used.
        rows: number of prompts.
        tile_columns: of tiled images, the columns of a tile; the last column of each image is then kept, too. None if
            an image is one tile and nothing else.
    """
    columns: list[list[Tensor]] = [[] for _ in range(rows)]
    offset, tile = [0] * rows, 0
    for feature, row, tiles in zip(encoding.features, encoding.rows, encoding.tiles, strict=True):
        first = leading_columns(len(feature) if tile_columns is None else tile_columns, encoding.grid)
        columns[row].append(patches[tile] + first + offset[row])
        if tile_columns is not None:
            columns[row].append(patches.new_tensor([offset[row] + len(feature) - 1]))
        offset[row] += len(feature)
        tile += tiles
    return [torch.cat(kept) for kept in columns]
