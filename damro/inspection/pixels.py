"""The picture a vision tower saw, made from the pixels it was given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image

from damro.errors import InputsError


def seen_image(processor: Any, inputs: Mapping[str, Any], image: int = 0) -> Image.Image:
    """Undoes the image processor's normalisation, so that a map of patches fits exactly what it is laid over.

    What the processor cropped away is missing here, as it was to the model. LLaVA-NeXT's base tile, which the model
    sees squeezed into a square, is stretched back to the proportions of the image; so the same picture serves for
    its tiles.

    Args:
        processor: the model's.
        inputs: what it returned.
        image: the image's number in the batch.

    Raises:
        InputsError: if there is no such image.
    """
    pixels: torch.Tensor = inputs["pixel_values"]
    if not 0 <= image < len(pixels):
        raise InputsError(f"image must be from 0 to {len(pixels) - 1}, got {image}")
    tile = pixels[image, 0] if pixels.ndim == 5 else pixels[image]
    maker = getattr(processor, "image_processor", processor)  # a bare ViT's is one itself
    tile = tile.detach().float().cpu()
    if maker.do_normalize:
        tile = tile * torch.tensor(maker.image_std).view(3, 1, 1) + torch.tensor(maker.image_mean).view(3, 1, 1)
    values = (tile.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    picture = Image.fromarray(values.contiguous().numpy())
    sizes = inputs.get("image_sizes")
    if sizes is None:
        return picture
    height, width = (int(side) for side in sizes[image])
    scale = max(picture.size) / max(height, width)
    return picture.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BICUBIC)
