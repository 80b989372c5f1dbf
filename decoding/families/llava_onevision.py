"""LLaVA-OneVision: SigLIP, which has no [CLS]; otherwise tiles, columns and newlines as in LLaVA-NeXT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

from damro.decoding.errors import InputsError, UnsupportedModelError
from damro.decoding.families.base import LVLM, ColumnPatches, Encoding, embed_prompt, patch_grid, rows_of_images
from damro.decoding.families.llava import PIXELS, POOLED_AS_LIST, decoder, feature_layer, vision_tower
from damro.decoding.families.llava_next import REQUIRED_INPUTS, prompt_of_patches

__all__ = [
    "DEFAULT_HEADS",
    "PIXELS",
    "POOLED_AS_LIST",
    "RANKED",
    "REQUIRED_INPUTS",
    "column_patches",
    "decoder",
    "encode",
    "feature_layer",
    "full_prompt",
    "prompt_of_patches",
    "vision_tower",
]

DEFAULT_HEADS = "mean"
RANKED = "received"
full_prompt = embed_prompt


def encode(model: LVLM, inputs: Mapping[str, Any]) -> Encoding:
    """Runs SigLIP and the projector once over all tiles, and packs them as the model does.

    Raises:
        InputsError: if a prompt holds several images, which the model does not cut into tiles.
    """
    pixels, sizes = inputs["pixel_values"], inputs["image_sizes"]
    if len(sizes) > len(inputs["input_ids"]):
        raise InputsError(
            f"inputs of {model.config.model_type} must hold one image a prompt, got {len(sizes)} images for "
            f"{len(inputs['input_ids'])} prompts; ask about each image in a prompt of its own"
        )
    outputs = model.model.get_image_features(pixel_values=pixels, image_sizes=sizes, return_dict=True)
    features = list(outputs.pooler_output)
    config = model.config
    tiles = tuple(
        int(image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size))
        for size in sizes
    )
    rows = rows_of_images(model, inputs, features)
    return Encoding(outputs, features, rows, tiles, patch_grid(config, pixels))


def column_patches(model: LVLM, inputs: Mapping[str, Any], encoding: Encoding) -> list[ColumnPatches]:
    """Refuses: of a large image the model shrinks the joined tiles, and a column is a mixture of patches.

    Raises:
        UnsupportedModelError: always.
    """
    raise UnsupportedModelError(
        f"model must have image columns that are patches, got {model.config.model_type}, which shrinks the tiles of "
        "large images; LLaVA and LLaVA-NeXT have such columns"
    )
