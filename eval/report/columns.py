"""Tables for a terminal: as many as its width asks for, so that no number is cut."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from damro.eval.report.text import to_line

if TYPE_CHECKING:
    from rich.table import Table

_FRAME = 3
"""Characters that a column takes beside what stands in it: two blanks and a line."""


class _Column(NamedTuple):
    """What stands above a column and in it, each of one or more lines."""

    head: str
    cells: list[str]

    @property
    def width(self) -> int:
        """Characters of its longest line."""
        from rich.cells import cell_len

        return max(cell_len(line) for text in (self.head, *self.cells) for line in text.split("\n"))


def fit_tables(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], width: int, *, names: int = 1
) -> list[Table]:
    """Return one table, or several with some of the columns each, in which numbers and words stay whole.

    Where one is too wide as it is, titles are broken between words, then intervals stand below their values, and then
    columns go into tables of their own.

    Args:
        title: Above the tables; empty for none.
        header: Titles of the columns.
        rows: A text a column each; what stands on lines of its own stays there.
        width: Characters of a line of the terminal.
        names: So many columns on the left say what a row is of: they stand in every table.

    Example:
        >>> rows = [["greedy", "87.5 [62.5, 100.0]", "84.6 [60.0, 100.0]"]]
        >>> [len(fit_tables("POPE", ["method", "F1 %", "yes %"], rows, width)) for width in (80, 45, 30)]
        [1, 1, 2]
    """
    columns = [_Column(to_line(head), [_clean(row[at]) for row in rows]) for at, head in enumerate(header)]
    forms: list[tuple[int, Callable[[_Column], _Column]]] = [
        (2, lambda column: column),
        (2, _break_head),
        (2, lambda column: _break_head(_stack(column))),
        (3, lambda column: _break_head(_stack(column))),
    ]
    tried = []
    for share, form in forms:
        left = [_fold(column, width // share // names - _FRAME) for column in columns[:names]]
        room = width - 1 - _room(left)
        parts = _split([form(column) for column in columns[names:]], room)
        tried.append((max(room, *map(_room, parts)) - room, len(parts), left, parts))
    _, number, left, parts = min(tried, key=lambda one: one[:2])  # of those that are as good the first
    titles = [f"{title} ({place} of {number})" if title and number > 1 else title for place in range(1, number + 1)]
    return [_table(told, left, part) for told, part in zip(titles, parts, strict=True)]


def _room(columns: Sequence[_Column]) -> int:
    return sum(column.width + _FRAME for column in columns)


def _clean(text: str) -> str:
    return "\n".join(map(to_line, text.split("\n")))


def _fold(column: _Column, most: int) -> _Column:
    """Names of rows, which may be as long as a method's parameters, in lines of at most so many characters."""
    most = max(most, len(column.head), 1)
    return _Column(column.head, ["\n".join(textwrap.wrap(cell, most)) for cell in column.cells])


def _break_head(column: _Column) -> _Column:
    """The title in lines as long as what stands below, or as half of it if that is longer."""
    longest = max(column._replace(head="").width, len(column.head) // 2, *map(len, column.head.split()))
    return _Column("\n".join(textwrap.wrap(column.head, longest, break_on_hyphens=False)), column.cells)


def _stack(column: _Column) -> _Column:
    """Intervals below their values."""
    return _Column(column.head, [cell.replace(" [", "\n[") for cell in column.cells])


def _split(columns: list[_Column], room: int) -> list[list[_Column]]:
    """The columns in as few parts as fit, of the same number as far as that goes."""
    for number in range(1, len(columns)):
        share = -(-len(columns) // number)
        parts = [columns[at : at + share] for at in range(0, len(columns), share)]
        if all(_room(part) <= room for part in parts):
            return parts
    return [[column] for column in columns]


def _table(title: str, left: Sequence[_Column], right: Sequence[_Column]) -> Table:
    from rich.table import Table
    from rich.text import Text

    apart = any("\n" in cell for column in (*left, *right) for cell in column.cells)
    table = Table(title=Text(to_line(title)) if title else None, show_lines=apart)
    for column in left:
        table.add_column(Text(column.head), no_wrap=True, overflow="fold")
    for column in right:
        table.add_column(Text(column.head), justify="right", no_wrap=True, overflow="fold")
    for cells in zip(*(column.cells for column in (*left, *right)), strict=True):
        table.add_row(*map(Text, cells))
    return table
