"""Which of the 80 COCO objects an image shows: the ground truth of CHAIR.

As in Rohrbach et al. 2018, an object is in an image when it is among the instance annotations, or when one of the
reference captions names it. That table is shipped for COCO 2014; `build_objects` makes it from the annotation
files, and `read_objects` takes any other one.
"""

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from damro.eval.chair.matchers import Matcher, load_matcher
from damro.eval.chair.vocabulary import Vocabulary, load_vocabulary
from damro.eval.errors import AlignmentError, DataFormatError
from damro.eval.records import read_json, read_records, write_whole
from damro.eval.resources import coco_objects_path, data_path

ImageId = str | int
Progress = Callable[[str, int, int], None]
"""Called with (what is being read, done, of how many)."""

# "COCO_val2014_000000000042.jpg" as in 2014, "000000000042.jpg" as in 2017, with or without folders before them.
_COCO_FILE = re.compile(r"(?:.*[/\\])?(?:COCO_(?:train|val|test)20\d\d_(\d{12})(?:\.\w+)?|(\d{12})\.\w+)", re.ASCII)
_PROGRESS_STEP = 1000
_NAMED = 5  # how many offenders an error names


def image_key(image: ImageId) -> str:
    """The key under which captions and ground truth of one image meet.

    Numbers, numbers in text and COCO's file names of one image give one key; any other name is its own.

    Raises:
        DataFormatError: When the id is neither a whole number nor a text that is not blank.

    >>> [image_key(image) for image in (42, "0042", "COCO_val2014_000000000042.jpg", "000000000042.jpg", "scene-12")]
    ['42', '42', '42', '42', 'scene-12']
    """
    if isinstance(image, int) and not isinstance(image, bool):
        return str(image)
    if isinstance(image, str) and image.strip():
        name = image.strip()
        coco = _COCO_FILE.fullmatch(name)
        digits = coco[1] or coco[2] if coco else name
        return digits.lstrip("0") or "0" if digits.isascii() and digits.isdigit() else name
    raise DataFormatError(f"image_id: must be a whole number or a name, got {image!r}")


def name_few(items: Collection[object]) -> str:
    """The first few of the items and how many there are, for error messages.

    >>> name_few(range(7))
    '0, 1, 2, 3, 4, ... (7 in all)'
    """
    named = ", ".join(str(item) for item, _ in zip(items, range(_NAMED), strict=False))
    return f"{named}{', ...' if len(items) > _NAMED else ''} ({len(items)} in all)"


def normalize_objects(
    objects_by_image: Mapping[ImageId, Collection[str]],
    wanted: Collection[str] | None = None,
    vocabulary: Vocabulary | None = None,
) -> dict[str, frozenset[str]]:
    """Ground truth by `image_key`, with every object under its name in the vocabulary.

    Args:
        objects_by_image: Objects of each image, by name or by a synonym of the vocabulary.
        wanted: Keys of the images to keep; None keeps all.
        vocabulary: None takes the shipped one, of COCO's names.

    Raises:
        DataFormatError: When the objects are not a list of names, or names are outside the vocabulary.
        AlignmentError: When two ids are of one image.

    >>> normalize_objects({"000042": ["bike", "person"]}) == {"42": {"bicycle", "person"}}
    True
    """
    words = vocabulary or load_vocabulary()
    name_of = words.name_of
    normalized: dict[str, frozenset[str]] = {}
    unknown: dict[str, None] = {}
    for image, names in objects_by_image.items():
        key = image_key(image)
        if wanted is not None and key not in wanted:
            continue
        if isinstance(names, str | Mapping) or not all(isinstance(name, str) for name in names):
            raise DataFormatError(f"objects of image {image}: must be a list of names, got {names!r:.80}")
        if key in normalized:
            raise AlignmentError(f"objects: one list per image, got two for image {key}; merge them")
        unknown.update((repr(name), None) for name in names if name not in name_of)
        normalized[key] = frozenset(name_of[name] for name in names if name in name_of)
    if unknown:
        raise DataFormatError(
            f"objects: must be {'names' if words.source else 'COCO names'} or their synonyms "
            f"({words.source or 'eval/data/chair_synonyms.json'}), got {name_few(unknown)}; rename or remove them, "
            "since no caption could be found to name them"
        )
    return normalized


def read_objects(path: Path | str | None = None) -> dict[ImageId, list[str]]:
    """Ground truth from a file, or the shipped one of COCO 2014 train and val.

    Args:
        path: ``.json`` with ``{image_id: [object, ...]}``, or ``.jsonl`` with a line ``{"image_id": ...,
            "objects": [...]}`` per image; ``.gz`` of them. None takes the shipped file.

    Raises:
        DataFormatError: When the file cannot be read or is not of that form.

    >>> read_objects()["42"]
    ['dog']
    """
    path = Path(path) if path is not None else coco_objects_path()
    if Path(path.name.lower().removesuffix(".gz")).suffix == ".jsonl":
        return dict(_read_object_lines(path))
    objects = read_json(path)
    if not isinstance(objects, dict):
        raise DataFormatError(f"{path}: must hold {{image_id: [object, ...]}}, got a {type(objects).__name__}")
    for image, names in objects.items():
        _require_names(f"{path}, image {image}", names)
    return objects


def _read_object_lines(path: Path) -> Iterator[tuple[ImageId, list[str]]]:
    seen: set[str] = set()
    for where, fields in read_records(path):
        image = fields.get("image_id", fields.get("image"))
        if image is None or "objects" not in fields:
            raise DataFormatError(f"{where}: must have image_id and objects, has {', '.join(map(repr, fields))}")
        _require_names(where, fields["objects"])
        key = image_key(image)
        if key in seen:
            raise AlignmentError(f"{where}: one line per image, got a further one for image {key}; merge them")
        seen.add(key)
        yield image, fields["objects"]


def _require_names(where: str, names: object) -> None:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataFormatError(f"{where}: must have a list of object names, got {names!r:.80}")


def build_objects(
    annotations: Path | str,
    matcher: str | Matcher = "auto",
    *,
    vocabulary: Vocabulary | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> dict[ImageId, list[str]]:
    """Ground truth from COCO's annotation files, through pycocotools.

    Args:
        annotations: Folder with ``instances_<split>.json`` and ``captions_<split>.json`` for one or more splits,
            e.g. ``val2014``.
        matcher: What reads the reference captions; best the matcher that reads the captions to be scored.
        vocabulary: What the annotated categories and the captions are read by; categories that are no word of it are
            left out. None takes the shipped one.
        cache: JSON file to keep the result in. It is used again while annotation files, matcher and vocabulary
            stay as they were, and written anew otherwise.
        progress: Called now and then while annotations are read.

    Raises:
        DataFormatError: When the folder has no such files, one of a pair is missing, or one cannot be read.
    """
    folder = Path(annotations)
    files = _annotation_files(folder)
    if isinstance(matcher, str):
        matcher = load_matcher(matcher, vocabulary)
    words = vocabulary or load_vocabulary()
    stamp = _stamp(files, matcher.name, words)
    if cache is not None and cache.is_file():
        kept = _read_cache(cache, stamp)
        if kept is not None:
            return kept
    objects: dict[str, set[str]] = {}
    for path in files:
        for image, names in _annotated_objects(path, matcher, words, progress):
            objects.setdefault(image, set()).update(names)
    built: dict[ImageId, list[str]] = {image: sorted(names) for image, names in objects.items()}
    if cache is not None:
        _write_cache(cache, stamp, built)
    return built


def _annotation_files(folder: Path) -> list[Path]:
    splits = sorted(
        {path.stem.split("_", 1)[1] for kind in ("instances", "captions") for path in folder.glob(f"{kind}_*.json")}
    )
    if not splits:
        raise DataFormatError(
            f"annotations: must be a folder with instances_val2014.json and captions_val2014.json (or other splits), "
            f"found neither in {folder}; they are in COCO's annotations_trainval2014.zip"
        )
    files = [folder / f"{kind}_{split}.json" for split in splits for kind in ("instances", "captions")]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise DataFormatError(
            f"annotations: every split needs its instances and its captions, {folder} lacks {', '.join(missing)}; "
            "add them, or move the other file of the split away"
        )
    return files


def _annotated_objects(
    path: Path, matcher: Matcher, words: Vocabulary, progress: Progress | None
) -> Iterator[tuple[str, set[str]]]:
    """Image and object names of every image and every annotation of one file."""
    from pycocotools.coco import COCO

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its steps on stdout
            coco = COCO(str(path))
        names = {category: entry["name"] for category, entry in coco.cats.items()}
        for image in coco.imgs:
            yield str(image), set()
        for done, annotation in enumerate(coco.anns.values()):
            if progress is not None and done % _PROGRESS_STEP == 0:
                progress(path.name, done, len(coco.anns))
            if "caption" in annotation:
                found = {mention.name for mention in matcher.find(annotation["caption"])}
            else:
                category = names[annotation["category_id"]]
                # The shipped vocabulary has every category; one of a file need not.
                found = {words.name_of[category]} if category in words.name_of or words.source is None else set()
            yield str(annotation["image_id"]), found
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError, RecursionError) as error:
        raise DataFormatError(
            f"{path}: must be a COCO annotation file, reading it gave {type(error).__name__}: {error}; get it again"
        ) from error
    if progress is not None:
        progress(path.name, len(coco.anns), len(coco.anns))


def _stamp(files: list[Path], matcher: str, words: Vocabulary) -> dict[str, Any]:
    """What the result depends on, as JSON values."""
    digest = hashlib.sha256()
    if words.source is None:
        for name in ("chair_synonyms.json", "chair_inflections.json"):
            digest.update(data_path(name).read_bytes())
    else:
        digest.update(json.dumps(sorted(words.name_of.items())).encode())
    return {
        "matcher": matcher,
        "vocabulary": digest.hexdigest(),
        "files": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files],
    }


def _read_cache(cache: Path, stamp: Mapping[str, Any]) -> dict[ImageId, list[str]] | None:
    """The kept ground truth; None when it is of something else or cannot be read, and has to be made anew."""
    try:
        kept = read_json(cache)
    except DataFormatError:
        return None
    if not isinstance(kept, dict) or kept.get("made_from") != stamp or not isinstance(kept.get("objects"), dict):
        return None
    return dict(kept["objects"])


def _write_cache(cache: Path, stamp: Mapping[str, Any], objects: Mapping[ImageId, list[str]]) -> None:
    write_whole(cache, json.dumps({"made_from": stamp, "objects": objects}))
