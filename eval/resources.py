"""Where the data files that come with the package lie.

Origin and licences of every file: ``eval/data/ORIGIN.md``.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from damro.eval.errors import EvalError

POPE_SPLITS: tuple[str, ...] = (
    *(f"{images}/{split}" for images in ("coco", "aokvqa", "gqa") for split in ("random", "popular", "adversarial")),
    "coco/random_2910",
)
"""The shipped POPE question files, as ``images/split``."""


def data_path(*parts: str) -> Path:
    """Return the path of one shipped data file.

    Args:
        parts: The path below ``eval/data``, e.g. ``"pope", "coco_random.jsonl.gz"``.

    Raises:
        EvalError: The file is not there, or the package lies inside a zip archive.

    Example:
        >>> data_path("coco2014_objects.json.gz").name
        'coco2014_objects.json.gz'
    """
    place = resources.files("damro.eval").joinpath("data", *parts)
    if not isinstance(place, Path) or not place.is_file():
        raise EvalError(
            f"data file {'/'.join(parts)!r} must lie unpacked in the installed package, looked for it at {place}: "
            "install damro again from a wheel or a checkout"
        )
    return place


def pope_questions_path(split: str) -> Path:
    """Return the path of a shipped POPE question file.

    Args:
        split: One of `POPE_SPLITS`, e.g. ``"coco/popular"``.

    Raises:
        EvalError: No such split is shipped.

    Example:
        >>> pope_questions_path("coco/popular").name
        'coco_popular.jsonl.gz'
    """
    if split not in POPE_SPLITS:
        raise EvalError(f"split must be one of {', '.join(POPE_SPLITS)}, got {split!r}")
    return data_path("pope", split.replace("/", "_") + ".jsonl.gz")


def coco_objects_path() -> Path:
    """Return the path of ``{image_id: [object, ...]}`` for COCO 2014 train and val (gzipped JSON)."""
    return data_path("coco2014_objects.json.gz")
