"""BLIP-2: a Q-Former reads the patches, not the question; its queries are the image columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from damro.decoding.families.base import LVLM, Encoding, other_patches, patch_grid, rows_of_images
from damro.decoding.families.instructblip import (
    DEFAULT_HEADS,
    PIXELS,
    POOLED_AS_LIST,
    column_patches,
    decoder,
    full_prompt,
    is_resized,
    vision_tower,
)
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
    "prompt_without",
    "vision_tower",
]

REQUIRED_INPUTS: tuple[str, ...] = ()


def feature_layer(model: LVLM, *, reference: bool) -> int:
    """The last layer, which gives the features; there is no released code for BLIP-2 to differ from."""
    return int(model.config.vision_config.num_hidden_layers) - 1


def encode(model: LVLM, inputs: Mapping[str, Any]) -> Encoding:
    """Runs the ViT, the Q-Former and the projection once."""
    pixels = inputs["pixel_values"]
    outputs = model.get_image_features(pixels, interpolate_pos_encoding=is_resized(model, pixels), return_dict=True)
    features = list(outputs.pooler_output)
    rows = rows_of_images(model, inputs, features)
    return Encoding(outputs, features, rows, (1,) * len(features), patch_grid(model.config, pixels))


def prompt_of_patches(model: LVLM, inputs: Mapping[str, Any], encoding: Encoding, patches: Tensor) -> VisualPrompt:
    """Lets the Q-Former read some patches only; its queries replace the image columns."""
    # (images, 1 + P, C): [CLS] is patch -1. An image that all prompts share is there once.
    tokens = encoding.outputs.last_hidden_state.expand(len(patches), -1, -1)
    index = (patches.to(tokens.device) + 1).unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
    chosen = tokens.gather(1, index)
    queries: Tensor = model.qformer(
        query_embeds=model.query_tokens.expand(len(chosen), -1, -1),
        encoder_hidden_states=chosen,
        encoder_attention_mask=torch.ones(chosen.shape[:-1], dtype=torch.long, device=chosen.device),
        return_dict=True,
    ).last_hidden_state
    features = model.language_projection(queries.to(chosen.dtype))
    return full_prompt(model, inputs, encoding).replace_image(features)


def prompt_without(model: LVLM, inputs: Mapping[str, Any], encoding: Encoding, patches: Tensor) -> VisualPrompt:
    """Lets the Q-Former read all tokens of the ViT but some patches."""
    return prompt_of_patches(model, inputs, encoding, other_patches(patches, encoding))
