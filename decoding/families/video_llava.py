"""Video-LLaVA: frames through a ViT of their own, every token of which is a column, [CLS] too; images as in LLaVA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from damro.decoding.errors import InputsError
from damro.decoding.families import llava
from damro.decoding.families.base import (
    LVLM,
    ColumnPatches,
    Encoding,
    embed_prompt,
    leading_columns,
    patch_grid,
    rows_of_images,
)
from damro.decoding.families.llava import DEFAULT_HEADS, REQUIRED_INPUTS, decoder, feature_layer
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

VIDEO = "pixel_values_videos"
# The second is what the image processor of transformers 5.23 still calls them.
IMAGES = ("pixel_values", "pixel_values_images")
PIXELS: tuple[str, ...] = (*IMAGES, VIDEO)
POOLED_AS_LIST = False
full_prompt = embed_prompt


def vision_tower(model: LVLM, inputs: Mapping[str, Any] | None = None) -> nn.Module:
    """The ViT of images, or that of videos if `inputs` hold videos."""
    tower: nn.Module = model.model.video_tower if _has_video(inputs) else model.model.image_tower
    return tower


def encode(model: LVLM, inputs: Mapping[str, Any]) -> Encoding:
    """Runs one ViT and the projector once; a frame is a tile of its video.

    Raises:
        InputsError: if there are both images and videos.
    """
    images = [key for key in IMAGES if inputs.get(key) is not None]
    if not _has_video(inputs):
        return llava.encode(model, {**inputs, "pixel_values": inputs[images[0]]})
    if images:
        raise InputsError(
            f"inputs must hold images or videos, got {images[0]} and {VIDEO}; call once for the prompts with images "
            "and once for those with videos"
        )
    pixels = inputs[VIDEO]  # (videos, frames, 3, H, W)
    outputs = model.model.get_video_features(pixel_values_videos=pixels, return_dict=True)
    features = list(outputs.pooler_output.unflatten(0, pixels.shape[:2]).flatten(1, 2))
    tiles = (pixels.shape[1],) * len(pixels)
    return Encoding(outputs, features, rows_of_images(model, inputs, features), tiles, patch_grid(model.config, pixels))


def prompt_of_patches(model: LVLM, inputs: Mapping[str, Any], encoding: Encoding, patches: Tensor) -> VisualPrompt:
    """Keeps the columns of some patches of each image, or of each frame."""
    if not _has_video(inputs):
        return llava.prompt_of_patches(model, inputs, encoding, patches)
    prompt = full_prompt(model, inputs, encoding)
    frames = encoding.tiles[0]
    tokens = len(encoding.features[0]) // frames
    before = leading_columns(tokens, encoding.grid)
    # A row's videos follow one another, and so do their frames: each is [CLS] (and registers) and its patches.
    first = [0] * len(prompt.image_mask)
    columns: list[list[Tensor]] = [[] for _ in first]
    for row, chosen in zip(encoding.rows, torch.split(patches, frames), strict=True):
        starts = torch.arange(frames, device=chosen.device)[:, None] * tokens
        columns[row].append((starts + before + chosen).flatten() + first[row])
        first[row] += frames * tokens
    return prompt.keep([torch.cat(kept) for kept in columns])


def column_patches(model: LVLM, inputs: Mapping[str, Any], encoding: Encoding) -> list[ColumnPatches]:
    """One column a patch, in image order; in videos frame by frame, [CLS] in front of each frame's patches."""
    if not _has_video(inputs):
        return llava.column_patches(model, inputs, encoding)
    count = encoding.grid[0] * encoding.grid[1]
    frames = torch.arange(encoding.tiles[0])[:, None]
    before = leading_columns(len(encoding.features[0]) // encoding.tiles[0], encoding.grid)
    none = torch.full_like(frames, -1).expand(-1, before)
    patch = torch.cat([none, frames * count + torch.arange(count)], dim=1).flatten()
    line = frames.expand(-1, before + count).flatten()
    return [ColumnPatches(patch, line) for _ in encoding.features]


def _has_video(inputs: Mapping[str, Any] | None) -> bool:
    return inputs is not None and inputs.get(VIDEO) is not None
