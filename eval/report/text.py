"""Names of files, models and methods, and reasons of failures, as they stand: nothing in them is markup."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

_MARKUP = re.compile(r"([\\`*_\[\]<>#|~$&])")
_FORMULA = ("=", "+", "-", "@")


def to_line(text: object) -> str:
    r"""Return a text as one line without control characters, which could move a terminal's cursor.

    Example:
        >>> to_line("a\n b\x1b[2Jc")
        'a  b [2Jc'
    """
    return "".join(letter if letter.isprintable() else " " for letter in str(text))


def to_markdown_text(text: object) -> str:
    r"""Return a text as Markdown that shows it, in a cell of a table too.

    Example:
        >>> print(to_markdown_text("a|b_[c](d) <e>"))
        a\|b\_\[c\](d) \<e\>
    """
    return _MARKUP.sub(r"\\\1", to_line(text))


def to_cell(text: str) -> str:
    """Return a text as a cell of CSV that no spreadsheet takes for a formula: one that looks so begins with a quote.

    Example:
        >>> to_cell("=1+1"), to_cell("damro@1")
        ("'=1+1", 'damro@1')
    """
    shown = to_line(text)
    return f"'{shown}" if shown.lstrip().startswith(_FORMULA) else shown


def to_rich(text: object) -> Text:
    """Return a text as rich shows it without reading tags or emoji codes in it."""
    from rich.text import Text

    return Text(to_line(text))
