"""The images that a diagnosis looks at, and what each of them shows."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from damro.diagnosis.instances import Instances, holds_instances, read_instances
from damro.eval.chair.coco import image_key, normalize_objects, read_objects
from damro.eval.chair.images import choose_images
from damro.eval.chair.vocabulary import Vocabulary
from damro.eval.records import read_json
from damro.eval.samples import bounded, folder_opener, open_scene, scene_objects

if TYPE_CHECKING:
    from PIL import Image

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and what it shows.

    Attributes:
        name: tells it from others; what is drawn at random for it depends on its name.
        open_image: returns the picture.
        objects: the names of everything that it shows.
        open_mask: returns where these are, boolean `(height, width)` of the picture; None where nobody knows.
    """

    name: str
    open_image: Callable[[], Image.Image]
    objects: frozenset[str]
    open_mask: Callable[[], Mask] | None = None


def scene_images(count: int) -> list[AnnotatedImage]:
    """The first test scenes of the embedded models, which know where their objects are.

    Example:
        >>> [sorted(image.objects) for image in scene_images(1)]
        [['cat', 'couch', 'tv', 'vase']]
    """
    return [
        AnnotatedImage(name, partial(open_scene, name), frozenset(names), partial(_scene_mask, number))
        for number, (name, names) in enumerate(scene_objects(count).items())
    ]


def folder_images(
    folder: str | os.PathLike[str],
    objects: str | os.PathLike[str] | None = None,
    *,
    limit: int = 200,
    seed: int = 42,
    vocabulary: Vocabulary | None = None,
    max_pixels: int | None = None,
) -> list[AnnotatedImage]:
    """Images of a folder that are annotated.

    Args:
        folder: of the images.
        objects: COCO's instances (``instances_val2014.json``), which tell where objects are, or a file that
            :func:`damro.eval.chair.coco.read_objects` takes, which does not; None takes the shipped objects of COCO
            2014.
        limit: at most so many, chosen by the seed.
        seed: of the choice.
        vocabulary: what objects are called; None takes COCO's names.
        max_pixels: the largest image that is opened; None takes `damro.images.MAX_PIXELS`.

    Raises:
        EvalError: there is no such folder, or none of its images is annotated.
        DataFormatError: the objects cannot be read, or are called by names that the vocabulary does not have.
    """
    path, file = Path(folder), None if objects is None else Path(objects)
    opener = bounded(folder_opener(path), max_pixels)
    instances = _find_instances(file)
    truth = (
        {image_key(image): names for image, names in read_objects(file).items()}
        if instances is None
        else instances.objects()
    )
    chosen = choose_images(path, truth, None, limit, seed)
    names = normalize_objects({key: truth[key] for key in chosen}, set(chosen), vocabulary)
    return [
        AnnotatedImage(
            name, partial(opener, name), names[key], None if instances is None else partial(instances.mask, key)
        )
        for key, name in chosen.items()
    ]


def _find_instances(file: Path | None) -> Instances | None:
    """COCO's instances, if the file holds them."""
    if file is None or Path(file.name.lower().removesuffix(".gz")).suffix == ".jsonl":
        return None
    found = read_json(file)
    return read_instances(found, str(file)) if holds_instances(found) else None


def _scene_mask(number: int) -> Mask:
    from damro.tiny.scenes import scene

    masks = [thing.mask for thing in scene("test", number).objects]
    found: Mask = np.logical_or.reduce(masks)
    return found
