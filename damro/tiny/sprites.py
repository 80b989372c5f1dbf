"""The sprites: Noto Color Emoji (OFL 1.1, see ``data/OFL.txt``), turned and scaled in integer arithmetic."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from damro.tiny.dice import Bytes

DATA = Path(__file__).parent / "data"
_SUPER = 3  # samples a target pixel and axis
_UNIT = 1 << 12  # fixed point of the turned coordinates


@lru_cache(maxsize=1)
def load_atlas() -> tuple[Bytes, tuple[str, ...]]:
    """Reads the atlas.

    Returns:
        The sprites, uint8 of shape (sprites, 64, 64, 4), RGBA; and the COCO name of each.
    """
    meta = json.loads((DATA / "sprites.json").read_text(encoding="utf-8"))
    cell, names = int(meta["cell"]), tuple(meta["names"])
    with Image.open(DATA / "sprites.png") as image:
        pixels = np.asarray(image.convert("RGBA"))
    rows, columns = pixels.shape[0] // cell, pixels.shape[1] // cell
    tiles = pixels.reshape(rows, cell, columns, cell, 4).swapaxes(1, 2).reshape(-1, cell, cell, 4)
    return tiles[: len(names)], names


@lru_cache(maxsize=1)
def sprites_of_class() -> dict[str, tuple[int, ...]]:
    """The indices of the sprites that show a class.

    Returns:
        COCO name -> sprite indices, in atlas order.

    Example:
        >>> len(sprites_of_class()["person"])
        7
    """
    table: dict[str, tuple[int, ...]] = {}
    for index, name in enumerate(load_atlas()[1]):
        table[name] = (*table.get(name, ()), index)
    return table


@lru_cache(maxsize=16384)
def turn_sprite(sprite: int, size: int, degrees: int, flip: bool) -> Bytes:
    """Scales, turns and mirrors a sprite. No float reaches the result, so it is the same on every machine.

    Args:
        sprite: index in the atlas.
        size: side of the scaled cell in pixels, before turning.
        degrees: turn, counter-clockwise.
        flip: mirror left and right first.

    Returns:
        uint8 of shape (h, w, 4), colour premultiplied with alpha, trimmed to its visible part. Not writable.
    """
    source = load_atlas()[0][sprite].astype(np.int64)
    if flip:
        source = source[:, ::-1]
    cell = source.shape[0]
    # Rounding at 12 bits hides that sine and cosine may differ in their last place between machines.
    cosine, sine = (round(f(math.radians(degrees)) * _UNIT) for f in (math.cos, math.sin))
    side = size if degrees == 0 else size * 142 // 100 + 1
    count = side * _SUPER
    # Centres of the samples, doubled to stay integer: (2 i + 1 - count) / 2 samples from the middle.
    axis = 2 * np.arange(count, dtype=np.int64) + 1 - count
    y, x = axis[:, None], axis[None, :]
    divisor = 2 * _SUPER * size * _UNIT
    column = (x * cosine - y * sine) * cell // divisor + cell // 2
    row = (x * sine + y * cosine) * cell // divisor + cell // 2
    inside = (row >= 0) & (row < cell) & (column >= 0) & (column < cell)
    samples = source[row.clip(0, cell - 1), column.clip(0, cell - 1)] * inside[..., None]
    samples[..., :3] = samples[..., :3] * samples[..., 3:] // 255
    blocks = samples.reshape(side, _SUPER, side, _SUPER, 4).sum(axis=(1, 3)) // (_SUPER * _SUPER)
    return _trim(blocks.astype(np.uint8))


def _trim(tile: Bytes) -> Bytes:
    """Cuts the rows and columns that show nothing."""
    seen = tile[..., 3] > 127
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    tile = tile[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
    tile.flags.writeable = False
    return tile
