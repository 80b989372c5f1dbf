"""The picture a vision tower saw, made from the pixels it was given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from damro.decoding.families import family_of
from damro.errors import InputsError
from damro.vision.vit import is_bare_vit


def seen_image(processor: Any, inputs: Mapping[str, Any], image: int = 0, *, model: Any = None) -> Image.Image:
    """Undoes the image processor's normalisation, so that a map of patches fits exactly what it is laid over.

    What the processor cropped away is missing here, as it was to the model. LLaVA-NeXT's base tile, which the model
    sees squeezed into a square, is stretched back to the proportions of the image; so the same picture serves for
    its tiles.

    Args:
        processor: the model's.
        inputs: what it returned.
        image: the image's number in the batch.
        model: the model; without it, of pixels that are packed patch by patch, or of tiles in a row, it cannot be told
            which are the image's.

    Raises:
        InputsError: if there is no such image.
    """
    family: Any = None if model is None or is_bare_vit(model) else family_of(model)
    if hasattr(family, "images_of"):
        return _base_tile(processor, inputs, family.images_of(model, inputs), image)
    pixels: Tensor = inputs["pixel_values"]
    _check_number(image, len(pixels))
    picture = _to_picture(processor, pixels[image, 0] if pixels.ndim == 5 else pixels[image])
    sizes = inputs.get("image_sizes")
    if sizes is None:
        return picture
    height, width = (int(side) for side in sizes[image])
    scale = max(picture.size) / max(height, width)
    return picture.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BICUBIC)


def _base_tile(processor: Any, inputs: Mapping[str, Any], images: Any, number: int) -> Image.Image:
    """The tile of an image whose columns are ranked."""
    _check_number(number, len(images))
    image, pixels = images[number], inputs["pixel_values"]
    rows, columns = image.patches
    if inputs.get("image_grid_thw") is not None:
        first = int(inputs["image_grid_thw"][: image.tile].prod(dim=-1).sum())
        return _to_picture(processor, unpack(pixels[first : first + rows * columns], image.patches, image.merge))
    if inputs.get("spatial_shapes") is not None:  # (patches, side * side * 3), row by row
        side = round((pixels.shape[-1] // 3) ** 0.5)
        own = pixels[image.tile, : rows * columns].view(rows, columns, side, side, 3)
        return _to_picture(processor, own.permute(4, 0, 2, 1, 3).reshape(3, rows * side, columns * side))
    tiles = pixels.flatten(0, -4)
    if pixels.ndim > 4:  # filled up with tiles of zeros
        tiles = tiles[(tiles != 0).flatten(1).any(dim=1)]
    tile = tiles[image.tile]
    if inputs.get("image_sizes") is not None:  # filled up to the largest image
        height, width = (int(side) for side in inputs["image_sizes"][image.tile])
        tile = tile[:, :height, :width]
    return _to_picture(processor, tile)


def unpack(patches: Tensor, grid: tuple[int, int], merge: int) -> Tensor:
    """Pixels `(3, height, width)` of patches as Qwen2-VL's processor packs them, those of a column next to each other.

    Args:
        patches: `(rows * columns, 3 * frames * side * side)`; of several frames the first is taken.
        grid: rows and columns of patches.
        merge: side of the square of patches that becomes a column.

    Example:
        >>> import torch
        >>> picture = torch.arange(12.0).view(3, 2, 2)
        >>> torch.equal(unpack(picture.flatten(1).T, (2, 2), 2), picture)
        True
    """
    rows, columns = grid
    cells = patches.shape[1] // 3
    frames = 1 if round(cells**0.5) ** 2 == cells else 2
    side = round((cells // frames) ** 0.5)
    blocks = patches.view(rows // merge, columns // merge, merge, merge, 3, frames, side, side)[:, :, :, :, :, 0]
    return blocks.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * side, columns * side)


def _to_picture(processor: Any, tile: Tensor) -> Image.Image:
    """Normalised pixels `(3, height, width)` as an image."""
    maker = getattr(processor, "image_processor", processor)  # a bare ViT's is one itself
    tile = tile.detach().float().cpu()
    if maker.do_normalize:
        tile = tile * torch.tensor(maker.image_std).view(3, 1, 1) + torch.tensor(maker.image_mean).view(3, 1, 1)
    values = (tile.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(values.contiguous().numpy())


def _check_number(image: int, count: int) -> None:
    if not 0 <= image < count:
        raise InputsError(f"image must be from 0 to {count - 1}, got {image}")
