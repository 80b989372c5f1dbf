"""Seeded pictures of everyday scenes with known objects: scene ``i`` of a split is the same on every machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from PIL import Image

from damro.tiny.dice import Bytes, Dice
from damro.tiny.sprites import sprites_of_class, turn_sprite
from damro.tiny.themes import PAIRS, THEMES, Theme

SIDE: Final = 96
"""Height and width of a scene in pixels."""
SPLITS: Final = ("train", "validation", "test")
"""Each split has a random stream of its own."""

Mask = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
Owner = np.ndarray[tuple[int, ...], np.dtype[np.int64]]

_SIZES = (20, 24, 28, 32, 36, 40, 46, 52)
_SIZE_WEIGHTS = (1, 2, 4, 5, 5, 4, 3, 2)
_COUNT_WEIGHTS = (3, 5, 5, 4, 2)  # of 2, 3, 4, 5, 6 objects
_ANGLES = (-40, -30, -20, -10, 10, 20, 30, 40)
_STRAY = 5  # percent of objects from outside the theme
_SHOWN = 75  # percent of an object that stays visible,
_SHOWN_CROWDED = 45  # and in every fifth case
_TRIES = 16
_SALT = 20240414  # keeps these streams apart from other users of small seeds


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene.

    Attributes:
        name: its COCO name.
        box: x, y, width, height of the visible part in pixels.
        mask: the visible part, bool of shape (96, 96).
    """

    name: str
    box: tuple[int, int, int, int]
    mask: Mask


@dataclass(frozen=True)
class Scene:
    """A picture and what is in it.

    Attributes:
        split: "train", "validation" or "test".
        index: number in the split.
        theme: what the scene is about.
        image: RGB, 96 x 96.
        objects: the visible objects, the largest visible one first.
    """

    split: str
    index: int
    theme: Theme
    image: Image.Image
    objects: tuple[SceneObject, ...]


class _Placed(NamedTuple):
    """A turned sprite and where its upper left corner lies (may be outside)."""

    name: str
    tile: Bytes
    top: int
    left: int
    opacity: int


def scene(split: str, index: int) -> Scene:
    """Renders one scene.

    Args:
        split: "train", "validation" or "test".
        index: number of the scene, >= 0; there is no end.

    Returns:
        The scene; the same for the same arguments, whatever the machine.

    Raises:
        ValueError: the split is unknown or the index negative.

    Example:
        >>> [thing.name for thing in scene("test", 0).objects]
        ['cat', 'couch', 'tv', 'vase']
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}; choose one of them")
    if index < 0:
        raise ValueError(f"index must be 0 or more, not {index}; scenes are numbered from 0")
    dice = Dice(_SALT, SPLITS.index(split), index)
    theme = THEMES[dice.below(len(THEMES))]
    pixels = _background(theme, dice)
    owner = np.zeros((SIDE, SIDE), dtype=np.int64)  # number of the object on top, 0 for the background
    names: list[str] = []
    areas: list[int] = []
    for name in choose_names(theme, dice):
        placed = _place(name, owner, areas, dice)
        if placed is None:
            continue
        names.append(name)
        areas.append(_paint(pixels, owner, placed, len(names)))
    objects = [_finish(name, owner == number) for number, name in enumerate(names, start=1)]
    objects.sort(key=lambda thing: -int(thing.mask.sum()))
    return Scene(split, index, theme, Image.fromarray(pixels), tuple(objects))


def choose_names(theme: Theme, dice: Dice) -> list[str]:
    """Draws two to six objects: from the theme, from the partners of what is there, and a few strays.

    Args:
        theme: the theme.
        dice: the random stream; it is advanced.

    Returns:
        COCO names; a name may come more than once.
    """
    wanted = 2 + dice.pick(_COUNT_WEIGHTS)
    known, weights = list(theme.weights), list(theme.weights.values())
    everything = list(sprites_of_class())
    names: list[str] = []
    while len(names) < wanted:
        partner, percent = PAIRS.get(names[-1], ("", 0)) if names else ("", 0)
        if percent and partner not in names and dice.chance(percent):
            names.append(partner)
        elif dice.chance(_STRAY):
            names.append(everything[dice.below(len(everything))])
        else:
            name = known[dice.pick(weights)]
            # A second one of a kind is common, a third one is not.
            if names.count(name) == 0 or (names.count(name) == 1 and dice.chance(35)):
                names.append(name)
    return names


def _background(theme: Theme, dice: Dice) -> Bytes:
    """Two shaded halves, a pattern on the lower one, and noise. uint8 (96, 96, 3), writable."""
    horizon = dice.between(SIDE // 4, SIDE * 5 // 8)
    shift = np.array([dice.between(-14, 14) for _ in range(3)])
    rows = np.arange(SIDE, dtype=np.int64)
    canvas = np.empty((SIDE, SIDE, 3), dtype=np.int64)
    canvas[:] = (np.where(rows[:, None] < horizon, theme.top, theme.bottom) + shift)[:, None, :]
    canvas += ((rows - horizon) * dice.between(-24, 24) // SIDE)[:, None, None]
    step = dice.between(8, 16)
    if theme.pattern == "stripes":
        canvas[horizon:] -= (rows[horizon:] % step < step // 3)[:, None, None] * 14
    elif theme.pattern == "tiles":
        lines = (rows[horizon:, None] % step == 0) | (rows[None, :] % step == 0)
        canvas[horizon:] -= lines[..., None] * 22
    canvas += (dice.noise((SIDE, SIDE)) % 13).astype(np.int64)[..., None] - 6
    return canvas.clip(0, 255).astype(np.uint8)


def _place(name: str, owner: Owner, areas: list[int], dice: Dice) -> _Placed | None:
    """Looks for a spot that leaves enough of every earlier object in sight; None if there is none."""
    choices = sprites_of_class()[name]
    size = _SIZES[dice.pick(_SIZE_WEIGHTS)]
    degrees = _ANGLES[dice.below(len(_ANGLES))] if dice.chance(35) else 0
    tile = turn_sprite(choices[dice.below(len(choices))], size, degrees, dice.chance(50))
    opacity = dice.between(110, 170) if dice.chance(10) else 255
    height, width = tile.shape[:2]
    beyond = 5 if dice.chance(15) else 0  # lets a fifth of it stand outside the picture
    share = _SHOWN_CROWDED if dice.chance(20) else _SHOWN
    for _ in range(_TRIES):
        top = dice.between(-height * beyond // 25, SIDE - height + height * beyond // 25)
        left = dice.between(-width * beyond // 25, SIDE - width + width * beyond // 25)
        placed = _Placed(name, tile, top, left, opacity)
        if _leaves_enough(placed, owner, areas, share):
            return placed
    return None


def _window(placed: _Placed) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Slices of the picture and of the tile that fall on each other."""
    height, width = placed.tile.shape[:2]
    rows = slice(max(placed.top, 0), min(placed.top + height, SIDE))
    columns = slice(max(placed.left, 0), min(placed.left + width, SIDE))
    tile_rows = slice(rows.start - placed.top, rows.stop - placed.top)
    tile_columns = slice(columns.start - placed.left, columns.stop - placed.left)
    return (rows, columns), (tile_rows, tile_columns)


def _leaves_enough(placed: _Placed, owner: Owner, areas: list[int], share: int) -> bool:
    """Whether each earlier object stays visible to that share (in percent) of what it first showed."""
    where, within = _window(placed)
    solid = placed.tile[within][..., 3] > 127
    covered = np.bincount(owner[where][solid], minlength=len(areas) + 1)
    if not covered[1:].any():
        return True
    shown = np.bincount(owner.ravel(), minlength=len(areas) + 1) - covered
    return all(int(left) * 100 >= share * area for left, area in zip(shown[1:], areas, strict=True))


def _paint(pixels: Bytes, owner: Owner, placed: _Placed, number: int) -> int:
    """Draws a tile and claims its pixels. Returns how many."""
    where, within = _window(placed)
    tile = placed.tile[within].astype(np.int64)
    colour, alpha = tile[..., :3] * placed.opacity // 255, tile[..., 3:] * placed.opacity // 255
    pixels[where] = (colour + pixels[where] * (255 - alpha) // 255).clip(0, 255).astype(np.uint8)
    solid = tile[..., 3] > 127
    owner[where][solid] = number
    return int(solid.sum())


def _finish(name: str, mask: Mask) -> SceneObject:
    """Adds the box of the visible part."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return SceneObject(name, (left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1), mask)
