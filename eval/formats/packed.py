"""Images that stand in the text of a table as base64, as VLMEvalKit's tables have them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Any

from damro.eval.errors import DataFormatError
from damro.eval.formats.parquet import ImageCell

INDEX = "index"
"""The column by which a row stands for the image of another."""
_LONGEST_NAME = 64  # what VLMEvalKit takes for an index at most; the smallest image is longer
_BASE64 = re.compile(r"(?:data:image/[\w.+-]+;base64,)?([A-Za-z0-9+/\s]+={0,2}\s*)")


class PackedImages:
    """The image column of a table whose cells are text: base64, the index of a row that has it, or a file's name.

    Images of the same bytes are held once.

    Attributes:
        found: Whether a cell holds base64.
        texts: What the other cells hold, by the number of the row.

    Example:
        >>> images = PackedImages()
        >>> images.add(0, "row 1", base64.b64encode(bytes(60)).decode(), 7)
        >>> images.add(1, "row 2", 7, 8)
        >>> images(1).content == bytes(60)
        True
    """

    def __init__(self) -> None:
        """Begin with no row."""
        self.texts: dict[int, str] = {}
        self._where: dict[int, str] = {}
        self._digests: dict[int, bytes] = {}
        self._by_index: dict[str, int] = {}
        self._contents: dict[bytes, bytes] = {}

    @property
    def found(self) -> bool:
        """Whether a cell holds base64."""
        return bool(self._digests)

    def add(self, number: int, where: str, cell: Any, index: Any = None) -> None:
        """Take in the cell of a row.

        Args:
            number: Of the row.
            where: The file and the row, for error messages.
            cell: Text, or a number; None for an empty one.
            index: What other rows call this one.

        Raises:
            DataFormatError: The cell holds something else.
        """
        if cell is not None and (isinstance(cell, bool) or not isinstance(cell, str | int)):
            raise DataFormatError(f"{where}: an image must be base64 or a file's name, got {ascii(cell)[:60]}")
        text = "" if cell is None else str(cell)
        packed = _BASE64.fullmatch(text) if len(text) > _LONGEST_NAME else None
        if packed is None:
            self.texts[number], self._where[number] = text, where
            return
        try:
            content = base64.b64decode(packed[1])
        except binascii.Error:
            content = b""  # fails as an image that does not open does
        digest = hashlib.sha256(content).digest()
        self._contents.setdefault(digest, content)
        self._digests[number] = digest
        if index is not None:
            self._by_index[str(index)] = number

    def __call__(self, number: int) -> ImageCell:
        """Return the image of a row; without contents where the row has none.

        Raises:
            DataFormatError: The row names neither an image nor a row that has one.
        """
        text = self.texts.get(number)
        if text == "":
            return ImageCell(None, None)
        if text is not None and text not in self._by_index:
            raise DataFormatError(
                f"{self._where[number]}: an image must be base64, or the {INDEX!r} of a row that has it, got "
                f"{ascii(text)[:60]}"
            )
        return ImageCell(self._contents[self._digests[number if text is None else self._by_index[text]]], None)
