"""A model family: a model that is built like LLaVA, under a `config.model_type` of its own."""

from damro.decoding.families.llava import (
    DEFAULT_HEADS,
    PIXELS,
    POOLED_AS_LIST,
    REQUIRED_INPUTS,
    column_patches,
    decoder,
    encode,
    feature_layer,
    full_prompt,
    prompt_of_patches,
    vision_tower,
)

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
