"""Which images are captioned: those of a folder that have a ground truth, or those that a file names."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from damro.eval.chair.coco import image_key
from damro.eval.errors import DataFormatError, EvalError
from damro.eval.formats.answers import with_ending
from damro.eval.formats.captions import IMAGE_KEYS
from damro.eval.formats.images import Role, Row
from damro.eval.records import read_records, read_text
from damro.eval.resources import pope_questions_path

IMAGES = 500
"""How many are chosen at random."""
DAMRO_500 = "damro-500"
"""Name of the images that the DAMRO paper captions: the list ``data/chair/coco_pope_random.jsonl`` of its released code
(repository coder-gx/DAMRO), which are the 500 of COCO val2014 that POPE asks about, in its order."""
SEED_500 = "seed-500"
"""Name of `IMAGES` images chosen by the seed."""
ROLES = {
    "image": Role(("image",)),
    "image_id": Role(("image_id", "img_id", "cocoid", "image_source", "image_path", "file_name", "id")),
}
"""Columns of a table of images to caption."""
_ENDINGS = (".jpg", ".jpeg", ".png")


def choose_images(
    folder: Path, annotated: Collection[str], image_ids: str | None, limit: int | None, seed: int
) -> dict[str, str]:
    """Return key and file name of the images to caption: those asked for, or 500 of the annotated ones by the seed.

    Args:
        folder: Of the images. A file belongs to a key by its whole name, by its name without ending, or as COCO names
            its files.
        annotated: The keys (see `damro.eval.chair.coco.image_key`) that have a ground truth.
        image_ids: A file that names the images, or the name of a list; see `read_image_ids`. `SEED_500` and None choose
            by the seed.
        limit: At most so many.
        seed: Of the choice.

    Raises:
        EvalError: No image of the folder is annotated, or the file names others.
    """
    present = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in _ENDINGS:
            keys = (image_key(path.name), image_key(path.stem))
            present.update({key: path.name for key in keys if key in annotated})
    if image_ids not in (None, SEED_500):
        # An image that is not there becomes a failed record of this name, and is told in the summary.
        return {key: present.get(key, _coco_name(key)) for key in _named(image_ids, annotated)}
    if not present:
        raise EvalError(
            "--images must hold annotated images such as COCO_val2014_000000000042.jpg, found none in "
            f"{str(folder)!r}: unpack COCO val2014 there, or give --objects with a ground truth of your own images"
        )
    return {key: present[key] for key in _drawn(present, limit, seed)}


def choose_rows(
    data: str, rows: Sequence[Row], annotated: Collection[str], image_ids: str | None, limit: int | None, seed: int
) -> dict[str, Row]:
    """Return key and row of the images of a table to caption, chosen as `choose_images` does.

    Args:
        data: The table's name, for error messages.
        rows: With their ``image_id``; of several with one id the first counts.
        annotated: See `choose_images`, also for what follows.
        image_ids: Likewise.
        limit: Likewise.
        seed: Likewise.

    Raises:
        EvalError: No image of the table is annotated, or others are asked for.
    """
    present: dict[str, Row] = {}
    for row in rows:
        keys = [key for key in map(image_key, (row.fields["image_id"], with_ending(row.fields["image_id"])))]
        for key in keys:
            if key in annotated:
                present.setdefault(key, row)
    if image_ids not in (None, SEED_500):
        asked = _named(image_ids, annotated)
        missing = [key for key in asked if key not in present]
        if missing:
            raise EvalError(
                f"{data}: must hold the images of --image-ids, lacks {len(missing)} of {len(asked)} "
                f"({', '.join(missing[:3])}): name others, or leave --image-ids out"
            )
        return {key: present[key] for key in asked}
    if not present:
        shown = ", ".join(row.fields["image_id"] for row in rows[:3])
        raise EvalError(
            f"{data}: must hold annotated images, its ids ({shown}, ...) are none of the ground truth's: name their "
            "column by --columns image_id=COLUMN, or give --objects with a ground truth of your own images"
        )
    return {key: present[key] for key in _drawn(present, limit, seed)}


def _named(image_ids: str | None, annotated: Collection[str]) -> list[str]:
    """The keys that are asked for, each once; all of them annotated."""
    asked = read_image_ids(str(image_ids))
    unknown = [key for key in asked if key not in annotated]
    if unknown or not asked:
        raise EvalError(
            f"--image-ids must name images of the ground truth, got {len(unknown)} others of {len(asked)} "
            f"({', '.join(unknown[:3])}): give ids of COCO 2014, or --objects for other images"
        )
    return list(dict.fromkeys(asked))


def _drawn(present: Collection[str], limit: int | None, seed: int) -> list[str]:
    """So many keys as are wanted, by the seed."""
    eligible = sorted(present, key=lambda key: (not key.isdigit(), int(key) if key.isdigit() else 0, key))
    return random.Random(seed).sample(eligible, min(limit or IMAGES, len(eligible)))


def read_image_ids(path: Path | str) -> list[str]:
    """Return the keys that a file names: records with one of `IMAGE_KEYS`, a JSON list, or words.

    Args:
        path: The file; or `DAMRO_500`, which wins over a file of that name.

    Raises:
        DataFormatError: It cannot be read, or a record names no image.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "ids.txt"
        >>> _ = file.write_text("COCO_val2014_000000000042.jpg, 73")
        >>> read_image_ids(file)
        ['42', '73']
    """
    if str(path) == DAMRO_500:
        path = pope_questions_path("coco/random")
    text = read_text(path).strip()
    if text.startswith("[") and not re.match(r"\[\s*\{", text):
        try:
            return [image_key(value) for value in json.loads(text)]
        except json.JSONDecodeError as error:
            raise DataFormatError(f"{path}: not JSON ({error.msg} at line {error.lineno})") from error
    if text.startswith(("[", "{")):
        keys = []
        for where, fields in read_records(path):
            image = next((fields[name] for name in IMAGE_KEYS if fields.get(name) is not None), None)
            if image is None:
                raise DataFormatError(
                    f"{where}: must name its image under one of {', '.join(IMAGE_KEYS)}, has "
                    f"{', '.join(map(repr, fields))}"
                )
            keys.append(image_key(image))
        return keys
    return [image_key(word) for word in re.split(r"[\s,;]+", text) if word]


def _coco_name(key: str) -> str:
    return f"COCO_val2014_{int(key):012d}.jpg" if key.isdigit() else key
