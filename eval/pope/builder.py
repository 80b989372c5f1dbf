"""Building POPE questions from annotated images, as the paper does (Li et al., EMNLP 2023).

Per image as many objects that are there (label *yes*) as objects that are not (label *no*), in turn. The split says
which absent objects are asked for: any (*random*), those most frequent in the chosen images (*popular*), or those seen
most often together with the object just asked for (*adversarial*).
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import TypedDict

from damro.eval.errors import DataFormatError, EvalError

SPLITS: tuple[str, ...] = ("random", "popular", "adversarial")
"""The ways to choose absent objects."""

# "a unicorn", "a European", "a one-way sign" begin with a consonant's sound; "an hour", "an heir" with a vowel's.
_A_BEFORE_VOWEL = re.compile(r"(?:uni(?!n)|us[aeiu]|ut[ei]|uk[eu]|ura|eu|ewe|once\b|one\b)", re.IGNORECASE)
_AN_BEFORE_H = re.compile(r"(?:hour|heir|honest|honou?r)", re.IGNORECASE)


class PopeRecord(TypedDict):
    """A question in POPE's own format."""

    question_id: int
    image: str
    text: str
    label: str


def build(
    objects_by_image: Mapping[int, Collection[str]] | Mapping[str, Collection[str]],
    split: str,
    images: int = 500,
    per_image: int = 3,
    seed: int = 42,
    *,
    image_name: str = "COCO_val2014_{:012d}.jpg",
) -> list[PopeRecord]:
    """Make POPE questions for a random choice of images.

    Frequencies and co-occurrences are counted over the chosen images, and only objects that occur there are asked for.
    Ties go by name. Where no companion of the object is left, *adversarial* takes a random absent object. The same
    seed chooses the same images and present objects for all three splits, whatever the order of the mapping.

    Args:
        objects_by_image: The objects that each image shows. A key that is a whole number (also as text: JSON has no
            other keys) is an image id and becomes a file name; any other key is taken as the file name.
        split: "random", "popular" or "adversarial".
        images: How many images to choose, among those with at least ``per_image`` objects.
        per_image: How many questions of each label an image gets.
        seed: Seed of the choice.
        image_name: The file name of an image id, as a format string. COCO ids do not tell val2014 from train2014.

    Returns:
        ``images * per_image * 2`` records with ids from 1, *yes* and *no* in turn: `damro.eval.records` writes them,
        `damro.eval.pope.scoring` takes them as they are.

    Raises:
        EvalError: An argument is out of range, too few images have enough objects, or a chosen image shows so many of
            the objects that too few are absent.
        DataFormatError: An image's objects are not a collection of names, or two keys name one image.

    Example:
        >>> objects = {1: ["cat", "oven"], 2: ["cat", "dog"], 3: ["cat", "oven", "dog"], 4: ["umbrella"]}
        >>> for record in build(objects, "adversarial", images=4, per_image=1)[:2]:
        ...     print(record["image"], record["text"], record["label"])
        COCO_val2014_000000000001.jpg Is there a cat in the image? yes
        COCO_val2014_000000000001.jpg Is there a dog in the image? no
    """
    if split not in SPLITS:
        raise EvalError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    for name, value in (("images", images), ("per_image", per_image)):
        if value < 1:
            raise EvalError(f"{name} must be at least 1, got {value}")
    shown = _objects_by_name(objects_by_image, image_name)
    eligible = sorted(name for name, objects in shown.items() if len(objects) >= per_image)
    if len(eligible) < images:
        raise EvalError(
            f"images must not exceed the {len(eligible)} images (of {len(shown)}) that show at least {per_image} "
            f"objects, got {images}: lower images or per_image"
        )
    rng = random.Random(seed)
    chosen = rng.sample(eligible, images)
    present = {name: rng.sample(sorted(shown[name]), per_image) for name in chosen}
    ranked = _ranking({name: shown[name] for name in chosen}, split, rng)
    records: list[PopeRecord] = []
    for name in chosen:
        refused = set(shown[name])
        for there in present[name]:
            absent = _first_absent(ranked(there), refused, name, per_image)
            refused.add(absent)
            for asked, label in ((there, "yes"), (absent, "no")):
                text = f"Is there {with_article(asked)} in the image?"
                records.append({"question_id": len(records) + 1, "image": name, "text": text, "label": label})
    return records


def with_article(noun: str) -> str:
    """Put "a" or "an" before a noun, by the sound that it begins with.

    Example:
        >>> [with_article(noun) for noun in ("umbrella", "uniform", "hour glass", "tv")]
        ['an umbrella', 'a uniform', 'an hour glass', 'a tv']
    """
    vowel = noun[:1].lower() in ("a", "e", "i", "o", "u") and not _A_BEFORE_VOWEL.match(noun)
    return f"{'an' if vowel or _AN_BEFORE_H.match(noun) else 'a'} {noun}"


def _ranking(shown: Mapping[str, frozenset[str]], split: str, rng: random.Random) -> Callable[[str], list[str]]:
    """Return which objects to try as absent ones, best first, given the present object just asked for."""
    frequency = Counter(name for objects in shown.values() for name in objects)
    vocabulary = sorted(frequency)

    def by_count(counts: Counter[str]) -> list[str]:
        return sorted(counts, key=lambda name: (-counts[name], name))

    def shuffled(there: str) -> list[str]:
        return rng.sample(vocabulary, len(vocabulary))

    if split == "random":
        return shuffled
    if split == "popular":
        popular = by_count(frequency)
        return lambda there: popular
    together: dict[str, Counter[str]] = defaultdict(Counter)
    for objects in shown.values():
        for one in objects:
            together[one].update(objects - {one})
    companions = {name: by_count(counts) for name, counts in together.items()}
    return lambda there: companions[there] + shuffled(there)


def _first_absent(ranked: list[str], refused: set[str], image: str, per_image: int) -> str:
    for name in ranked:
        if name not in refused:
            return name
    raise EvalError(
        f"per_image must leave an object to ask for that is not there, got {per_image} for image {image!r}, which "
        "shows nearly all objects of the chosen images: lower per_image or choose more images"
    )


def _objects_by_name(
    objects_by_image: Mapping[int, Collection[str]] | Mapping[str, Collection[str]], image_name: str
) -> dict[str, frozenset[str]]:
    shown: dict[str, frozenset[str]] = {}
    for key, objects in objects_by_image.items():
        text = str(key)
        name = image_name.format(int(text)) if text.isascii() and text.isdigit() else text
        if isinstance(objects, str) or not all(isinstance(item, str) and item for item in objects):
            raise DataFormatError(f"objects of image {key!r} must be a list of names, got {ascii(objects)[:80]}")
        if name in shown:
            raise DataFormatError(f"every image must stand once, got {name!r} twice: merge its objects")
        shown[name] = frozenset(objects)
    return shown
