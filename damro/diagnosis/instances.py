"""COCO's instances: which objects an image shows, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from damro.eval.chair.coco import image_key
from damro.eval.errors import DataFormatError

_PARTS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class Instances:
    """The annotations of some images.

    Attributes:
        where: the file, for messages.
        sizes: by `image_key`, height and width.
        found: by `image_key`, pairs of a category's name and an annotation.
    """

    where: str
    sizes: Mapping[str, tuple[int, int]]
    found: Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]]

    def objects(self) -> dict[str, list[str]]:
        """The names of the objects in each image."""
        return {key: sorted({name for name, _ in of_image}) for key, of_image in self.found.items()}

    def mask(self, key: str) -> NDArray[np.bool_]:
        """Where an image shows objects, `(height, width)`: their outlines, or boxes where there is no outline.

        Raises:
            DataFormatError: an annotation is not of COCO's form.
        """
        height, width = self.sizes[key]
        mask = np.zeros((height, width), dtype=np.bool_)
        for name, annotation in self.found[key]:
            try:
                mask |= _area(annotation, height, width)
            except Exception as error:  # pycocotools raises anything
                raise DataFormatError(
                    f"{self.where}: an annotation must have COCO's segmentation or bbox, got {name!r} of image {key}, "
                    f"reading it gave {type(error).__name__}: {error}; get the file again"
                ) from error
        return mask


def holds_instances(content: Any) -> bool:
    """Whether what a JSON file holds is of the form of COCO's instances.

    Example:
        >>> holds_instances({"images": [], "annotations": [], "categories": []}), holds_instances({"42": ["dog"]})
        (True, False)
    """
    return isinstance(content, dict) and all(isinstance(content.get(part), list) for part in _PARTS)


def read_instances(content: Mapping[str, Any], where: str) -> Instances:
    """The annotations of every image by the key of its file.

    Args:
        content: of the file.
        where: its name, for messages.

    Raises:
        DataFormatError: it is not of COCO's form.

    Example:
        >>> found = read_instances({
        ...     "images": [{"id": 7, "file_name": "a.png", "height": 2, "width": 3}],
        ...     "categories": [{"id": 1, "name": "dog"}],
        ...     "annotations": [{"image_id": 7, "category_id": 1, "bbox": [1, 0, 2, 1]}],
        ... }, "here")
        >>> found.objects(), found.mask("a.png").tolist()
        ({'a.png': ['dog']}, [[False, True, True], [False, False, False]])
    """
    try:
        names = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        keys = {entry["id"]: image_key(PurePosixPath(entry["file_name"]).name) for entry in content["images"]}
        sizes = {keys[entry["id"]]: (int(entry["height"]), int(entry["width"])) for entry in content["images"]}
        found: dict[str, list[tuple[str, Mapping[str, Any]]]] = {key: [] for key in keys.values()}
        for annotation in content["annotations"]:
            found[keys[annotation["image_id"]]].append((names[annotation["category_id"]], annotation))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataFormatError(
            f"{where}: must hold COCO's instances, reading it gave {type(error).__name__}: {error}; get it again"
        ) from error
    return Instances(where, sizes, found)


def _area(annotation: Mapping[str, Any], height: int, width: int) -> NDArray[np.bool_]:
    """What an annotation covers, `(height, width)`."""
    outline = annotation.get("segmentation")
    if not outline:
        left, top, across, down = annotation["bbox"]
        box = np.zeros((height, width), dtype=np.bool_)
        box[max(0, int(top)) : int(np.ceil(top + down)), max(0, int(left)) : int(np.ceil(left + across))] = True
        return box
    from pycocotools import mask as rle

    # Polygons, run lengths as numbers, or run lengths as text, which need no more packing.
    packed = outline if isinstance(outline, dict) and isinstance(outline["counts"], str | bytes) else None
    codes = [packed] if packed is not None else rle.frPyObjects(outline, height, width)
    merged = rle.merge(codes if isinstance(codes, list) else [codes])
    covered: NDArray[np.bool_] = rle.decode(merged).astype(np.bool_)
    return covered
