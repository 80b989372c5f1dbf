"""Tables whose rows ask about an image each, which is in the row itself or a file that the row names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from damro.eval.errors import DataFormatError, EvalError
from damro.eval.formats.answers import with_ending
from damro.eval.formats.hub import PREFIX, hub_files
from damro.eval.formats.parquet import ParquetTable
from damro.eval.formats.tables import read_table
from damro.eval.records import digest_of_file
from damro.eval.samples import ImageSource, check_inside, folder_opener

if TYPE_CHECKING:
    from PIL import Image

_MAGIC = b"PAR1"
_IMAGE = "image"


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
        table: Of Parquet files whose images may be in them; else None.
        names: The column of images where they are named, by the number of the row.
        column: The column of images.
        folder: Where the images lie that rows name; None where they are in the rows.
    """

    rows: list[Row]
    source: dict[str, Any]
    table: ParquetTable | None
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
        if self.table is None or self.names:
            if self.folder is None:
                raise EvalError(
                    f"--images must be the folder of the files that column {self.column!r} names, got none: give it"
                )
            return [self.names[row.number] for row in rows], folder_opener(self.folder)
        if self.folder is not None:
            raise EvalError(
                f"--images must be left out where the images are in the table, got {str(self.folder)!r}: leave it out"
            )
        places: dict[str, int] = {}
        known: dict[str, str] = {}
        names = []
        for row in rows:
            try:
                content = self.table.image(row.number, self.column)
                told = row.fields.get(name_role) or content.path
                # Without bytes an image fails when it is opened, as one whose file does not open.
                digest = _digest(content.content) if content.content else f"row {row.number + 1}"
            except DataFormatError:
                digest, told = f"row {row.number + 1}", None
            name = known.setdefault(digest, _name(told, digest, places))
            places.setdefault(name, row.number)
            names.append(name)
        return names, TableImages(self.table, self.column, places)


@dataclass(frozen=True)
class TableImages(ImageSource):
    """Opens the images of a table by their names.

    Attributes:
        table: The Parquet files.
        column: That of the images.
        rows: The row of each image.
    """

    table: ParquetTable
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
        content = self.table.image(row, self.column).content
        if not content:
            raise EvalError(f"row {row + 1} of the table must hold an image under {self.column!r}, holds none")
        return content


def load_image_table(
    data: str, roles: Mapping[str, Role], columns: Sequence[str] = (), folder: Path | None = None
) -> ImageTable:
    """Read a table of questions about images, but for the images.

    Args:
        data: A file (Parquet, CSV, TSV, Excel, JSON), a folder of Parquet files, or ``hf:OWNER/NAME``.
        roles: What columns are for; one of them is ``image``.
        columns: ``ROLE=COLUMN``, where a column is called otherwise than `roles` has it.
        folder: Where the images lie that rows name.

    Raises:
        DataFormatError: A file cannot be read, lacks a column (says which it has), or a cell is neither text nor a
            number.
        EvalError: ``columns`` is malformed, or the package that reads such files is not installed.
    """
    files = _files(data)
    parquet = _is_parquet(files[0])
    table = ParquetTable(files) if parquet else None
    records = [] if parquet else read_table(files[0])
    has = table.columns if table is not None else tuple(dict.fromkeys(key for one in records for key in one.fields))
    chosen = choose_columns(data, has, roles, columns)
    wanted = {role: column for role, column in chosen.items() if role != _IMAGE}
    image, names = chosen[_IMAGE], {}
    plain = image in table.plain_columns if table is not None else True
    if table is not None:
        cells = table.rows([*wanted.values(), *([image] if plain else [])])
        places = [f"{data}, row {number}" for number in range(1, len(table) + 1)]
    else:
        cells = (one.fields for one in records)
        places = [one.where for one in records]
    rows = []
    for number, (where, fields) in enumerate(zip(places, cells, strict=True)):
        rows.append(Row(where, number, _texts(where, fields, wanted, roles)))
        if plain:
            names[number] = _texts(where, fields, {_IMAGE: image}, roles)[_IMAGE]
    if not rows:
        raise DataFormatError(f"{data}: must hold at least one row, holds none")
    source = {
        "files": {path.name: digest_of_file(path) for path in files},
        "rows": len(rows),
        "columns": chosen,
    }
    return ImageTable(rows, source, table, names, image, folder)


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
