"""LLaVA-NeXT: a base tile and a grid of tiles, unpadded, with a newline column behind every row of patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from damro.decoding.errors import UnsupportedModelError
from damro.decoding.families.base import (
    LVLM,
    ColumnPatches,
    Encoding,
    embed_prompt,
    leading_columns,
    patch_grid,
    rows_of_images,
    tile_columns,
)
from damro.decoding.families.llava import PIXELS, POOLED_AS_LIST, decoder, feature_layer, patch_columns, vision_tower
from damro.decoding.prompts import VisualPrompt

__all__ = [
    "DEFAULT_HEADS",
    "PIXELS",
    "POOLED_AS_LIST",
    "REQUIRED_INPUTS",
    "column_patches",
    "decoder",
    "encode",
    "feature_layer",
    "full_prompt",
    "prompt_of_patches",
    "vision_tower",
]

REQUIRED_INPUTS: tuple[str, ...] = ("image_sizes",)
DEFAULT_HEADS = "merged"
full_prompt = embed_prompt


def encode(model: LVLM, inputs: Mapping[str, Any]) -> Encoding:
    """Runs CLIP and the projector once over all tiles, and packs them as the model does."""
    pixels, sizes = inputs["pixel_values"], inputs["image_sizes"]
    outputs = model.model.get_image_features(pixel_values=pixels, image_sizes=sizes, return_dict=True)
    features = list(outputs.pooler_output)
    config = model.config
    tiles = tuple(
        int(image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size))
        for size in sizes
    )
    rows = rows_of_images(model, inputs, features)
    return Encoding(outputs, features, rows, tiles, patch_grid(config, pixels))


def prompt_of_patches(model: LVLM, inputs: Mapping[str, Any], encoding: Encoding, patches: Tensor) -> VisualPrompt:
    """Keeps some patches of each image's base tile and one newline, as the released code does."""
    prompt = full_prompt(model, inputs, encoding)
    # Every row of patches ends in a newline, so the last column of an image is one.
    columns = tile_columns(model, encoding)
    return prompt.keep(patch_columns(encoding, patches, len(prompt.image_mask), tile_columns=columns))


def column_patches(model: LVLM, inputs: Mapping[str, Any], encoding: Encoding) -> list[ColumnPatches]:
    """The base tile in image order, then the lines of the joined tiles without their padding, a newline behind each.

    Raises:
        UnsupportedModelError: if a tile has columns that are no patches, which the model cannot join.
    """
    patches = encoding.grid[0] * encoding.grid[1]
    if first := leading_columns(tile_columns(model, encoding), encoding.grid):
        raise UnsupportedModelError(
            f"model must make nothing but patches of a tile, got {first} more columns; "
            "set vision_feature_select_strategy='default', or take a ViT without registers"
        )
    # The model itself packs the patches' numbers as if they were features, so that joining, cropping and newlines
    # are its own. Half precision would not do: it cannot tell numbers above 2048 apart.
    numbers = [torch.arange(tiles * patches).view(tiles, patches, 1).float() for tiles in encoding.tiles]
    sizes = inputs["image_sizes"].expand(len(numbers), -1)
    packed, _ = model.model.pack_image_features(
        numbers, sizes, model.config.vision_feature_select_strategy, image_newline=torch.tensor([-1.0])
    )
    columns = []
    for vectors in packed:
        patch = vectors[:, 0].long()
        joined = (torch.arange(len(patch)) >= patches).long()
        newline = (patch < 0).long()
        columns.append(ColumnPatches(patch, joined + newline.cumsum(dim=0) - newline))
    return columns
