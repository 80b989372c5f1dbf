"""What is asked about each image: POPE's questions about objects that are there and objects that are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from damro.diagnosis.samples import AnnotatedImage
from damro.eval.errors import EvalError
from damro.eval.pope.benchmark import Pope
from damro.eval.pope.builder import SPLITS, build

_PER_IMAGE = 3  # of each label, as POPE has it


class Question(NamedTuple):
    """A question about an image.

    Attributes:
        prompt: what the model is asked.
        present: whether the image shows the object.
        splits: in how many of POPE's three splits it stands.
    """

    prompt: str
    present: bool
    splits: int


def questions_of(images: Sequence[AnnotatedImage], seed: int = 42) -> dict[str, list[Question]]:
    """POPE's three splits about the images, a question that stands in several of them once.

    POPE asks about three objects that an image shows and as many that it does not. Where less than half of the images
    show so many, two or one are asked for.

    Args:
        images: their objects are counted; those that show too few are not asked about.
        seed: of the choice.

    Returns:
        By the name of the image.

    Raises:
        EvalError: no object is left to ask for that is not there, or no image shows anything.

    Example:
        >>> from damro.diagnosis.samples import scene_images
        >>> asked = questions_of(scene_images(8))["test_000000.png"]
        >>> asked[0].prompt, asked[0].present, sum(one.splits for one in asked)
        ('Is there a cat in the image? Please answer this question with one word.', True, 18)
    """
    objects: dict[str, frozenset[str]] = {image.name: image.objects for image in images}
    for per_image in range(_PER_IMAGE, 0, -1):
        eligible = sum(len(names) >= per_image for names in objects.values())
        if eligible * 2 >= len(objects) and eligible:
            return _build(objects, eligible, per_image, seed)
    raise EvalError(f"objects must be known of at least half of the images, got none for most of {len(objects)}")


def _build(
    objects: Mapping[str, frozenset[str]], eligible: int, per_image: int, seed: int
) -> dict[str, list[Question]]:
    counted: dict[tuple[str, str, bool], int] = {}
    for split in SPLITS:
        # A name that is a number would be taken for the id of an image of COCO.
        named = {f"image {name}": names for name, names in objects.items()}
        for record in build(named, split, images=eligible, per_image=per_image, seed=seed):
            key = (record["image"].removeprefix("image "), record["text"], record["label"] == "yes")
            counted[key] = counted.get(key, 0) + 1
    asked: dict[str, list[Question]] = {}
    for (name, text, present), splits in counted.items():
        asked.setdefault(name, []).append(Question(Pope.prompt.format(question=text), present, splits))
    return asked
