"""LLaVA on any language model and vision tower, tiny and with random weights, and prompts for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

IMAGE, PATCHES = 199, 16
Inputs = dict[str, Tensor]
TEXT: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 200, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip
VIT: dict[str, Any] = {
    "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 2, "image_size": 56, "patch_size": 14,
}  # fmt: skip


def llava_of(text: dict[str, Any] | None = None, vit: dict[str, Any] | None = None, **config: Any) -> Any:
    """A model of its own, whose weights are large enough for the tokens of an answer to differ."""
    torch.manual_seed(0)
    settings = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default", **config}
    made = LlavaConfig(
        text_config={**TEXT, **(text or {})}, vision_config={**VIT, **(vit or {})}, image_token_index=IMAGE, **settings
    )
    model = LlavaForConditionalGeneration(made).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 or parameter.std() == 0:
                parameter.add_(0.25 * torch.randn(parameter.shape))
    return model


def llava_inputs(rows: int = 1, columns: int = PATCHES, images: int = 1, side: int = 56) -> Inputs:
    """Prompts of different length about different images, padded on the left."""
    prompts = [[1, 9, *[IMAGE] * columns * images, 30, 31, 32, 33], [1, *[IMAGE] * columns * images, 40, 41]][:rows]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    pixels = torch.randn((rows * images, 3, side, side), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": pixels}
