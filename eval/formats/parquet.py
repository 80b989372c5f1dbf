"""Parquet files as one table: the cells that are text or numbers row by row, and images one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from damro.eval.errors import DataFormatError
from damro.eval.formats.tables import load_reader

_ROWS_AT_ONCE = 64


class ImageCell(NamedTuple):
    """What a cell of an image column holds.

    Attributes:
        content: The bytes of an image file; None where the cell only names one.
        path: The name that the cell gives the image, or None.
    """

    content: bytes | None
    path: str | None


class ParquetTable:
    """The rows of one or several Parquet files with the same columns.

    Args:
        paths: The files, in the order of their rows.

    Raises:
        DataFormatError: One cannot be read, or their columns differ.
        EvalError: pyarrow is not installed.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """Open the files and read what their columns are."""
        self.paths = tuple(paths)
        self._arrow = load_reader("pyarrow.parquet", "Parquet files")
        self._files = [self._open(path) for path in self.paths]
        self.columns: tuple[str, ...] = tuple(self._files[0].schema_arrow.names)
        for path, file in zip(self.paths, self._files, strict=True):
            if tuple(file.schema_arrow.names) != self.columns:
                raise DataFormatError(
                    f"{path}: must have the columns of {self.paths[0].name} ({', '.join(self.columns)}), has "
                    f"{', '.join(file.schema_arrow.names)}: give files of one table"
                )
        self._group: tuple[int, int, str, Any] | None = None
        self._reading = Lock()

    def __len__(self) -> int:
        """Return the number of rows."""
        return sum(int(file.metadata.num_rows) for file in self._files)

    @property
    def plain_columns(self) -> tuple[str, ...]:
        """The columns of text, numbers and truth values."""
        types = load_reader("pyarrow.types", "Parquet files")
        kinds = (types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_boolean)
        schema = self._files[0].schema_arrow
        return tuple(name for name in self.columns if any(kind(schema.field(name).type) for kind in kinds))

    def rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield each row with some of its columns.

        Raises:
            DataFormatError: A file cannot be read on.
        """
        for path, file in zip(self.paths, self._files, strict=True):
            batches = file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=list(columns))
            while True:
                with _told(path):  # not around the yield, where an error would be the caller's
                    batch = next(batches, None)
                    rows = [] if batch is None else batch.to_pylist()
                if batch is None:
                    break
                yield from rows

    def image(self, row: int, column: str) -> ImageCell:
        """Return the image of a row. The group of rows that it stands in is kept for the next call.

        Raises:
            DataFormatError: The file cannot be read, or the cell is neither bytes, nor text, nor both.
        """
        number, group, place = self._place(row)
        with self._reading:  # images are looked through by several threads
            if self._group is None or self._group[:3] != (number, group, column):
                with _told(self.paths[number]):
                    table = self._files[number].read_row_group(group, columns=[column])
                self._group = number, group, column, table.column(0)
            value = self._group[3][place].as_py()
        return to_image_cell(value, f"{self.paths[number]}, row {row + 1}")

    def _place(self, row: int) -> tuple[int, int, int]:
        """The file, group and place in the group of a row of the table."""
        for number, file in enumerate(self._files):
            for group in range(file.metadata.num_row_groups):
                size = int(file.metadata.row_group(group).num_rows)
                if row < size:
                    return number, group, row
                row -= size
        raise IndexError(row)

    def _open(self, path: Path) -> Any:
        with _told(path):
            return self._arrow.ParquetFile(path)


def to_image_cell(value: Any, where: str) -> ImageCell:
    """Read the value of an image column: bytes, a file's name, or the hub's ``{bytes, path}``.

    Raises:
        DataFormatError: It is none of these, or empty.

    Example:
        >>> to_image_cell({"bytes": None, "path": "a.jpg"}, "row 1")
        ImageCell(content=None, path='a.jpg')
    """
    content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if isinstance(content, str):
        content, path = None, content
    good = isinstance(content, bytes | None) and isinstance(path, str | None) and (content or path)
    if not good:
        raise DataFormatError(
            f"{where}: an image must be bytes, a file's name, or both under 'bytes' and 'path', got {value!r:.60}"
        )
    return ImageCell(content, path)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turns what pyarrow raises, of whatever type, into an error that names the file."""
    try:
        yield
    except Exception as error:
        raise DataFormatError(f"{path}: must be a whole Parquet file, reading it gave: {error}") from error
