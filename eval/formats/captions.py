"""Captions as other tools write them, as records with ``image_id`` and ``caption``.

| file | read as |
|---|---|
| records, one a line or a list, CSV, TSV, Excel, Parquet | a caption each, under the keys below |
| ``{"42": "A dog.", ...}`` | a caption an image |
| ``{"imgToEval": {...}, "overall": {...}}`` | input of the original CHAIR script, with scores and NaN among them |
| ``{"sentences": [...], "overall_metrics": {...}}`` | what CHAIR scripts write: each caption with its objects |
| samples of lmms-eval | a caption each |
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from damro.eval.errors import DataFormatError
from damro.eval.formats.answers import LMMS, from_lmms
from damro.eval.formats.tables import is_text_file, read_table
from damro.eval.json_text import after_space, short
from damro.eval.records import Record, read_text

IMAGE_KEYS: tuple[str, ...] = ("image_id", "image", "img_id", "image_path", "file_name", "id")
"""Keys under which a record may name its image; the first that is there counts."""
CAPTION_KEYS: tuple[str, ...] = ("caption", "answer", "text", "output", "response", "prediction")
"""Keys under which a record may hold its caption; ``text`` beside another of them is the question."""


def read_captions(path: Path | str, more: Sequence[str] = ()) -> list[Record]:
    """Read captions from a file of any form named above.

    Args:
        path: The file.
        more: Keys to keep of what CHAIR scripts write beside a caption.

    Returns:
        Records that name their image under one of `IMAGE_KEYS` and hold their caption under one of `CAPTION_KEYS`, as
        far as the file does; `damro.eval.chair.scoring.parse_captions` says of each what it lacks.

    Raises:
        DataFormatError: The file cannot be read, or is of no such form.
        EvalError: The package that reads such files is not installed.
    """
    whole = _one_object(Path(path))
    if whole is None:
        rows = read_table(path)
        if all(LMMS.fits(row.fields) for row in rows):
            return [Record(row.where, _of_lmms(row)) for row in rows]
        return rows
    for key in ("imgToEval", "sentences"):
        if key in whole:
            return _listed(whole[key], f"{path}, {key}", more)
    if whole and all(isinstance(text, str) for text in whole.values()):
        return [Record(f"{path}, {image!r:.40}", {"image_id": image, "caption": text}) for image, text in whole.items()]
    raise DataFormatError(
        f"{path}: must hold records with a caption each, {{image_id: caption}}, or 'imgToEval', got an object of "
        f'{short(list(whole))}: write a line {{"image_id": ..., "caption": ...}} a caption'
    )


def _one_object(path: Path) -> dict[str, Any] | None:
    """The object that a file holds where that is all it holds and it is no record; NaN in it counts as a number."""
    if not is_text_file(path):
        return None
    text = read_text(path)
    if not text.startswith("{", after_space(text, 0)):
        return None
    try:
        # Unlike this package's own records, with the NaN that Python's json writes.
        value = json.loads(text, object_pairs_hook=_each_once)
    except DataFormatError as error:
        raise DataFormatError(f"{path}: {error}") from error
    except (ValueError, RecursionError):
        return None  # records, or nothing at all: whoever reads them says what is wrong, and where
    return None if any(key in value for key in (*IMAGE_KEYS, *CAPTION_KEYS)) else value


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys differ: of two captions of an image one would be lost."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DataFormatError(f"an object must have each key once, got {twice!r:.80} twice: keep one of them")
    return value


def _listed(values: Any, where: str, more: Sequence[str]) -> list[Record]:
    """The records in a list, or in an object by their ids, without their scores."""
    if not values or not isinstance(values, Mapping | list):
        raise DataFormatError(f"{where}: must hold captions, got {short(values)}")
    items = values.items() if isinstance(values, Mapping) else enumerate(values, start=1)
    records = []
    for key, value in items:
        if not isinstance(value, Mapping):
            raise DataFormatError(f"{where}, {key!r:.40}: must be an object with a caption, got {short(value)}")
        fields = {name: value[name] for name in (*IMAGE_KEYS, *CAPTION_KEYS, *more) if name in value}
        if isinstance(values, Mapping) and not any(name in fields for name in IMAGE_KEYS):
            fields["image_id"] = key
        records.append(Record(f"{where}, {key!r:.40}", fields))
    return records


def _of_lmms(row: Record) -> dict[str, Any]:
    told = from_lmms(row.fields, row.where)
    image = told.get("image_id", told.get("image", told.get("question_id")))
    return {"caption": told["answer"]} if image is None else {"image_id": image, "caption": told["answer"]}
