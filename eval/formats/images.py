"""Tables whose rows ask about an image each, which is in the row itself or a file that the row names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from damro.eval.errors import DataFormatError, EvalError
from damro.eval.formats.answers import with_ending
from damro.eval.formats.hub import PREFIX, hub_files
from damro.eval.formats.packed import INDEX, PackedImages
from damro.eval.formats.parquet import ImageCell, ParquetTable
from damro.eval.formats.tables import each_row, is_delimited, read_table
from damro.eval.records import Record, digest_of_file
from damro.eval.samples import ImageSource, check_inside, folder_opener

if TYPE_CHECKING:
    from PIL import Image

_MAGIC = b"PAR1"
_IMAGE = "image"
OpenCell = Callable[[int], ImageCell]
"""From the number of a row to its image."""


class Role(NamedTuple):
    """What a column is for.

    Attributes:
        columns: Names that it may have; the first that is there counts.
        needed: Whether a table must have it.
    """

    columns: tuple[str, ...]
    needed: bool = True


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        where: The file and the row, for error messages.
        number: Its place in the table, from 0.
        fields: The text under each role that the table has a column for; the image is not among them.
    """

    where: str
    number: int
    fields: dict[str, str]


@dataclass(frozen=True)
class ImageTable:
    """A table that was read but for its images.

    Attributes:
        rows: In the order of the table.
        source: Files with their checksums, and which column is what, for ``run.json``.
        cells: Where images are in the rows, what returns that of a row; else None.
        names: Where rows name image files, these by the number of the row.
        column: The column of images.
        folder: Where the images lie that rows name; None where they are in the rows.
    """

    rows: list[Row]
    source: dict[str, Any]
    cells: OpenCell | None
    names: Mapping[int, str]
    column: str
    folder: Path | None

    def images(self, rows: Sequence[Row], name_role: str = "name") -> tuple[list[str], ImageSource]:
        """Return the name of each row's image, and what opens images by these names.

        Images in the rows are read once for that: those of the same bytes are one image.

        Args:
            rows: Those that are asked about.
            name_role: Whose text names an image, where there is one.

        Raises:
            EvalError: Rows name image files and no folder is given, or one is given that nothing heeds.
        """
        if self.cells is None:
            return self._named(rows)
        if self.folder is not None:
            raise EvalError(
                f"--images must be left out where the images are in the table, got {str(self.folder)!r}: leave it out"
            )
        places: dict[str, int] = {}
        known: dict[str, str] = {}
        names = []
        for row in rows:
            try:
                content = self.cells(row.number)
                told = row.fields.get(name_role) or content.path
                # Without bytes an image fails when it is opened, as one whose file does not open.
                digest = _digest(content.content) if content.content else f"row {row.number + 1}"
            except DataFormatError:
                digest, told = f"row {row.number + 1}", None
            name = known.setdefault(digest, _name(told, digest, places))
            places.setdefault(name, row.number)
            names.append(name)
        return names, TableImages(self.cells, self.column, places)

    def _named(self, rows: Sequence[Row]) -> tuple[list[str], ImageSource]:
        if self.folder is None:
            raise EvalError(
                f"--images must be the folder of the files that column {self.column!r} names, got none: give it"
            )
        bare = next((row.where for row in rows if not self.names[row.number]), None)
        if bare is not None:
            raise DataFormatError(f"{bare}: {self.column!r} must name an image, is empty: leave out such rows")
        return [self.names[row.number] for row in rows], folder_opener(self.folder)


@dataclass(frozen=True)
class TableImages(ImageSource):
    """Opens the images of a table by their names.

    Attributes:
        cells: Returns the image of a row.
        column: That of the images.
        rows: The row of each image.
    """

    cells: OpenCell
    column: str
    rows: Mapping[str, int]

    def __call__(self, name: str) -> Image.Image:
        """Open an image.

        Raises:
            EvalError: Its cell holds no image.
            ImageError: What it holds does not open.
        """
        from damro.images import MAX_PIXELS, read_image

        return read_image(self._content(name), name, max_pixels=self.max_pixels or MAX_PIXELS)

    def digest(self, name: str) -> str | None:
        """Return the SHA-256 of an image's bytes; None where there are none."""
        try:
            return hashlib.sha256(self._content(name)).hexdigest()
        except EvalError:  # whoever opens the image is told
            return None

    def _content(self, name: str) -> bytes:
        row = self.rows[name]
        content = self.cells(row).content
        if not content:
            raise EvalError(f"row {row + 1} of the table must hold an image under {self.column!r}, holds none")
        return content


def load_image_table(
    data: str, roles: Mapping[str, Role], columns: Sequence[str] = (), folder: Path | None = None
) -> ImageTable:
    """Read a table of questions about images, but for the images.

    Args:
        data: A file (Parquet, CSV, TSV, Excel, JSON), a folder of Parquet files, or ``hf:OWNER/NAME``. Images may be
            bytes (Parquet), base64 in text, or files that rows name.
        roles: What columns are for; one of them is ``image``.
        columns: ``ROLE=COLUMN``, where a column is called otherwise than `roles` has it.
        folder: Where the images lie that rows name.

    Raises:
        DataFormatError: A file cannot be read, lacks a column (says which it has), or a cell is neither text nor a
            number.
        EvalError: ``columns`` is malformed, or the package that reads such files is not installed.
    """
    files = _files(data)
    table = ParquetTable(files) if _is_parquet(files[0]) else None
    has, records = _columns_and_rows(files[0]) if table is None else (table.columns, ())
    chosen = choose_columns(data, has, roles, columns)
    wanted = {role: column for role, column in chosen.items() if role != _IMAGE}
    image, packed, rows = chosen[_IMAGE], PackedImages(), []
    inside = table is not None and image not in table.plain_columns
    if table is not None:
        own = [image, *([INDEX] if INDEX in table.plain_columns else [])] if not inside else []
        cells = enumerate(table.rows(list(dict.fromkeys([*wanted.values(), *own]))), start=1)
        records = (Record(f"{data}, row {number}", fields) for number, fields in cells)
    for number, (where, fields) in enumerate(records):
        rows.append(Row(where, number, _texts(where, fields, wanted, roles)))
        if not inside:
            packed.add(number, where, fields.get(image), fields.get(INDEX))
    if not rows:
        raise DataFormatError(f"{data}: must hold at least one row, holds none")
    source = {
        "files": {path.name: digest_of_file(path) for path in files},
        "rows": len(rows),
        "columns": chosen,
    }
    if table is not None and inside:
        return ImageTable(rows, source, partial(table.image, column=image), {}, image, folder)
    if packed.found:
        return ImageTable(rows, source, packed, {}, image, folder)
    return ImageTable(rows, source, None, packed.texts, image, folder)


def _columns_and_rows(path: Path) -> tuple[Sequence[str], Iterable[Record]]:
    """The columns of a table that is no Parquet, and its rows: of CSV and TSV one by one, images may be in them."""
    if is_delimited(path):
        rows = each_row(path)
        first = next(rows)
        return tuple(first.fields), chain([first], rows)
    records = read_table(path)
    return tuple(dict.fromkeys(key for one in records for key in one.fields)), records


def choose_columns(data: str, has: Sequence[str], roles: Mapping[str, Role], told: Sequence[str]) -> dict[str, str]:
    """Return the column of each role.

    Raises:
        DataFormatError: The table lacks a column that is needed, or one that was told; says which it has.
        EvalError: What was told is not ``ROLE=COLUMN``.

    Example:
        >>> roles = {"image": Role(("image",)), "question": Role(("question", "text"))}
        >>> choose_columns("t.csv", ["img", "text"], roles, ["image=img"])
        {'image': 'img', 'question': 'text'}
    """
    given = {}
    for one in told:
        role, equals, column = one.partition("=")
        if not equals or role not in roles or not column or role in given:
            raise EvalError(f"--columns must be ROLE=COLUMN, each role of {', '.join(roles)} once, got {one!r}")
        given[role] = column
    shown = f"has {', '.join(map(repr, has)) or 'none'}"
    wrong = [column for column in given.values() if column not in has]
    if wrong:
        raise DataFormatError(f"{data}: must have the columns of --columns, lacks {wrong[0]!r}, {shown}")
    chosen = dict(given)
    for role, (names, needed) in roles.items():
        found = [name for name in names if name in has]
        if role not in chosen and found:
            chosen[role] = found[0]
        if role not in chosen and needed:
            raise DataFormatError(
                f"{data}: must have a column for {role} ({' or '.join(names)}), {shown}: name it with --columns "
                f"{role}=COLUMN"
            )
    return {role: chosen[role] for role in roles if role in chosen}


def _texts(
    where: str, fields: Mapping[str, Any], wanted: Mapping[str, str], roles: Mapping[str, Role]
) -> dict[str, str]:
    texts = {}
    for role, column in wanted.items():
        value = fields.get(column)
        if isinstance(value, str | int) and not isinstance(value, bool):
            texts[role] = str(value)
        elif value is not None or roles[role].needed:
            raise DataFormatError(f"{where}: {column!r} must be text, got {ascii(value)[:80]}")
    return texts


def _files(data: str) -> list[Path]:
    if data.startswith(PREFIX):
        return hub_files(data)
    path = Path(data)
    if not path.is_dir():
        return [path]
    for folder, pattern in ((path / "data", "*.parquet"), (path, "*.parquet"), (path, "**/*.parquet")):
        files = sorted(folder.glob(pattern))
        if files:
            return files
    raise EvalError(f"--data must be a folder with Parquet files, got {data!r}, which has none: give the table's file")


def _is_parquet(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError as error:
        raise DataFormatError(f"{path}: cannot be read ({error.strerror or error}): give a readable file") from error


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _name(told: str | None, digest: str, taken: Mapping[str, int]) -> str:
    """A name for an image that no other has: as it is told, where that can stand for a file."""
    if told is None:
        return digest
    name = with_ending(told)
    try:
        check_inside(name)
    except EvalError:
        name = PurePosixPath(told.replace("\\", "/")).name or digest
    return f"{digest} {name}" if name in taken else name
