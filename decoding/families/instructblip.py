"""InstructBLIP: a Q-Former reads the patches and the question; its queries are the image columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from damro.decoding.errors import UnsupportedModelError
from damro.decoding.families.base import (
    LVLM,
    ColumnPatches,
    Encoding,
    embed_prompt,
    other_patches,
    patch_grid,
    rows_of_images,
)
from damro.decoding.prompts import VisualPrompt

REQUIRED_INPUTS: tuple[str, ...] = ("qformer_input_ids",)
PIXELS: tuple[str, ...] = ("pixel_values",)
DEFAULT_HEADS = "mean"
POOLED_AS_LIST = True
REFERENCE_SHIFT = 1
"""The released DAMRO code takes patch i - 1 where it ranked patch i."""


def vision_tower(model: LVLM, inputs: Mapping[str, Any] | None = None) -> nn.Module:
    """The EVA ViT."""
    tower: nn.Module = model.vision_model
    return tower


def decoder(model: LVLM) -> nn.Module:
    """The language model, which carries its own head."""
    module: nn.Module = model.language_model
    return module


def feature_layer(model: LVLM, *, reference: bool) -> int:
    """The last layer gives the features; the released code ranks with the one before it."""
    depth = int(model.config.vision_config.num_hidden_layers)
    return depth - 2 if reference else depth - 1


def encode(model: LVLM, inputs: Mapping[str, Any]) -> Encoding:
    """Runs the ViT, the Q-Former and the projection once."""
    pixels = inputs["pixel_values"]
    outputs = model.get_image_features(
        pixels,
        qformer_input_ids=inputs["qformer_input_ids"],
        qformer_attention_mask=inputs.get("qformer_attention_mask"),
        interpolate_pos_encoding=is_resized(model, pixels),
        return_dict=True,
    )
    features = list(outputs.pooler_output)
    rows = rows_of_images(model, inputs, features)
    return Encoding(outputs, features, rows, (1,) * len(features), patch_grid(model.config, pixels))


def is_resized(model: LVLM, pixels: Tensor) -> bool:
    """Whether images are of another size than the ViT's own, so that its positions are to be interpolated."""
    side = model.config.vision_config.image_size
    return tuple(pixels.shape[-2:]) != (side, side)


def full_prompt(model: LVLM, inputs: Mapping[str, Any], encoding: Encoding) -> VisualPrompt:
    """The prompt the model reads; without a mask it reads every column, padding too."""
    if inputs.get("attention_mask") is None:
        inputs = {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}
    return embed_prompt(model, inputs, encoding)


def prompt_of_patches(model: LVLM, inputs: Mapping[str, Any], encoding: Encoding, patches: Tensor) -> VisualPrompt:
    """Lets the Q-Former read some patches only; its queries replace the image columns."""
    tokens = encoding.outputs.last_hidden_state  # (images, 1 + P, C): [CLS] is patch -1
    index = (patches.to(tokens.device) + 1).unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
    features = query_features(model, inputs, tokens.gather(1, index))
    return full_prompt(model, inputs, encoding).replace_image(features)


def prompt_without(model: LVLM, inputs: Mapping[str, Any], encoding: Encoding, patches: Tensor) -> VisualPrompt:
    """Lets the Q-Former read all tokens of the ViT but some patches."""
    return prompt_of_patches(model, inputs, encoding, other_patches(patches, encoding))


def column_patches(model: LVLM, inputs: Mapping[str, Any], encoding: Encoding) -> list[ColumnPatches]:
    """Refuses: a column is a query of the Q-Former, which has read all patches.

    Raises:
        UnsupportedModelError: always.
    """
    raise UnsupportedModelError(
        f"model must have image columns that are patches, got {model.config.model_type}, whose "
        f"{model.config.num_query_tokens} columns are queries of its Q-Former; LLaVA and LLaVA-NeXT have such columns"
    )


def query_features(model: LVLM, inputs: Mapping[str, Any], image_embeds: Tensor) -> Tensor:
    """What the language model gets of some ViT outputs: the Q-Former's queries, projected.

    Args:
        model: the model.
        inputs: with `qformer_input_ids (B, S)` and, optionally, `qformer_attention_mask`.
        image_embeds: `(B, n, C)`, any number n of ViT output vectors; or `(B * frames, n, C)`, those of the frames of
            B videos, about each of which its video's text is read.

    Returns:
        `(B, queries, D)`, or `(B * frames, queries, D)`.
    """
    ids = inputs["qformer_input_ids"]
    text_mask = inputs.get("qformer_attention_mask")
    text_mask = torch.ones_like(ids) if text_mask is None else text_mask
    frames = len(image_embeds) // len(ids)
    ids, text_mask = ids.repeat_interleave(frames, dim=0), text_mask.repeat_interleave(frames, dim=0)
    queries = model.query_tokens.expand(len(image_embeds), -1, -1)
    query_mask = text_mask.new_ones(queries.shape[:-1])
    outputs = model.qformer(
        input_ids=ids,
        attention_mask=torch.cat([query_mask, text_mask], dim=1),
        query_embeds=queries,
        encoder_hidden_states=image_embeds,
        encoder_attention_mask=text_mask.new_ones(image_embeds.shape[:-1]),
        return_dict=True,
    )
    projected: Tensor = model.language_projection(outputs[0][:, : queries.shape[1]])
    return projected
