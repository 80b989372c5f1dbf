"""JSON Lines in and out: records with their line numbers, and a file that survives being cut off.

`read_json` and `read_records` take ``.json``, ``.jsonl`` and ``.gz`` of them. `RecordWriter` appends a record a line
and flushes each, so that a killed run loses at most the line it was writing; `iterate_records` reads what it wrote, one
record at a time.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

from damro.eval.errors import DataFormatError, EvalError
from damro.eval.json_text import (
    after_space,
    is_indented,
    objects_in_a_row,
    parse,
    share_texts,
    short,
    split_lines,
    to_object,
)

_BLOCK = 1 << 16
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
    return parse(read_text(path), f"{path}", whole_file=True)


def read_records(path: Path | str) -> list[Record]:
    """Return the records of a file: one JSON object a line, objects over several lines each, or one list of objects.

    The content decides, not the name: POPE's own ``.json`` files hold one object a line. Blank lines are skipped.

    Raises:
        DataFormatError: The file cannot be read, a line is not JSON or not an object, or there is no record at all;
            names the file, the line and what was wrong.
    """
    return list(each_record(path))


def each_record(path: Path | str) -> Iterator[Record]:
    """Yield what `read_records` returns, one after the other: for large files of which something small is made."""
    text = read_text(path)
    located: Iterable[tuple[str, Any]]
    if text.startswith("[", after_space(text, 0)):
        values = parse(text, f"{path}", whole_file=True)
        located = ((f"{path}, record {number}", value) for number, value in enumerate(values, start=1))
    elif is_indented(text):
        located = objects_in_a_row(text, path)
    else:
        located = ((where, parse(line, where)) for where, line in split_lines(text, path) if line.strip())
    empty = True
    for where, value in located:
        empty = False
        yield Record(where, share_texts(to_object(value, where)))
    if empty:
        raise DataFormatError(f"{path}: must hold at least one record, is empty")


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
            raise DataFormatError(f"record must be plain finite JSON, got {short(record)} ({error})") from error
        # ASCII on purpose: a lone surrogate in a model's answer has no UTF-8 form, its \u escape is exact.
        self._file.write(line.encode("ascii") + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """Have the system put what was written on the disk, where a power cut leaves it."""
        os.fsync(self._file.fileno())

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


def iterate_records(path: Path) -> Iterator[Record]:
    """Yield the records of a file that `RecordWriter` wrote, one after the other, in little memory; changes nothing.

    Left out is what no writer has finished: an end that is torn, and lines with NUL bytes, which some file systems
    leave behind after a power cut.

    Raises:
        DataFormatError: The file cannot be read, or another line is not a JSON object; names the line.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if is_torn(line) or not line.strip():
                    continue
                where = f"{path}, line {number}"
                try:
                    value = parse(line.decode("utf-8"), where)
                except UnicodeDecodeError as error:
                    raise DataFormatError(f"{where}: not UTF-8 text (byte {error.start})") from error
                yield Record(where, share_texts(to_object(value, where)))
    except OSError as error:
        raise DataFormatError(f"{path}: cannot be read ({error.strerror or error}): give a readable file") from error


def is_torn(line: bytes) -> bool:
    r"""Whether a line of a file was never finished: it holds NUL bytes, or ends the file without being whole.

    Example:
        >>> [is_torn(line) for line in (b'{"n": 1}\n', b'{"n": 1}', b'{"n": 1', b'\0\0\0', b'{"n\0\0"}\n')]
        [False, False, True, True, True]
    """
    if b"\0" in line:
        return True
    if line.endswith(b"\n"):
        return False
    try:
        return not isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return True


def _repair_end(path: Path) -> None:
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        kept, tail = _last_line(file, end)
        if is_torn(tail) and tail:
            file.truncate(kept)
        elif tail:
            file.seek(end)
            file.write(b"\n")


def _last_line(file: BinaryIO, end: int) -> tuple[int, bytes]:
    """Where what follows the last newline begins, and what it is; reads no more of the file than that."""
    parts: list[bytes] = []
    while end:
        start = max(0, end - _BLOCK)
        file.seek(start)
        block = file.read(end - start)
        place = block.rfind(b"\n") + 1
        parts.append(block[place:])
        if place:
            return start + place, b"".join(reversed(parts))
        end = start
    return 0, b"".join(reversed(parts))


def write_whole(path: Path, text: str | Iterable[str]) -> None:
    """Write a file so that whoever looks sees the old one or the whole new one, also after a power cut.

    Args:
        path: The file; its folder is made if missing.
        text: What it shall hold, as one text or piece by piece.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.writelines([text] if isinstance(text, str) else text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        if os.name == "posix":  # elsewhere a folder cannot be opened
            _sync_folder(path.parent)
    except BaseException:  # a disk that is full shall not hold half a file, too
        part.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Have the system put the names of a folder's files on the disk: a file that is new is else not found again."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest_of_file(path: Path | str) -> str:
    """Return the SHA-256 of a file's bytes.

    Raises:
        DataFormatError: The file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataFormatError(f"{path}: cannot be read ({error.strerror}): give a readable file") from error
