"""Samples for a page, one by one: what each method said, what of it is right, and a small picture."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from damro.eval.benchmark import Judged
from damro.eval.report.comparison import Comparison
from damro.eval.report.marks import mark_of
from damro.eval.samples import OpenImage
from damro.images import ImageError, to_rgb

if TYPE_CHECKING:
    from PIL import Image

SHOWN = 5000
"""As many samples without a change, and as many pictures, a page has at most."""
_SIDE, _QUALITY = 112, 40  # pixels; of WebP


class Listed(NamedTuple):
    """The samples of a comparison that a page shows.

    Attributes:
        data: For the page's script.
        images: Names of their images.
        left_out: Samples about which all methods say the same and for which there was no room.
    """

    data: dict[str, Any]
    images: list[str]
    left_out: int


class ObjectCount(NamedTuple):
    """How often an object was hallucinated.

    Attributes:
        name: Of the object.
        counts: How often, for each method.
    """

    name: str
    counts: list[int]


def list_samples(comparison: Comparison, shown: int = SHOWN) -> Listed:
    """Return the samples that all runs answered: every one that a method changes, and others while there is room.

    ``data`` holds the methods with their marks, the prompt where it is the same for all, and for each sample its id,
    image, prompt, truth, and the different answers: text, worth (None where it is not judged), whether it is right,
    places of hallucinated words, how it was read, and the numbers of the methods that gave it. The baseline's is the
    first.
    """
    base = comparison.baseline
    rows: list[list[Any]] = []
    same: list[list[Any]] = []
    for key, fields in base.records.items():
        row = [key, fields.get("image", ""), _prompt(fields), _truth(comparison, key), _answers(comparison, key)]
        (same if len(row[-1]) == 1 else rows).append(row)
    room = max(0, shown - len(rows))
    order = {key: place for place, key in enumerate(base.records)}
    rows = sorted([*rows, *same[:room]], key=lambda row: order[row[0]])
    prompts = {row[2] for row in rows}
    methods = [{"name": entry.name, **mark_of(entry.name)._asdict()} for entry in comparison.entries]
    data = {
        "title": f"{comparison.benchmark.upper()}, {comparison.model}",
        "methods": methods,
        "prompt": prompts.pop() if len(prompts) == 1 else None,
        "samples": rows,
    }
    return Listed(data, list(dict.fromkeys(row[1] for row in rows if row[1])), max(0, len(same) - room))


def _prompt(fields: Any) -> str:
    return str(fields.get("question") or fields.get("prompt") or "")


def _truth(comparison: Comparison, key: str) -> str:
    judged = comparison.baseline.judged.get(key)
    return "" if judged is None else judged.truth


def _answers(comparison: Comparison, key: str) -> list[list[Any]]:
    found: dict[tuple[str, Judged | None], list[int]] = {}
    for number, entry in enumerate(comparison.entries):
        said = str(entry.records[key].get("answer", ""))
        found.setdefault((said, entry.judged.get(key)), []).append(number)
    return [[said, *_told(judged), numbers] for (said, judged), numbers in found.items()]


def _told(judged: Judged | None) -> list[Any]:
    """Worth, whether it is right, places of hallucinated words, and how the answer was read."""
    if judged is None:
        return [None, None, [], ""]
    right = judged.worth > 0 if judged.read else judged.worth >= 0
    return [judged.worth, right, [list(span) for span in judged.spans], judged.read]


def count_objects(comparison: Comparison) -> list[ObjectCount]:
    """Return how often each object was hallucinated, by which method; the most frequent first."""
    counts = [Counter(name for one in entry.judged.values() for name in one.objects) for entry in comparison.entries]
    names = sorted(set().union(*counts), key=lambda name: (-sum(of[name] for of in counts), name))
    return [ObjectCount(name, [of[name] for of in counts]) for name in names]


def make_thumbnails(names: Iterable[str], open_image: OpenImage | None) -> dict[str, str]:
    """Return small pictures as ``data:`` addresses, by the images' names; those that do not open are left out."""
    if open_image is None:
        return {}
    found: dict[str, str] = {}
    for name in names:
        if len(found) == SHOWN:
            break
        try:
            found[name] = to_thumbnail(open_image(name))
        except (ValueError, OSError, ImageError):  # the run that failed over it tells why
            continue
    return found


def to_thumbnail(image: Image.Image) -> str:
    """Return a small picture as a ``data:`` address."""
    from PIL.Image import Resampling

    small = to_rgb(image)
    small.thumbnail((_SIDE, _SIDE), resample=Resampling.BILINEAR)
    content = io.BytesIO()
    small.save(content, format="webp", quality=_QUALITY, method=1)  # the quick ones: there may be thousands
    return "data:image/webp;base64," + base64.b64encode(content.getvalue()).decode("ascii")
