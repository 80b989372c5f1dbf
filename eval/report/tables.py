"""Comparisons as tables: for a terminal, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING

from damro.eval.report.comparison import Comparison, Row
from damro.eval.statistics import Interval

if TYPE_CHECKING:
    from rich.table import Table

FORMATS = ("json", "csv", "md")


def show_value(value: Interval | None, unit: str = "%") -> str:
    """Write a value with its interval, fractions in percent.

    Example:
        >>> show_value(Interval(0.8048, 0.79, 0.82, 0.95, 2000)), show_value(None)
        ('80.5 [79.0, 82.0]', '-')
    """
    if value is None:
        return "-"
    factor = 100 if unit == "%" else 1
    return f"{factor * value.estimate:.1f} [{factor * value.low:.1f}, {factor * value.high:.1f}]"


def show_difference(value: Interval | None, unit: str = "%") -> str:
    """Write a difference with its interval, in points; a star marks an interval that does not hold zero.

    Example:
        >>> show_difference(Interval(-0.02, -0.035, -0.004, 0.95, 2000))
        '-2.0 [-3.5, -0.4]*'
    """
    if value is None:
        return ""
    factor = 100 if unit == "%" else 1
    star = "*" if is_clear(value) else ""
    return f"{factor * value.estimate:+.1f} [{factor * value.low:+.1f}, {factor * value.high:+.1f}]{star}"


def is_clear(difference: Interval) -> bool:
    """Whether the interval of a difference lies on one side of zero."""
    return difference.low > 0 or difference.high < 0


def to_json(comparison: Comparison) -> str:
    """Return the comparison as JSON, fractions unrounded."""
    return json.dumps(comparison.to_dict(), indent=2)


def to_csv(comparison: Comparison) -> str:
    """Return one line a metric, fractions unrounded, empty where not defined."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["group", "method", "metric", "value", "low", "high", "difference", "difference_low", "difference_high"]
    )
    for row in comparison.rows():
        writer.writerow([row.group, row.method, row.metric, *_numbers(row.value), *_numbers(row.difference)])
    return text.getvalue()


def to_markdown(comparison: Comparison) -> str:
    """Return a table a group; below each value its difference to the baseline."""
    parts = [f"# {comparison.benchmark.upper()}: {comparison.model}", ""]
    for group, rows in _by_group(comparison).items():
        metrics = list(dict.fromkeys(row.measure.title for row in rows))
        parts += [f"## {group}", "", "| method | " + " | ".join(metrics) + " |"]
        parts.append("|---" * (len(metrics) + 1) + "|")
        for method in dict.fromkeys(row.method for row in rows):
            cells = [_cell(row, "<br>") for row in rows if row.method == method]
            parts.append(f"| {method} | " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join([*parts, *notes(comparison), ""])


def to_terminal(comparison: Comparison) -> list[Table]:
    """Return a table of rich a group."""
    from rich.table import Table

    tables = []
    for group, rows in _by_group(comparison).items():
        table = Table(title=f"{comparison.benchmark.upper()} {group}", show_lines=True)
        table.add_column("method")
        for title in dict.fromkeys(row.measure.title for row in rows):
            table.add_column(title, justify="right")
        for method in dict.fromkeys(row.method for row in rows):
            table.add_row(method, *(_cell(row, "\n").replace("[", "\\[") for row in rows if row.method == method))
        tables.append(table)
    return tables


def notes(comparison: Comparison) -> list[str]:
    """Return what a reader must know: how to read the tables, and which samples are not in them."""
    lines = ["Brackets: 95 % bootstrap interval over images."]
    if len(comparison.entries) > 1:
        lines.append(
            f"Second lines: difference to {comparison.baseline.name} on the same {comparison.compared} samples; "
            "* marks an interval without zero."
        )
    for entry in comparison.entries:
        if entry.failed:
            first = next(iter(entry.failed.items()))
            lines.append(
                f"WARNING: {entry.name}: {len(entry.failed)} of {entry.total} samples failed and are not scored, "
                f"e.g. {first[0]}: {first[1]}"
            )
    return lines


def _by_group(comparison: Comparison) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in comparison.rows():
        groups.setdefault(row.group, []).append(row)
    return groups


def _cell(row: Row, line_break: str) -> str:
    difference = show_difference(row.difference, row.measure.unit)
    return show_value(row.value, row.measure.unit) + (line_break + difference if difference else "")


def _numbers(interval: Interval | None) -> list[float | str]:
    return ["", "", ""] if interval is None else [interval.estimate, interval.low, interval.high]
