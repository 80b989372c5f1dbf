"""JSON of a file, in the forms that people write it, with messages that name the line."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from damro.eval.errors import DataFormatError

_SPACE = re.compile(r"\s*")
_SHORT = 64  # characters up to which a text that stands in many records is kept once


def parse(text: str, where: str, *, whole_file: bool = False) -> Any:
    """Return the one value of a text.

    Args:
        text: JSON; NaN and infinity are none.
        where: The file, or file and line.
        whole_file: Whether the text is that of a file, so that the error names a line of it.

    Raises:
        DataFormatError: It is not JSON.
    """
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        place = f"{where}, line {error.lineno}" if whole_file else where
        raise _no_json(place, error) from error
    except (ValueError, RecursionError) as error:
        raise DataFormatError(f"{where}: not JSON ({error}): {short(text)}") from error


def to_object(value: Any, where: str) -> dict[str, Any]:
    """Return a value, which must be an object.

    Raises:
        DataFormatError: It is none.
    """
    if not isinstance(value, dict):
        raise DataFormatError(f"{where}: must be a JSON object, got {type(value).__name__} {short(value)}")
    return value


def split_lines(text: str, path: Path | str) -> Iterator[tuple[str, str]]:
    """Yield the lines of a text and where they stand, one at a time.

    Not splitlines(): U+2028 and its kin may stand inside a JSON string and end no line.
    """
    start, number = 0, 1
    while start <= len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        yield f"{path}, line {number}", text[start:end]
        start, number = end + 1, number + 1


def is_indented(text: str) -> bool:
    """Whether a file's first object goes on over several lines, as programs that indent JSON write it."""
    first, _, rest = text.lstrip().partition("\n")
    if not first.startswith("{") or not rest.strip():
        return False
    try:
        json.loads(first)
    except ValueError:
        return True
    return False


def objects_in_a_row(text: str, path: Path | str) -> Iterator[tuple[str, Any]]:
    """Yield the values of a file that holds one behind the other, whatever their lines, and where each begins."""
    place = after_space(text, 0)
    line = 1 + text.count("\n", 0, place)
    while place < len(text):
        where = f"{path}, line {line}"
        try:
            value, end = _DECODER.raw_decode(text, place)
        except json.JSONDecodeError as error:
            raise _no_json(f"{path}, line {error.lineno}", error, "; write one object a line, or one list") from error
        except (ValueError, RecursionError) as error:
            raise DataFormatError(f"{where}: not JSON ({error}): {short(text[place : place + 200])}") from error
        yield where, value
        end = after_space(text, end)
        line += text.count("\n", place, end)
        place = end


def after_space(text: str, place: int) -> int:
    """Return where the next thing begins that is no space."""
    found = _SPACE.match(text, place)
    return place if found is None else found.end()


def _no_json(place: str, error: json.JSONDecodeError, remedy: str = "") -> DataFormatError:
    line = error.doc.split("\n")[error.lineno - 1]
    return DataFormatError(f"{place}: not JSON ({error.msg} at column {error.colno}): {short(line)}{remedy}")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)  # one, since making it costs more than a line


def short(value: object) -> str:
    """Return how a value is shown in a message."""
    shown = ascii(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def share_texts(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the same fields with names and short texts that other records hold, too, in memory once."""
    return {
        sys.intern(name): sys.intern(value) if type(value) is str and len(value) <= _SHORT else value
        for name, value in fields.items()
    }
