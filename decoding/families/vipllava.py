"""ViP-LLaVA: LLaVA with the CLIP patches of several layers side by side, one column a patch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from damro.decoding.families.base import LVLM, ColumnPatches, Encoding, embed_prompt
from damro.decoding.families.llava import (
    DEFAULT_HEADS,
    PIXELS,
    REQUIRED_INPUTS,
    decoder,
    encode,
    feature_layer,
    vision_tower,
)
from damro.decoding.prompts import VisualPrompt

__all__ = [
    "DEFAULT_HEADS",
    "PIXELS",
    "REQUIRED_INPUTS",
    "column_patches",
    "decoder",
    "encode",
    "feature_layer",
    "full_prompt",
    "prompt_of_patches",
    "vision_tower",
]

full_prompt = embed_prompt


def prompt_of_patches(model: LVLM, inputs: Mapping[str, Any], encoding: Encoding, patches: Tensor) -> VisualPrompt:
    """Keeps the columns of some patches of each image; [CLS] has none, whatever the layers."""
    prompt = full_prompt(model, inputs, encoding)
    columns: list[list[Tensor]] = [[] for _ in prompt.image_mask]
    offset = [0] * len(columns)
    for chosen, feature, row in zip(patches, encoding.features, encoding.rows, strict=True):
        columns[row].append(chosen + offset[row])
        offset[row] += len(feature)
    return prompt.keep([torch.cat(kept) for kept in columns])


def column_patches(model: LVLM, inputs: Mapping[str, Any], encoding: Encoding) -> list[ColumnPatches]:
    """One column a patch, in image order."""
    patches = torch.arange(encoding.grid[0] * encoding.grid[1])
    return [ColumnPatches(patches, torch.zeros_like(patches)) for _ in encoding.features]
