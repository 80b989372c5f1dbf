"""What a model is asked: samples, the images they are about, and the truth they are scored with."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from damro.eval.errors import DataFormatError, EvalError

if TYPE_CHECKING:
    from PIL import Image

_SHOWN = 3

OpenImage = Callable[[str], "Image.Image"]
"""From an image's name to the image."""


class Sample(NamedTuple):
    """One prompt, about one image or none.

    Attributes:
        sample_id: Unique in its run.
        image: The image's name in its source, with "/" between folders; None for a text alone.
        prompt: What the model is asked.
        fields: What the record shall also hold: split, question_id, label, image_id, ...
    """

    sample_id: str
    image: str | None
    prompt: str
    fields: Mapping[str, Any]


def image_of(sample: Sample) -> str:
    """Return the name of a sample's image.

    Raises:
        EvalError: It has none.
    """
    if sample.image is None:
        raise EvalError(
            f"sample {sample.sample_id} must have an image to be read so, has none: leave --read logits out"
        )
    return sample.image


@dataclass(frozen=True)
class Dataset:
    """The samples of a run.

    Attributes:
        samples: In the order in which they are asked; samples of one image stand together.
        open_image: From an image's name to the image.
        data: Where questions and truth come from, with checksums, for ``run.json``.
        truth: What answers are scored with beside the records; empty where records hold their labels.
    """

    samples: list[Sample]
    open_image: OpenImage
    data: dict[str, Any]
    truth: dict[str, list[str]] = field(default_factory=dict)

    def missing_images(self) -> list[str]:
        """Return the names of images whose file is not there, each once; refuse a folder that lacks most of them.

        Where images come from no `ImageSource`, none is missing.

        Raises:
            EvalError: More than half are missing; names the folder, how many, and the first few.
        """
        if not isinstance(self.open_image, ImageSource):
            return []
        return self.open_image.missing((one.image for one in self.samples if one.image is not None), at_most=0.5)

    def digest_image(self, name: str) -> str | None:
        """Return the SHA-256 of an image's file; None where there is none, or images come from no `ImageSource`."""
        return self.open_image.digest(name) if isinstance(self.open_image, ImageSource) else None


def check_samples(samples: Sequence[Sample]) -> None:
    """Refuse samples that no run could be made of.

    Raises:
        EvalError: There are none, an image's name leaves its folder, or an id stands twice.
    """
    for sample in samples:
        if sample.image is not None:
            check_inside(sample.image)
    if not samples:
        raise EvalError("a run must have at least one sample, got none: check --split, --limit and the files given")
    if len({sample.sample_id for sample in samples}) < len(samples):
        raise DataFormatError("samples must have ids of their own, got one twice: give every question its question_id")


def check_inside(name: str) -> None:
    """Refuse an image's name that would leave the images folder.

    Raises:
        EvalError: It is absolute, names a drive, or steps up.

    Example:
        >>> check_inside("val2014/COCO_val2014_000000000042.jpg")
        >>> check_inside("a/../../secret.jpg")
        Traceback (most recent call last):
        damro.eval.errors.EvalError: image must stay inside the images folder, got 'a/../../secret.jpg'
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if not name or path.is_absolute() or ".." in path.parts or ":" in path.parts[0] or "\0" in name:
        raise EvalError(f"image must stay inside the images folder, got {name!r}")


def first_few(names: Sequence[str]) -> str:
    """Return the first names of a list, for messages.

    Example:
        >>> first_few(["a.jpg", "b.jpg"]), first_few(["1", "2", "3", "4"])
        ('a.jpg, b.jpg', '1, 2, 3, ...')
    """
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


@dataclass(frozen=True)
class ImageSource:
    """Opens images that are stored somewhere; an `OpenImage` that can also tell which are there, and their contents.

    Attributes:
        max_pixels: The largest image that is opened; None takes `damro.images.MAX_PIXELS`.
    """

    max_pixels: int | None = field(default=None, kw_only=True)

    def __call__(self, name: str) -> Image.Image:
        """Open an image by its name.

        Raises:
            EvalError: There is no image of that name.
            ImageError: It does not open.
        """
        raise NotImplementedError

    def digest(self, name: str) -> str | None:
        """Return the SHA-256 of an image's contents; None where there are none that can be read."""
        raise NotImplementedError

    def missing(self, names: Iterable[str], *, at_most: float) -> list[str]:
        """Return those of the names that there is no image of, each once; opens none.

        Args:
            names: Of images.
            at_most: The share of the names that may be missing.

        Raises:
            EvalError: More are.
        """
        return []


@dataclass(frozen=True)
class ImageFolder(ImageSource):
    """Opens the images of a folder by their names in it.

    Attributes:
        folder: As it was given.
    """

    folder: Path

    def __call__(self, name: str) -> Image.Image:
        """Open an image.

        Raises:
            EvalError: The name, or a link of that name, leaves the folder.
            ImageError: There is no such file, or it is no image.
        """
        from damro.images import MAX_PIXELS, load_image

        check_inside(name)
        root = Path(os.path.realpath(self.folder))
        path = Path(os.path.realpath(root / name))  # a link may leave the folder where the name does not
        if not path.is_relative_to(root):
            raise EvalError(f"image must stay inside the images folder, got a link that leaves it: {name!r}")
        return load_image(path, max_pixels=self.max_pixels or MAX_PIXELS)

    def digest(self, name: str) -> str | None:
        """Return the SHA-256 of an image's file; None where there is none that can be read.

        Raises:
            EvalError: The name leaves the folder.
        """
        check_inside(name)
        path = os.path.join(self.folder, name)
        try:
            if not os.path.isfile(path):  # a pipe would wait for somebody to write
                return None
            with open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:  # whoever opens the image is told
            return None

    def missing(self, names: Iterable[str], *, at_most: float) -> list[str]:
        """Return those of the names that the folder has no file of, each once; opens none.

        Args:
            names: Of images.
            at_most: The share of the names that may be missing.

        Raises:
            EvalError: More are; names the folder, how many, and the first few.
        """
        asked = dict.fromkeys(names)
        missing = [name for name in asked if not os.path.exists(os.path.join(self.folder, name))]
        if len(missing) > at_most * len(asked):
            raise EvalError(
                f"--images must be the folder that holds the images, got {str(self.folder)!r}, which lacks "
                f"{len(missing)} of {len(asked)} ({first_few(missing)}): give the folder with files of these names"
            )
        return missing


def folder_opener(folder: Path) -> ImageFolder:
    """Return what opens the images of a folder.

    Raises:
        EvalError: There is no such folder.
    """
    if not folder.is_dir():
        raise EvalError(f"--images must be a folder, got {str(folder)!r}: give the folder that holds the images")
    return ImageFolder(folder)


def bounded(open_image: OpenImage, max_pixels: int | None) -> OpenImage:
    """Return what opens images of at most so many pixels, where they come from an `ImageSource`."""
    return replace(open_image, max_pixels=max_pixels) if isinstance(open_image, ImageSource) else open_image


def need_folder(images: Path | None, benchmark: str) -> Path:
    """Return the folder of COCO's images.

    Raises:
        EvalError: None was given.
    """
    if images is None:
        raise EvalError(
            f"{benchmark} needs the images, none are downloaded: give --images with the folder of COCO val2014 "
            "(http://images.cocodataset.org/zips/val2014.zip, 6 GB) or of your own, or take --model tiny"
        )
    return images


def scene_objects(scenes: int) -> dict[str, list[str]]:
    """Return the objects of the first test scenes, by the scene's image name."""
    from damro.tiny.scenes import scene

    return {
        f"test_{index:06d}.png": sorted({thing.name for thing in scene("test", index).objects})
        for index in range(scenes)
    }


def open_scene(name: str) -> Image.Image:
    """Render a test scene by its image name."""
    from damro.tiny.scenes import scene

    return scene("test", int(name.removeprefix("test_").removesuffix(".png"))).image


def digest_of(value: object) -> str:
    """Return the SHA-256 of a value's JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
