"""JSON Lines in and out: records with their line numbers, and a file that survives being cut off.

`read_json` and `read_records` take ``.json``, ``.jsonl`` and ``.gz`` of them. `RecordWriter` appends a record a line
and flushes each, so that a killed run loses at most the line it was writing.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

from damro.eval.errors import DataFormatError, EvalError

_SPACE = re.compile(r"\s*")
_UNPACKED = 64 << 20
_RATIO = 200
_CHUNK = 1 << 20


class Record(NamedTuple):
    """One JSON object of a file, and where it stands.

    Attributes:
        where: ``"answers.jsonl, line 7"``, for error messages.
        fields: The object.
    """

    where: str
    fields: dict[str, Any]


def read_text(path: Path | str) -> str:
    """Return the text of a UTF-8 file, unpacked if its name ends in ``.gz``.

    A packed file of some KB may hold any amount of zeros. What is unpacked may have 64 MiB, or 200 times as many bytes
    as the file; records have 5 to 20 times as many.

    Raises:
        DataFormatError: The file cannot be read, is not a whole gzip file, holds too much, or is not UTF-8.
    """
    path = Path(path)
    try:
        content = _unpacked(path) if path.suffix.lower() == ".gz" else path.read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataFormatError(f"{path}: cannot be read ({reason}): give a readable file") from error
    except (EOFError, zlib.error) as error:
        raise DataFormatError(f"{path}: not a whole gzip file ({error}): copy it again or unpack it") from error
    except UnicodeDecodeError as error:
        raise DataFormatError(f"{path}: not UTF-8 text (byte {error.start}): save it as UTF-8") from error


def _unpacked(path: Path) -> bytearray:
    """What a gzip file holds, read piece by piece until it is too much."""
    limit = max(_UNPACKED, _RATIO * path.stat().st_size)
    content = bytearray()
    with gzip.open(path) as file:
        while piece := file.read(_CHUNK):
            content += piece
            if len(content) > limit:
                raise DataFormatError(
                    f"{path}: must unpack to at most {limit} bytes ({_UNPACKED >> 20} MiB or {_RATIO} times the file), "
                    "holds more: unpack it yourself if it is right"
                )
    return content


def read_json(path: Path | str) -> Any:
    """Return the one JSON value that a file holds.

    Raises:
        DataFormatError: The file cannot be read or is not JSON; names the line.
    """
    return _parse(read_text(path), f"{path}", whole_file=True)


def read_records(path: Path | str) -> list[Record]:
    """Return the records of a file: one JSON object a line, objects over several lines each, or one list of objects.

    The content decides, not the name: POPE's own ``.json`` files hold one object a line. Blank lines are skipped.

    Raises:
        DataFormatError: The file cannot be read, a line is not JSON or not an object, or there is no record at all;
            names the file, the line and what was wrong.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        values = _parse(text, f"{path}", whole_file=True)
        located = [(f"{path}, record {number}", value) for number, value in enumerate(values, start=1)]
    elif _is_indented(text):
        located = list(_objects_in_a_row(text, path))
    else:
        # Not splitlines(): U+2028 and its kin may stand inside a JSON string and end no line.
        lines = [(f"{path}, line {number}", line) for number, line in enumerate(text.split("\n"), start=1)]
        located = [(where, _parse(line, where)) for where, line in lines if line.strip()]
    for where, value in located:
        if not isinstance(value, dict):
            raise DataFormatError(f"{where}: must be a JSON object, got {type(value).__name__} {_short(value)}")
    if not located:
        raise DataFormatError(f"{path}: must hold at least one record, is empty")
    return [Record(where, value) for where, value in located]


class RecordWriter:
    """Appends records to a JSON Lines file, one flushed line each; opening an existing file repairs its end.

    What a killed process left unfinished on the last line is dropped: its sample has to be done again. A last line
    that is whole and lacks only its newline is kept.

    Args:
        path: The file, created if missing. Plain text: a gzip file cannot be appended to safely.

    Raises:
        EvalError: ``path`` ends in ``.gz``.
        OSError: The file cannot be opened for writing.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "answers.jsonl"
        >>> with RecordWriter(path) as writer:
        ...     writer.write({"question_id": 1, "answer": "Yes"})
        >>> _ = path.write_text(path.read_text() + '{"question_id": 2, "ans')
        >>> with RecordWriter(path) as writer:
        ...     writer.write({"question_id": 2, "answer": "No"})
        >>> [record.fields["answer"] for record in read_records(path)]
        ['Yes', 'No']
    """

    def __init__(self, path: Path | str) -> None:
        """Repair the end of the file and open it for appending."""
        self.path = Path(path)
        if self.path.suffix.lower() == ".gz":
            raise EvalError(f"path must be a plain .jsonl file, got {self.path}: compress it when it is finished")
        if self.path.exists():
            _repair_end(self.path)
        self._file: BinaryIO = self.path.open("ab")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record and flush it.

        Raises:
            DataFormatError: The record holds something that JSON cannot; nothing is written.
        """
        try:
            line = json.dumps(dict(record), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise DataFormatError(f"record must be plain finite JSON, got {_short(record)} ({error})") from error
        # ASCII on purpose: a lone surrogate in a model's answer has no UTF-8 form, its \u escape is exact.
        self._file.write(line.encode("ascii") + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file. Closing twice does nothing."""
        self._file.close()

    def __enter__(self) -> RecordWriter:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file, also after an error."""
        self.close()


def _repair_end(path: Path) -> None:
    content = path.read_bytes()
    kept = content.rfind(b"\n") + 1
    tail = content[kept:]
    if not tail:
        return
    try:
        whole = isinstance(json.loads(tail), dict)
    except ValueError:
        whole = False
    with path.open("r+b") as file:
        if whole:
            file.seek(0, 2)
            file.write(b"\n")
        else:
            file.truncate(kept)


def _parse(text: str, where: str, *, whole_file: bool = False) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        place = f"{where}, line {error.lineno}" if whole_file else where
        raise _no_json(place, error) from error
    except (ValueError, RecursionError) as error:
        raise DataFormatError(f"{where}: not JSON ({error}): {_short(text)}") from error


def _is_indented(text: str) -> bool:
    """Whether a file's first object goes on over several lines, as programs that indent JSON write it."""
    first, _, rest = text.lstrip().partition("\n")
    if not first.startswith("{") or not rest.strip():
        return False
    try:
        json.loads(first)
    except ValueError:
        return True
    return False


def _objects_in_a_row(text: str, path: Path | str) -> Iterator[tuple[str, Any]]:
    """The values of a file that holds one behind the other, whatever their lines, and where each begins."""
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    place = _after_space(text, 0)
    line = 1 + text.count("\n", 0, place)
    while place < len(text):
        where = f"{path}, line {line}"
        try:
            value, end = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            raise _no_json(f"{path}, line {error.lineno}", error, "; write one object a line, or one list") from error
        except (ValueError, RecursionError) as error:
            raise DataFormatError(f"{where}: not JSON ({error}): {_short(text[place : place + 200])}") from error
        yield where, value
        end = _after_space(text, end)
        line += text.count("\n", place, end)
        place = end


def _after_space(text: str, place: int) -> int:
    """Where the next thing begins that is no space."""
    found = _SPACE.match(text, place)
    return place if found is None else found.end()


def _no_json(place: str, error: json.JSONDecodeError, remedy: str = "") -> DataFormatError:
    line = error.doc.split("\n")[error.lineno - 1]
    return DataFormatError(f"{place}: not JSON ({error.msg} at column {error.colno}): {_short(line)}{remedy}")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _short(value: object) -> str:
    shown = ascii(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def write_whole(path: Path, text: str) -> None:
    """Write a file so that whoever looks sees the old one or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except BaseException:  # a disk that is full shall not hold half a file, too
        part.unlink(missing_ok=True)
        raise


def digest_of_file(path: Path | str) -> str:
    """Return the SHA-256 of a file's bytes.

    Raises:
        DataFormatError: The file cannot be read.
    """
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise DataFormatError(f"{path}: cannot be read ({error.strerror}): give a readable file") from error
