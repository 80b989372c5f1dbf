"""Bare vision transformers, read like the vision tower of an LVLM: no prompt, no text, only `pixel_values`.

The functions are those of a family that concern the tower; what follows (queries and keys, attention, features)
is the same code for both. Tokens between [CLS] and the patches (DeiT's distillation token, DINOv2's registers) are
summary tokens, not patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from damro.decoding.families import Encoding
from damro.errors import InputsError

BARE_VITS = ("clip_vision_model", "vit", "deit", "dinov2", "dinov2_with_registers")
"""Model types that are a ViT with a [CLS] token and no more."""

DEFAULT_HEADS = "mean"

_FIXED_POSITIONS = ("clip_vision_model", "vit", "deit")  # these must be asked to interpolate; DINOv2 always does


class HasTower(Protocol):
    """What reading a ViT takes; the family modules of LVLMs have it, and so has this module."""

    DEFAULT_HEADS: str

    def vision_tower(self, model: Any, inputs: Mapping[str, Any] | None = None) -> nn.Module:
        """The ViT."""

    def feature_layer(self, model: Any, *, reference: bool) -> int:
        """The layer that is read unless another is asked for, counted from 0."""

    def encode(self, model: Any, inputs: Mapping[str, Any]) -> Encoding:
        """Runs the ViT once over all images."""


def is_bare_vit(model: Any) -> bool:
    """Whether this is a ViT on its own.

    Example:
        >>> from transformers import ViTConfig, ViTModel
        >>> is_bare_vit(ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)))
        True
    """
    return getattr(getattr(model, "config", None), "model_type", None) in BARE_VITS


def vision_tower(model: Any, inputs: Mapping[str, Any] | None = None) -> nn.Module:
    """The ViT is the model."""
    tower: nn.Module = model
    return tower


def feature_layer(model: Any, *, reference: bool) -> int:
    """The last layer."""
    return int(model.config.num_hidden_layers) - 1


def encode(model: Any, inputs: Mapping[str, Any]) -> Encoding:
    """Runs the ViT once; every image is a row of its own, and there is no prompt its features could fill.

    Positions are interpolated where the pixels are of another size than the model's own.

    Raises:
        InputsError: if `pixel_values` is not a batch of images.
    """
    pixels = inputs.get("pixel_values") if isinstance(inputs, Mapping) else None
    if not isinstance(pixels, Tensor) or pixels.ndim != 4:
        got = f"shape {tuple(pixels.shape)}" if isinstance(pixels, Tensor) else f"{type(pixels).__name__}"
        raise InputsError(
            f"inputs of a bare ViT must hold pixel_values of shape (images, channels, height, width), got {got}; "
            "call processor(images=..., return_tensors='pt')"
        )
    config = model.config
    height, width = pixels.shape[-2:]
    resized = (height, width) != _pair(config.image_size)
    options = {"interpolate_pos_encoding": True} if resized and config.model_type in _FIXED_POSITIONS else {}
    outputs = model(pixel_values=pixels, return_dict=True, **options)
    down, across = _pair(config.patch_size)
    images = len(pixels)
    return Encoding(outputs, (), tuple(range(images)), (1,) * images, (height // down, width // across))


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width; a single number is both."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])
