import gzip
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from damro.eval.errors import DataFormatError, EvalError
from damro.eval.formats import tables
from damro.eval.formats.tables import read_table

ROWS = [{"index": 1, "prediction": "Yes, it is."}, {"index": 2, "prediction": ""}]


def write_excel(path: Path, rows: list[dict[str, Any]]) -> Path:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(list(rows[0]))
    for row in rows:
        book.active.append([None if value == "" else value for value in row.values()])
    book.save(path)
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist(rows), path)
    return path


def fields(path: Path) -> list[dict[str, Any]]:
    return [record.fields for record in read_table(path)]


@pytest.mark.parametrize(("name", "between"), [("a.csv", ","), ("a.tsv", "\t")])
@pytest.mark.parametrize("packed", [False, True])
def test_cells_of_text_files_are_text(tmp_path: Path, name: str, between: str, packed: bool) -> None:
    text = f'index{between}prediction\n1{between}"Yes,\nit is."\n\n2{between}\n'
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode("utf-8-sig"))
    assert fields(path) == [{"index": "1", "prediction": "Yes,\nit is."}, {"index": "2", "prediction": ""}]


def test_excel_keeps_numbers_and_empty_cells_are_empty_texts(tmp_path: Path) -> None:
    path = write_excel(tmp_path / "no-ending-tells-it", ROWS)
    assert fields(path) == ROWS
    assert read_table(path)[1].where.endswith("row 3")


def test_parquet_leaves_out_bytes_and_nulls(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "a.parquet", [{"n": 1, "image": b"x", "text": "a"}, {"n": 2, "image": b"y", "text": None}]
    )
    assert fields(path) == [{"n": 1, "text": "a"}, {"n": 2}]


def test_anything_else_is_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1}]')
    assert fields(path) == [{"a": 1}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"a,b\n1,2\n1\n", r"line 3: must have 2 cells as the header, has 1"),
        ("a.csv", b"a,a\n1,2\n", r"must begin with the names of its columns, got a"),
        ("a.csv", b"a,b\n", r"must hold at least one row"),
        ("a.csv", b"", r"must hold at least one row"),
        ("a.tsv", b'a\tb\n"1\t2\n', r"line 2: not TSV"),
        ("a.pkl", pickle.dumps([1]), r"is a pickle, which can run code.*to_json"),
        ("a.xls", b"\xd0\xcf\x11\xe0rest", r"must be \.xlsx"),
        ("a.xlsx", b"PK\x03\x04rest", r"must be an Excel file"),
        ("a.parquet", b"PAR1rest", r"must be a whole Parquet file"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    for package in ("openpyxl", "pyarrow"):
        pytest.importorskip(package)
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataFormatError, match=message):
        read_table(path)


def test_a_small_excel_file_that_unpacks_to_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_UNPACKED", 1 << 20)
    path = tmp_path / "a.xlsx"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/big.xml", bytes(2 << 20))
    assert path.stat().st_size < 1 << 14
    with pytest.raises(DataFormatError, match="must unpack to at most 1048576 bytes, holds 2097152"):
        read_table(path)


@pytest.mark.parametrize(("content", "package"), [(b"PK\x03\x04", "openpyxl"), (b"PAR1", "pyarrow")])
def test_a_reader_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, package: str
) -> None:
    for name in (package, f"{package}.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    path = tmp_path / "a"
    path.write_bytes(content)
    with pytest.raises(EvalError, match=rf"need the package {package}, .*pip install 'damro\[data\]'"):
        read_table(path)
