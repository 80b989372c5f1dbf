"""Rendered scenes in flat arrays on disk, so that training does not wait for the renderer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import numpy as np
from tqdm import tqdm

from damro.tiny.captions import PLACES, Group, group_objects
from damro.tiny.dice import Bytes
from damro.tiny.model import GRID, PATCH
from damro.tiny.scenes import SIDE, Scene, scene
from damro.tiny.sprites import sprites_of_class
from damro.tiny.themes import THEMES

CLASSES: Final = tuple(sprites_of_class())
"""The COCO names that the scenes show; the order of the class numbers in training."""
NO_CLASS: Final = 255
"""Label of a patch that is mostly background."""

_CHUNK = 500
_GROUPS = 6
_LEAST_COVER = PATCH * PATCH // 4  # pixels of an object that make a patch its own


@dataclass(frozen=True)
class SceneCache:
    """Scenes of one split as arrays; row i is scene i.

    Attributes:
        images: uint8 (N, 96, 96, 3).
        patches: uint8 (N, 64), class number of each patch or `NO_CLASS`.
        groups: uint8 (N, 6, 3): class number, count, place; a count of 0 ends the list.
        themes: uint8 (N,), index in `THEMES`.
    """

    images: Bytes
    patches: Bytes
    groups: Bytes
    themes: Bytes

    def list_groups(self, index: int) -> list[Group]:
        """What scene ``index`` shows, the largest first."""
        rows = self.groups[index]
        return [Group(CLASSES[name], int(count), PLACES[where]) for name, count, where in rows if count]


def label_patches(picture: Scene) -> Bytes:
    """The class of each patch: the one with the most visible pixels, if a quarter of the patch shows it.

    Args:
        picture: a scene.

    Returns:
        uint8 (64,), row by row.
    """
    cover = np.zeros((len(CLASSES), GRID, GRID), dtype=np.int64)
    for thing in picture.objects:
        cover[CLASSES.index(thing.name)] += thing.mask.reshape(GRID, PATCH, GRID, PATCH).sum(axis=(1, 3))
    best = cover.argmax(axis=0)
    label = np.where(cover.max(axis=0) >= _LEAST_COVER, best, NO_CLASS)
    return label.astype(np.uint8).ravel()


def _render(split: str, start: int, count: int) -> tuple[Bytes, Bytes, Bytes, Bytes]:
    """Renders a run of scenes; this is what a worker process does."""
    images = np.empty((count, SIDE, SIDE, 3), dtype=np.uint8)
    patches = np.empty((count, GRID * GRID), dtype=np.uint8)
    groups = np.zeros((count, _GROUPS, 3), dtype=np.uint8)
    themes = np.empty(count, dtype=np.uint8)
    for row in range(count):
        picture = scene(split, start + row)
        images[row] = np.asarray(picture.image)
        patches[row] = label_patches(picture)
        themes[row] = THEMES.index(picture.theme)
        for place, group in enumerate(group_objects(picture)):
            groups[row, place] = (CLASSES.index(group.name), group.number, PLACES.index(group.where))
    return images, patches, groups, themes


def build_cache(folder: Path, split: str, count: int, workers: int = 1) -> SceneCache:
    """Renders the first scenes of a split into a folder, or opens them if they are there.

    Args:
        folder: where the arrays lie; about 28 kB a scene.
        split: "train", "validation" or "test".
        count: how many scenes.
        workers: processes that render.

    Returns:
        The arrays, memory-mapped.
    """
    place = folder / f"{split}-{count}"
    shapes = {"images": (SIDE, SIDE, 3), "patches": (GRID * GRID,), "groups": (_GROUPS, 3), "themes": ()}
    done = place / "done"
    if not done.exists():
        place.mkdir(parents=True, exist_ok=True)
        arrays = [
            np.lib.format.open_memmap(place / f"{name}.npy", "w+", np.uint8, (count, *shape))
            for name, shape in shapes.items()
        ]
        starts = range(0, count, _CHUNK)
        sizes = [min(_CHUNK, count - start) for start in starts]
        with ExitStack() as stack:
            spread: Callable[..., Iterable[tuple[Bytes, ...]]] = map
            if workers > 1:
                spread = stack.enter_context(ProcessPoolExecutor(workers, get_context("spawn"))).map
            results = spread(_render, [split] * len(starts), starts, sizes)
            for start, parts in zip(starts, tqdm(results, f"scenes ({split})", len(starts)), strict=True):
                for array, part in zip(arrays, parts, strict=True):
                    array[start : start + len(part)] = part
        for array in arrays:
            array.flush()
        done.touch()
    return SceneCache(**{name: np.load(place / f"{name}.npy", mmap_mode="r") for name in shapes})
