"""Random models in the shape of real ones: speed depends on shapes, not on what weights say."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

_PATCH, _MERGE, _WINDOW = 14, 2, 112
"""Pixels along a patch, patches along a column and pixels along a window; the last two as of Qwen2.5-VL."""

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
        grid: image columns along a side of the image: patches, or squares of them.
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

    def make(self) -> Any:
        """The model, with weights as transformers draws them."""
        vision = CLIPVisionConfig(
            hidden_size=self.vision_hidden,
            intermediate_size=4 * self.vision_hidden,
            num_hidden_layers=self.vision_layers,
            num_attention_heads=self.vision_heads,
            image_size=_PATCH * self.grid,
            patch_size=_PATCH,
            projection_dim=self.vision_hidden,
        )
        config = LlavaConfig(
            vision_config=vision,
            text_config=LlamaConfig(**self.text()),
            image_token_index=self.vocabulary - 1,
            image_seq_length=self.grid**2,
            tie_word_embeddings=self.tied,
        )
        return LlavaForConditionalGeneration(config)

    def text(self) -> dict[str, Any]:
        """Settings of the language model."""
        return {
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": self.tied,
            "bos_token_id": 1,
            "eos_token_id": None,
            "pad_token_id": 0,
        }


@dataclass(frozen=True)
class WindowedShape(Shape):
    """What a Qwen2.5-VL is made of: its ViT, which looks through windows in three layers of four, and its Qwen2.

    A column is four patches.
    """

    def make(self) -> Any:
        """See :meth:`Shape.make`."""
        vision = {
            "depth": self.vision_layers,
            "hidden_size": self.vision_hidden,
            "intermediate_size": 4 * self.vision_hidden,
            "num_heads": self.vision_heads,
            "out_hidden_size": self.hidden,
            "patch_size": _PATCH,
            "spatial_merge_size": _MERGE,
            "window_size": _WINDOW,
            "image_size": _PATCH * _MERGE * self.grid,  # it takes any; of this size are those that it is shown
            "fullatt_block_indexes": list(range(3, self.vision_layers, 4)),
        }
        time, side = self.hidden // self.heads // 8, 3 * (self.hidden // self.heads) // 16
        rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [time, side, side]}
        config = Qwen2_5_VLConfig(
            vision_config=vision,
            text_config={**self.text(), "rope_parameters": rope},
            image_token_id=self.vocabulary - 1,
            video_token_id=self.vocabulary - 2,
            vision_start_token_id=self.vocabulary - 3,
            vision_end_token_id=self.vocabulary - 4,
            tie_word_embeddings=self.tied,
        )
        return Qwen2_5_VLForConditionalGeneration(config)


SHAPES = {
    # A few layers of nothing much: to see whether a benchmark runs.
    "micro": Shape(64, 2, 4, 2, 128, 512, True, 64, 3, 4, grid=4),
    # The language model of SmolLM-135M behind a ViT-S/14 at 336 pixels.
    "small": Shape(576, 30, 9, 3, 1536, 49152, True, 384, 12, 6),
    # LLaVA-1.5-7B: Llama 2 7B behind CLIP ViT-L/14 at 336 pixels.
    "llava-1.5-7b": Shape(4096, 32, 32, 32, 11008, 32064, False, 1024, 24, 16),
    # The parts of a Qwen2.5-VL at the widths of "micro" and "small": no model of these sizes was released.
    "micro-qwen2.5-vl": WindowedShape(64, 2, 4, 2, 128, 512, True, 64, 4, 4, grid=4),
    "small-qwen2.5-vl": WindowedShape(576, 30, 9, 3, 1536, 49152, True, 384, 12, 6),
}


def random_model(shape: Shape, *, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A model with random weights, made on its device; it never ends an answer by itself."""
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = shape.make()
    finally:
        torch.set_default_dtype(before)
    # Behind the norm states have unit variance; each logit is their product with as many weights of this deviation.
    spread = model.config.get_text_config().initializer_range
    torch.nn.init.constant_(model.get_decoder().norm.weight, _SPREAD / (spread * shape.hidden**0.5))
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
    """Inputs of a random model as its processor would return them: text, image columns, text.

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
    side = vision.image_size // vision.patch_size // getattr(vision, "spatial_merge_size", 1)
    words = getattr(model.config, "vision_end_token_id", image_token)  # those behind it are no text
    columns, shown = images * side**2, 1 if same_image else batch * images
    head = torch.randint(3, words, (1, before), generator=generator).expand(batch, -1)
    tail = torch.randint(3, words, (batch, after), generator=generator)
    ids = torch.cat([head, torch.full((batch, columns), image_token), tail], dim=-1)
    copies = batch if same_image else 1
    pixels = _pixels(vision, shown, side, generator)
    told = {name: value.repeat(copies, *[1] * (value.ndim - 1)) for name, value in pixels.items()}
    told["pixel_values"] = told["pixel_values"].to(model.dtype)
    if "image_grid_thw" in told:
        told["mm_token_type_ids"] = (ids == image_token).long()
    told |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {name: value.to(model.device) for name, value in told.items()}


def _pixels(vision: Any, images: int, side: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Noise for images of so many columns along a side: as they are, or cut into patches."""
    merge = getattr(vision, "spatial_merge_size", None)
    if merge is None:
        size = side * vision.patch_size
        return {"pixel_values": torch.randn(images, 3, size, size, generator=generator)}
    patch = 3 * vision.temporal_patch_size * vision.patch_size**2
    grids = torch.tensor([[1, side * merge, side * merge]]).repeat(images, 1)
    pixels = torch.randn(int(grids.prod(dim=-1).sum()), patch, generator=generator)
    return {"pixel_values": pixels, "image_grid_thw": grids}


def with_grid(shape: Shape, grid: int) -> Shape:
    """The same model for images of another number of patches along a side.

    Example:
        >>> with_grid(SHAPES["small"], 8).grid
        8
    """
    return replace(shape, grid=grid)
