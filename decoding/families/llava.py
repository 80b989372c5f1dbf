"""LLaVA-1.5: CLIP patches of one layer through a projector, one column a patch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

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
from damro.decoding.prompts import VisualPrompt

REQUIRED_INPUTS: tuple[str, ...] = ()
PIXELS: tuple[str, ...] = ("pixel_values",)
DEFAULT_HEADS = "merged"
full_prompt = embed_prompt


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
    outputs = model.model.get_image_features(pixel_values=pixels, return_dict=True)
    features = list(outputs.pooler_output)
    return Encoding(
        outputs,
        features,
        rows_of_images(model, inputs, features),
        (1,) * len(features),
        patch_grid(model.config, pixels),
    )


def prompt_of_patches(model: LVLM, inputs: Mapping[str, Any], encoding: Encoding, patches: Tensor) -> VisualPrompt:
    """Keeps the columns of some patches of each image."""
    prompt = full_prompt(model, inputs, encoding)
    return prompt.keep(patch_columns(model, encoding, patches, len(prompt.image_mask)))


def column_patches(model: LVLM, inputs: Mapping[str, Any], encoding: Encoding) -> list[ColumnPatches]:
    """One column a patch, in image order; with the feature strategy "full", [CLS] in front."""
    patches = torch.arange(encoding.grid[0] * encoding.grid[1])
    patches = torch.cat([patches.new_full((leading_columns(model, encoding),), -1), patches])
    return [ColumnPatches(patches, torch.zeros_like(patches)) for _ in encoding.features]


def patch_columns(
    model: LVLM, encoding: Encoding, patches: Tensor, rows: int, *, last_column: bool = False
) -> list[Tensor]:
    """The image columns of the chosen patches, row by row.

    Args:
        model: the model; with the feature strategy "full", [CLS] stands in front of the patches.
        encoding: the vision tower's run.
        patches: `(tiles of all images, k)`; the first tile of each image is used.
        rows: number of prompts.
        last_column: also keep the last column of each image.
    """
    first = leading_columns(model, encoding)
    columns: list[list[Tensor]] = [[] for _ in range(rows)]
    offset, tile = [0] * rows, 0
    for feature, row, tiles in zip(encoding.features, encoding.rows, encoding.tiles, strict=True):
        columns[row].append(patches[tile] + first + offset[row])
        if last_column:
            columns[row].append(patches.new_tensor([offset[row] + len(feature) - 1]))
        offset[row] += len(feature)
        tile += tiles
    return [torch.cat(kept) for kept in columns]
