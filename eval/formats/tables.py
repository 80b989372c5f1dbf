"""The rows of a table, whatever file it is in: JSON, CSV, TSV, Excel or Parquet."""

from __future__ import annotations

import csv
import importlib
import io
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from damro.eval.errors import DataFormatError, EvalError
from damro.eval.records import Record, each_record, read_text

_ZIP, _PARQUET, _PICKLE, _OLD_EXCEL = b"PK\x03\x04", b"PAR1", b"\x80", b"\xd0\xcf\x11\xe0"
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_UNPACKED = 256 << 20
"""Bytes that an Excel file may unpack to."""
_LONGEST_FIELD = 1 << 28


def read_table(path: Path | str) -> list[Record]:
    r"""Return the rows of a table as records, with where each stands.

    Excel and Parquet are recognised by their first bytes, CSV and TSV by the file's name (also packed, ``.csv.gz``);
    anything else is JSON as `damro.eval.records.read_records` takes it. What CSV and TSV hold is text, empty cells
    in them and in Excel are empty texts. What is null in Parquet is left out, and so are columns of bytes.

    Raises:
        DataFormatError: The file cannot be read, holds no row, or is a pickle or an old Excel file.
        EvalError: The package that reads such files is not installed.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "answers.csv"
        >>> _ = file.write_text("question_id,answer\n1,Yes\n")
        >>> [record.fields for record in read_table(file)]
        [{'question_id': '1', 'answer': 'Yes'}]
    """
    return list(each_row(path))


def each_row(path: Path | str) -> Iterator[Record]:
    """Yield what `read_table` returns, one after the other: for tables with images in them."""
    path = Path(path)
    rows = iter(_rows(path))
    first = next(rows, None)
    if first is None:
        raise DataFormatError(f"{path}: must hold at least one row below its header, holds none")
    yield first
    yield from rows


def _rows(path: Path) -> Iterable[Record]:
    first = _first_bytes(path)
    if first.startswith(_ZIP):
        return _excel_rows(path)
    if first.startswith(_PARQUET):
        return _parquet_rows(path)
    if first.startswith(_OLD_EXCEL):
        raise DataFormatError(f"{path}: must be .xlsx to be read, is Excel's older form: save it as .xlsx or .csv")
    if first.startswith(_PICKLE):
        raise DataFormatError(
            f"{path}: must be data and no program, is a pickle, which can run code when it is read: convert it where "
            "it was written, pandas.read_pickle(FILE).to_json('answers.jsonl', orient='records', lines=True)"
        )
    return _delimited_rows(path) if is_delimited(path) else each_record(path)


def is_delimited(path: Path) -> bool:
    """Whether the name of a file says that it is CSV or TSV, packed or not."""
    return _suffix(path) in _DELIMITERS


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def is_text_file(path: Path) -> bool:
    """Whether `read_table` reads a file as text.

    Raises:
        DataFormatError: It cannot be read.
    """
    return not _first_bytes(path).startswith((_ZIP, _PARQUET, _OLD_EXCEL, _PICKLE))


def load_reader(module: str, purpose: str) -> Any:
    """Import a package that reads files.

    Args:
        module: Its name.
        purpose: What it reads, for the message.

    Raises:
        EvalError: It is not installed; names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise EvalError(
            f"{purpose} need the package {package}, which is not installed: pip install 'damro[data]'"
        ) from error


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4)
    except OSError as error:
        raise DataFormatError(f"{path}: cannot be read ({error.strerror or error}): give a readable file") from error


def _delimited_rows(path: Path) -> Iterator[Record]:
    limit = csv.field_size_limit(_LONGEST_FIELD)  # columns of base64 images are longer than the module's own limit
    packed = path.suffix.lower() == ".gz"
    file = io.StringIO(read_text(path), newline="") if packed else path.open(encoding="utf-8-sig", newline="")
    reader = csv.reader(file, delimiter=_DELIMITERS[_suffix(path)], strict=True)
    try:
        header: list[str] | None = None
        for cells in reader:
            if not cells:
                continue
            where = f"{path}, line {reader.line_num}"
            if header is None:
                header = _checked_header(path, cells)
            elif len(cells) != len(header):
                raise DataFormatError(f"{where}: must have {len(header)} cells as the header, has {len(cells)}")
            else:
                yield Record(where, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise DataFormatError(f"{path}, line {reader.line_num}: not {path.suffix[1:].upper()} ({error})") from error
    except UnicodeDecodeError as error:
        raise DataFormatError(f"{path}, line {reader.line_num + 1}: not UTF-8 text: save it as UTF-8") from error
    finally:
        file.close()
        csv.field_size_limit(limit)


def _checked_header(path: Path, cells: list[Any]) -> list[str]:
    """The names of the columns, each once; cells of trailing empty columns have none."""
    names = ["" if cell is None else str(cell).strip() for cell in cells]
    while names and not names[-1]:
        names.pop()
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        raise DataFormatError(f"{path}: must begin with the names of its columns, got {', '.join(twice) or 'none'}")
    return names


def _excel_rows(path: Path) -> Iterator[Record]:
    excel = load_reader("openpyxl", "Excel files")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > _UNPACKED:
            raise DataFormatError(
                f"{path}: must unpack to at most {_UNPACKED} bytes, holds {size}: save it as .csv if it is right"
            )
        with path.open("rb") as file:  # of a path, openpyxl would look at the ending
            book = excel.load_workbook(file, read_only=True, data_only=True)
            lines = list(book.worksheets[0].iter_rows(values_only=True))
            book.close()
    except DataFormatError:
        raise
    except Exception as error:  # openpyxl raises what its parsers do: KeyError, ParseError, BadZipFile, ...
        raise DataFormatError(
            f"{path}: must be an Excel file (.xlsx), reading it gave {type(error).__name__}: {error}"
        ) from error
    header = _checked_header(path, list(lines[0])) if lines else []
    for number, cells in enumerate(lines[1:], start=2):
        cells = (*cells, *[None] * (len(header) - len(cells)))  # of a row only the cells up to the last one are stored
        if any(cell is not None for cell in cells):
            fields = {name: "" if cell is None else cell for name, cell in zip(header, cells, strict=False)}
            yield Record(f"{path}, row {number}", fields)


def _parquet_rows(path: Path) -> Iterator[Record]:
    from damro.eval.formats.parquet import ParquetTable

    table = ParquetTable([path])
    for number, fields in enumerate(table.rows(table.plain_columns), start=1):
        yield Record(f"{path}, row {number}", {name: value for name, value in fields.items() if value is not None})
