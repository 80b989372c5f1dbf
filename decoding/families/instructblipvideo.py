"""InstructBLIP for videos: the ViT and the Q-Former see frame by frame, every frame has its queries as columns.

There is no released code to differ from. The k patches are chosen of each frame, by that frame's [CLS] in the layer
whose features are taken, and the Q-Former reads them anew, frame by frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from damro.decoding.errors import InputsError
from damro.decoding.families.base import LVLM, Encoding, image_columns, patch_grid
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
    prompt_without,
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
    "prompt_without",
    "vision_tower",
]

POOLED_AS_LIST = False
VIDEOS_ALONE = True


def encode(model: LVLM, inputs: Mapping[str, Any]) -> Encoding:
    """Runs the ViT, the Q-Former and the projection once over the frames of all videos; a frame is a tile of its video.

    Raises:
        InputsError: if there are no frames, or tokens for more or fewer of them.
    """
    pixels = inputs["pixel_values"]
    _check_frames(model, pixels, inputs["input_ids"])
    outputs = model.get_video_features(
        pixels,
        qformer_input_ids=inputs["qformer_input_ids"],
        qformer_attention_mask=inputs.get("qformer_attention_mask"),
        interpolate_pos_encoding=is_resized(model, pixels),
        return_dict=True,
    )
    videos, frames = pixels.shape[:2]
    grid = patch_grid(model.config, pixels)
    return Encoding(outputs, list(outputs.pooler_output), tuple(range(videos)), (frames,) * videos, grid)


def _check_frames(model: LVLM, pixels: Tensor, ids: Tensor) -> None:
    """Refuses what is no video, and prompts that the processor has written for another number of frames."""
    if pixels.ndim != 5:
        raise InputsError(
            "pixel_values of instructblipvideo must be videos (prompts, frames, channels, height, width), got shape "
            f"{tuple(pixels.shape)}; show an image as a video of equal frames"
        )
    queries, frames = int(model.config.num_query_tokens), pixels.shape[1]
    columns = image_columns(model, ids).sum(dim=-1).tolist()
    if columns != [queries * frames] * len(pixels):
        raise InputsError(
            f"input_ids of instructblipvideo must hold {queries} video tokens for each of the {frames} frames of "
            f"{len(pixels)} videos, one a prompt, got {columns}; its processor writes those of four frames, so show it "
            "videos of four"
        )
