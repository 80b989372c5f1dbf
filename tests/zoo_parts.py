"""Parts of tiny models: configurations that several kinds of them share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tests.zoo_images import IMAGE, VIDEO

TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 200, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
        "max_position_embeddings": 2048}  # fmt: skip
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
HALF = {**MROPE, "partial_rotary_factor": 1.0}
VIT = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 3}
SIGLIP = {"model_type": "siglip_vision_model", **VIT, "image_size": 56, "patch_size": 7, "vision_use_head": False}
PIXTRAL = {"model_type": "pixtral", **VIT, "head_dim": 8, "image_size": 56, "patch_size": 7}
QWEN = {"depth": 3, "hidden_size": 24, "intermediate_size": 32, "out_hidden_size": 32, "num_heads": 3,
         "patch_size": 7, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3}  # fmt: skip
WINDOWS = {"depth": 4, "window_size": 28, "fullatt_block_indexes": [1, 3]}
TOKENS = {"image_token_id": IMAGE, "video_token_id": VIDEO}
STARTS = {**TOKENS, "vision_start_token_id": 196, "vision_end_token_id": 195}
GLM_STARTS = {**TOKENS, "image_start_token_id": 196, "image_end_token_id": 195, "video_start_token_id": 194,
               "video_end_token_id": 193}  # fmt: skip


def text(kind: str | None = None, **more: Any) -> dict[str, Any]:
    """The configuration of a language model."""
    return {**TEXT, **({} if kind is None else {"model_type": kind}), **more}


def vision_text(**more: Any) -> dict[str, Any]:
    return text(rope_parameters=dict(MROPE), **more)


class Kind(NamedTuple):
    """How to make a model, and what its processor makes of images; see `tests.zoo_images`."""

    make: Callable[[], Any]
    shown: str
