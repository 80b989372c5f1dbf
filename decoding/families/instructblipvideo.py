"""InstructBLIP for videos: the ViT and the Q-Former see frame by frame, every frame has its queries as columns.

There is no released code to differ from. The k patches are chosen of each frame, by that frame's [CLS] in the layer
whose features are taken, and the Q-Former reads them anew, frame by frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from damro.decoding.errors import InputsError
from damro.decoding.families.base import LVLM, Encoding, patch_grid, rows_of_images
from damro.decoding.families.blip_2 import feature_layer
from damro.decoding.families.instructblip import (
    DEFAULT_HEADS,
    PIXELS,
    REQUIRED_INPUTS,
    column_patches,
    decoder,
    full_prompt,
    is_resized,
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
VIDEOS_ALONE = True


def encode(model: LVLM, inputs: Mapping[str, Any]) -> Encoding:
    """Runs the ViT, the Q-Former and the projection once over the frames of all videos; a frame is a tile of its video.

    Raises:
        InputsError: if there are no frames.
    """
    pixels = inputs["pixel_values"]
    if pixels.ndim != 5:
        raise InputsError(
            "pixel_values of instructblipvideo must be videos (prompts, frames, channels, height, width), got shape "
            f"{tuple(pixels.shape)}; show an image as a video of one frame, pixel_values[:, None], or of equal ones"
        )
    outputs = model.get_video_features(
        pixels,
        qformer_input_ids=inputs["qformer_input_ids"],
        qformer_attention_mask=inputs.get("qformer_attention_mask"),
        interpolate_pos_encoding=is_resized(model, pixels),
        return_dict=True,
    )
    features = list(outputs.pooler_output)
    tiles = (pixels.shape[1],) * len(pixels)
    return Encoding(outputs, features, rows_of_images(model, inputs, features), tiles, patch_grid(model.config, pixels))
