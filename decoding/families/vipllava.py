"""ViP-LLaVA: LLaVA with the CLIP patches of several layers side by side, one column a patch.

[CLS] has no column, whatever the layers.
"""

from __future__ import annotations

from damro.decoding.families.llava import (
    DEFAULT_HEADS,
    PIXELS,
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

POOLED_AS_LIST = False
