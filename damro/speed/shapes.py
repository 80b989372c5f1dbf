"""Random models in the shape of real ones: speed depends on shapes, not on what weights say."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

_PATCH = 14

_SPREAD = 3.84
"""Standard deviation of the logits. Random weights make all tokens about equally likely; spread like this, about a
dozen of 49,152 are plausible (within a tenth of the best), at nearly every step. Trained models have fewer, which
benchmarks/plausible_tokens.py counts."""


@dataclass(frozen=True)
class Shape:
    """What a LLaVA-1.5 is made of: a Llama behind a CLIP ViT. Widths in numbers of features.

    Attributes:
        hidden: width of the language model.
        layers: its layers.
        heads: its query heads.
        kv_heads: its key and value heads.
        intermediate: width of its feed-forward blocks.
        vocabulary: its tokens; the last one stands for image columns.
        tied: whether the output layer shares the embedding's weights.
        vision_hidden: width of the ViT.
        vision_layers: its layers.
        vision_heads: its heads.
        grid: patches along a side of the image.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool
    vision_hidden: int
    vision_layers: int
    vision_heads: int
    grid: int = 24


SHAPES = {
    # A few layers of nothing much: to see whether a benchmark runs.
    "micro": Shape(64, 2, 4, 2, 128, 512, True, 64, 3, 4, grid=4),
    # The language model of SmolLM-135M behind a ViT-S/14 at 336 pixels.
    "small": Shape(576, 30, 9, 3, 1536, 49152, True, 384, 12, 6),
    # LLaVA-1.5-7B: Llama 2 7B behind CLIP ViT-L/14 at 336 pixels.
    "llava-1.5-7b": Shape(4096, 32, 32, 32, 11008, 32064, False, 1024, 24, 16),
}


def random_model(shape: Shape, *, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A LLaVA-1.5 with random weights, made on its device; it never ends an answer by itself."""
    vision = CLIPVisionConfig(
        hidden_size=shape.vision_hidden,
        intermediate_size=4 * shape.vision_hidden,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.vision_heads,
        image_size=_PATCH * shape.grid,
        patch_size=_PATCH,
        projection_dim=shape.vision_hidden,
    )
    text = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=8192,
        tie_word_embeddings=shape.tied,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=shape.vocabulary - 1,
        image_seq_length=shape.grid**2,
        tie_word_embeddings=shape.tied,
    )
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model: Any = LlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    # Behind the norm states have unit variance; each logit is their product with as many weights of this deviation.
    torch.nn.init.constant_(model.get_decoder().norm.weight, _SPREAD / (text.initializer_range * shape.hidden**0.5))
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()


def random_inputs(
    model: Any,
    batch: int,
    *,
    images: int = 1,
    before: int = 5,
    after: int = 20,
    same_image: bool = False,
    seed: int = 1,
) -> dict[str, Tensor]:
    """Inputs of a LLaVA-1.5 as its processor would return them: text, image columns, text.

    Args:
        model: the model.
        batch: prompts.
        images: images a prompt, one behind the other.
        before: tokens in front of the images, the same in all prompts.
        after: tokens behind them, different in each.
        same_image: all prompts show one image.
        seed: of pixels and tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    vision, image_token = model.config.vision_config, model.config.image_token_id
    columns = images * (vision.image_size // vision.patch_size) ** 2
    head = torch.randint(3, image_token, (1, before), generator=generator).expand(batch, -1)
    tail = torch.randint(3, image_token, (batch, after), generator=generator)
    ids = torch.cat([head, torch.full((batch, columns), image_token), tail], dim=-1)
    pixels = torch.randn(
        1 if same_image else batch * images, 3, vision.image_size, vision.image_size, generator=generator
    )
    if same_image:
        pixels = pixels.repeat(batch, 1, 1, 1)
    return {
        "input_ids": ids.to(model.device),
        "attention_mask": torch.ones_like(ids).to(model.device),
        "pixel_values": pixels.to(model.device, model.dtype),
    }


def with_grid(shape: Shape, grid: int) -> Shape:
    """The same model for images of another number of patches along a side.

    Example:
        >>> with_grid(SHAPES["small"], 8).grid
        8
    """
    return replace(shape, grid=grid)
