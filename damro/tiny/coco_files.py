"""Writes scenes as a COCO data set: the folder that COCO code reads, from images to reference captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle

from damro.tiny.captions import COCO_IDS, reference_captions
from damro.tiny.scenes import SIDE, Scene, SceneObject, scene


def write_coco(folder: Path | str, split: str, count: int) -> Path:
    """Writes the first scenes of a split in COCO format.

    The folder gets ``images/`` (PNG), ``instances_SPLIT.json`` (boxes and run-length masks of what is visible,
    COCO's category ids and names) and ``captions_SPLIT.json`` (five reference captions an image).
    An image's id is its number in the split.

    Args:
        folder: is made if missing; files of the same names are replaced.
        split: "train", "validation" or "test".
        count: how many scenes, from scene 0 on; at least 1.

    Returns:
        The folder.

    Raises:
        ValueError: the split is unknown or `count` below 1.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     sorted(path.name for path in write_coco(place, "test", 2).iterdir())
        ['captions_test.json', 'images', 'instances_test.json']
    """
    if count < 1:
        raise ValueError(f"count must be 1 or more, not {count}; ask for at least one scene")
    folder = Path(folder)
    pictures = [scene(split, index) for index in range(count)]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images = []
    for picture in pictures:
        name = f"{split}_{picture.index:06d}.png"
        picture.image.save(folder / "images" / name)
        images.append({"id": picture.index, "file_name": name, "height": SIDE, "width": SIDE})
    info = {"description": f"damro tiny scenes, split {split}", "version": "1"}
    annotations = [entry for picture in pictures for entry in _annotate(picture)]
    sentences = [
        {"image_id": picture.index, "caption": text} for picture in pictures for text in reference_captions(picture)
    ]
    categories = [{"id": number, "name": name, "supercategory": ""} for name, number in COCO_IDS.items()]
    _dump(
        folder / f"instances_{split}.json",
        {"info": info, "images": images, "annotations": _number(annotations), "categories": categories},
    )
    _dump(folder / f"captions_{split}.json", {"info": info, "images": images, "annotations": _number(sentences)})
    return folder


def encode_mask(thing: SceneObject) -> dict[str, Any]:
    """The visible part as COCO's compressed run-length code.

    Args:
        thing: an object of a scene.

    Returns:
        ``{"size": [96, 96], "counts": text}``.
    """
    code = rle.encode(np.asfortranarray(thing.mask.astype(np.uint8)))
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")}


def _annotate(picture: Scene) -> list[dict[str, Any]]:
    """COCO annotations of a scene, without ids."""
    return [
        {
            "image_id": picture.index,
            "category_id": COCO_IDS[thing.name],
            "bbox": list(thing.box),
            "area": int(thing.mask.sum()),
            "iscrowd": 0,
            "segmentation": encode_mask(thing),
        }
        for thing in picture.objects
    ]


def _number(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Gives ids from 1 on: COCO code takes 0 for "none"."""
    return [{"id": number, **entry} for number, entry in enumerate(entries, start=1)]


def _dump(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")
