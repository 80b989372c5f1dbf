"""Comparisons as tables for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from damro.eval.report.columns import fit_tables
from damro.eval.report.comparison import Comparison
from damro.eval.report.tables import COST_TITLES, by_group, cost_rows, group_notes, show_cell

if TYPE_CHECKING:
    from rich.table import Table


def to_terminal(comparison: Comparison, width: int) -> list[tuple[Table, list[str]]]:
    """Return tables of rich, the last one of a group with the notes that belong below it.

    Args:
        comparison: What to show.
        width: Characters of a line of the terminal.
    """
    tables: list[tuple[Table, list[str]]] = []
    for group, rows in by_group(comparison).items():
        header = ["method", *dict.fromkeys(row.measure.title for row in rows)]
        lines = [
            [method, *(show_cell(row, "\n") for row in rows if row.method == method)]
            for method in dict.fromkeys(row.method for row in rows)
        ]
        *others, last = fit_tables(f"{comparison.benchmark.upper()} {group}", header, lines, width)
        tables += [*((table, []) for table in others), (last, group_notes(comparison, group))]
    costs = [[name, *cells] for name, cells in cost_rows(comparison)]
    if costs:
        tables += [(table, []) for table in fit_tables("cost", ["method", *COST_TITLES], costs, width)]
    return tables
