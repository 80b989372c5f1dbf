"""What the processors of Cohere 2 Vision and LFM2-VL make of images, where torchvision, which they need, is missing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tests.zoo_images import IMAGE

SIDE, PATCH = 56, 7
_MEAN = 0.5


class Cut(NamedTuple):
    """An image as a processor has cut it: its tiles `(rows, columns, 3)`, the whole image last, and its tokens."""

    tiles: list[Tensor]
    tokens: list[int]


def _tiles(image: Image.Image, down: int, across: int, whole: tuple[int, int]) -> list[Tensor]:
    """Squares of an image, row by row, and the whole of it in a size `(height, width)`; of a small one that alone."""
    large = _pixels(image, (down * SIDE, across * SIDE))
    squares = [square for line in large.split(SIDE) for square in line.split(SIDE, dim=1)]
    return [*(squares if len(squares) > 1 else []), _pixels(image, whole)]


def _pixels(image: Image.Image, size: tuple[int, int]) -> Tensor:
    shrunk = image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return (torch.from_numpy(np.array(shrunk)) / 255 - _MEAN) / _MEAN


def _cohere2(image: Image.Image) -> Cut:
    """A line break behind every tile."""
    sides = (1, 1) if max(image.size) <= SIDE else (2, 2)
    tiles = _tiles(image, *sides, (SIDE, SIDE))
    return Cut(tiles, [62, *([IMAGE] * 16 + [60]) * len(tiles), 63])


def _lfm2(image: Image.Image) -> Cut:
    """Every tile behind its place, the whole image behind a marker of its own and in its own shape."""
    width, height = image.size
    sides = ((height + SIDE // 2) // SIDE, (width + SIDE // 2) // SIDE)
    whole = (28, 70) if sides[0] != sides[1] else (SIDE, SIDE)
    tiles = _tiles(image, *sides, whole)
    parts = [token for part in range(len(tiles) - 1) for token in (70 + part, *[IMAGE] * 16)]
    columns = whole[0] * whole[1] // (2 * PATCH) ** 2
    return Cut(tiles, [62, *parts, *[69][: len(parts)], *[IMAGE] * columns, 63])


class ByHand:
    """Stands for a processor in `tests.test_families_tiles`, which asks it for conversations about images.

    Args:
        name: "cohere2_vision" or "lfm2_vl".
    """

    def __init__(self, name: str) -> None:
        self.cut = {"cohere2_vision": _cohere2, "lfm2_vl": _lfm2}[name]
        self.image_processor = SimpleNamespace(image_mean=[_MEAN] * 3, image_std=[_MEAN] * 3)

    def apply_chat_template(self, talks: Any, **_: Any) -> dict[str, Tensor]:
        """Prompts padded on the left, and the tiles of all their images."""
        prompts, tiles = [], []
        for (said,) in talks:
            prompts.append([1])
            for part in said["content"]:
                own = self.cut(part["image"]) if part["type"] == "image" else Cut([], [8, 9])
                prompts[-1] += own.tokens
                tiles += own.tiles
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        told = {"input_ids": ids, "attention_mask": (ids != 0).long()}
        if self.cut is _cohere2:
            return {**told, "pixel_values": torch.stack(tiles).permute(0, 3, 1, 2)}
        return told | _in_patches(tiles)


def _in_patches(tiles: list[Tensor]) -> dict[str, Tensor]:
    """The patches of every tile in a row, filled up."""
    shapes = [(tile.shape[0] // PATCH, tile.shape[1] // PATCH) for tile in tiles]
    most = max(high * wide for high, wide in shapes)
    values, read = torch.zeros(len(tiles), most, 3 * PATCH**2), torch.zeros(len(tiles), most, dtype=torch.long)
    for number, (tile, (high, wide)) in enumerate(zip(tiles, shapes, strict=True)):
        patches = tile.view(high, PATCH, wide, PATCH, 3).transpose(1, 2).reshape(high * wide, -1)
        values[number, : high * wide], read[number, : high * wide] = patches, 1
    return {"pixel_values": values, "pixel_attention_mask": read, "spatial_shapes": torch.tensor(shapes)}
