"""Comparisons as tables: Markdown, CSV and JSON; what the cells of those for a terminal say."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

from damro.eval.benchmark import Note
from damro.eval.report.comparison import Comparison, Row
from damro.eval.report.text import to_cell, to_line, to_markdown_text
from damro.eval.runs.costs import Costs
from damro.eval.statistics import Interval

FORMATS = ("json", "csv", "md")
WARNING = "WARNING"
"""How a note begins that puts the metrics in doubt."""
_DIGITS = 4  # of numbers in CSV
FEWEST = 6
"""A difference must be of so many images to be clear. Where a change has no direction, all of five images still change
the same way in 2 of 2**5 cases: more often than the 5 % that an interval leaves."""


def show_value(value: Interval | None, unit: str = "%", digits: int = 1) -> str:
    """Write a value with its interval, fractions in percent; of one image without.

    Example:
        >>> show_value(Interval(0.8048, 0.79, 0.82, 0.95, 2000)), show_value(None)
        ('80.5 [79.0, 82.0]', '-')
        >>> show_value(Interval(1.0, float("-inf"), float("inf"), 0.95, 2000))
        '100.0'
        >>> show_value(Interval(2.125, 1.9, 2.25, 0.95, 2000), "", 2)
        '2.12 [1.90, 2.25]'
    """
    return "-" if value is None else _show(value, unit, digits, sign="")


def show_difference(value: Interval | None, unit: str = "%", digits: int = 1) -> str:
    """Write a difference with its interval, in points; a star marks one that `is_clear`.

    Example:
        >>> show_difference(Interval(-0.02, -0.035, -0.004, 0.95, 2000))
        '-2.0 [-3.5, -0.4]*'
        >>> show_difference(Interval(-0.02, -0.035, -0.0004, 0.95, 2000))
        '-2.0 [-3.5, +0.0]'
    """
    if value is None:
        return ""
    return _show(value, unit, digits, sign="+") + ("*" if is_clear(value, unit, digits) else "")


def show_cell(row: Row, line_break: str) -> str:
    """Write a value with its interval, and behind a line break its difference to the baseline if it has one."""
    difference = show_difference(row.difference, row.measure.unit, row.measure.digits)
    value = show_value(row.value, row.measure.unit, row.measure.digits)
    return value + (line_break + difference if difference else "")


def is_clear(difference: Interval, unit: str = "%", digits: int = 1) -> bool:
    """Whether the interval of a difference lies on one side of zero, as it is shown, and is of enough images.

    Example:
        >>> is_clear(Interval(0.02, 0.004, 0.035, 0.95, 2000)), is_clear(Interval(0.02, 0.0004, 0.035, 0.95, 2000))
        (True, False)
        >>> is_clear(Interval(-1.0, -1.0, -1.0, 0.95, 2000, samples=2))
        False
        >>> is_clear(Interval(0.2, 0.04, 0.3, 0.95, 2000), ""), is_clear(Interval(0.2, 0.04, 0.3, 0.95, 2000), "", 2)
        (False, True)
    """
    if difference.ends is None or (difference.samples is not None and difference.samples < FEWEST):
        return False
    low, high = (round(_factor(unit) * end, digits) for end in difference.ends)
    return low > 0 or high < 0


def _show(value: Interval, unit: str, digits: int, sign: str) -> str:
    numbers = [value.estimate, *(value.ends or ())]
    shown, *ends = [f"{_factor(unit) * number:{sign}z.{digits}f}" for number in numbers]
    return f"{shown} [{', '.join(ends)}]" if ends else shown


def _factor(unit: str) -> int:
    return 100 if unit == "%" else 1


def to_json(comparison: Comparison) -> str:
    """Return the comparison as JSON, fractions unrounded."""
    return json.dumps(comparison.to_dict(), indent=2, allow_nan=False)


def to_csv(comparison: Comparison) -> str:
    """Return one line a metric of a group of a run, fractions of four digits, empty where not defined.

    Lines of several comparisons may be put together: each says what it is of.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ends = ["low", "high", "difference", "difference_low", "difference_high", "notes"]
    writer.writerow(["benchmark", "model", "group", "method", "metric", "value", *ends])
    told = {
        (group.name, entry.name): "; ".join(
            [*(f"{note.name}: {note.value}" for note in group.notes), *([entry.share] if entry.share else [])]
        )
        for entry in comparison.entries
        for group in entry.groups
    }
    for row in comparison.rows():
        told_of = (comparison.benchmark, comparison.model, row.group, row.method, row.metric)
        names = [to_cell(name) for name in told_of]
        numbers = [*_numbers(row.value), *_numbers(row.difference)]
        writer.writerow([*names, *numbers, to_cell(told[row.group, row.method])])
    return text.getvalue()


COST_TITLES = ("tokens/s", "language passes a token", "vision passes an image", "tokens an answer")


def cost_rows(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Return what the answers of each run cost, by its name, under `COST_TITLES`; nothing where none was measured."""
    if not any(entry.cost for entry in comparison.entries):
        return []
    return [(entry.name, _costs(entry.cost)) for entry in comparison.entries]


def _costs(cost: Costs | None) -> list[str]:
    if cost is None:
        return ["not measured", *[""] * (len(COST_TITLES) - 1)]
    return [
        f"{cost.tokens_per_second:.1f}",
        f"{cost.passes:.2f}",
        f"{cost.looks:.2f}",
        f"{cost.tokens / cost.samples:.1f}",
    ]


def to_markdown(comparison: Comparison) -> str:
    """Return a table a group; below each value its difference to the baseline."""
    parts = [f"# {comparison.benchmark.upper()}: {to_markdown_text(comparison.model)}", ""]
    for group, rows in by_group(comparison).items():
        metrics = list(dict.fromkeys(to_markdown_text(row.measure.title) for row in rows))
        parts += [f"## {to_markdown_text(group)}", "", "| method | " + " | ".join(metrics) + " |"]
        parts.append("|---" * (len(metrics) + 1) + "|")
        for method in dict.fromkeys(row.method for row in rows):
            cells = [show_cell(row, "<br>") for row in rows if row.method == method]
            parts.append(f"| {to_markdown_text(method)} | " + " | ".join(cells) + " |")
        parts += _paragraphs(["", *group_notes(comparison, group)])
    costs = cost_rows(comparison)
    if costs:
        parts += ["## cost", "", "| method | " + " | ".join(COST_TITLES) + " |", "|---" * (len(COST_TITLES) + 1) + "|"]
        parts += [f"| {to_markdown_text(method)} | {' | '.join(cells)} |" for method, cells in costs] + [""]
    return "\n".join(parts + _paragraphs(notes(comparison)))


def group_notes(comparison: Comparison, group: str) -> list[str]:
    """Return what a reader must know of one group: how answers were read, how many could not be, run by run.

    Those that put the metrics in doubt are lines of their own, and begin with WARNING.
    """
    names: dict[str, list[tuple[str, Note]]] = {}
    for entry in comparison.entries:
        for note in next(one for one in entry.groups if one.name == group).notes:
            names.setdefault(note.name, []).append((entry.name, note))
    plain, doubtful = [], []
    for name, told in names.items():
        values = {note.value for _, note in told}
        same = len(values) == 1 and len(told) == len(comparison.entries)
        shown = str(told[0][1].value) if same else ", ".join(f"{method} {note.value}" for method, note in told)
        doubts = [note for _, note in told if note.doubtful]
        if doubts:
            meaning = f" ({doubts[0].meaning})" if doubts[0].meaning else ""
            doubtful.append(to_line(f"{WARNING}: {name}{meaning}: {shown}"))
        else:
            plain.append(f"{name}: {shown}")
    return ([to_line("; ".join(plain))] if plain else []) + doubtful


def notes(comparison: Comparison) -> list[str]:
    """Return what a reader must know: how to read the tables, and which samples are not in them."""
    lines = ["Brackets: 95 % bootstrap interval over images; none of a single image."]
    if len(comparison.entries) > 1:
        lines.append(
            f"Second lines: difference to {to_line(comparison.baseline.name)} on the same {comparison.compared} "
            f"samples; * marks an interval without zero, of at least {FEWEST} images."
        )
    return lines + warnings(comparison)


def warnings(comparison: Comparison) -> list[str]:
    """Return what is not in the tables: samples of each run without a record, and those that failed, with a reason."""
    lines = []
    for entry in (*comparison.entries, *comparison.unscored):
        if entry.share is not None:
            lines.append(to_line(f"{WARNING}: {entry.name}: {entry.share} are recorded: this is no result of the run"))
        if entry.failed:
            first = next(iter(entry.failed.items()))
            how_many = "all" if entry in comparison.unscored else f"{len(entry.failed)} of"
            lines.append(
                to_line(
                    f"{WARNING}: {entry.name}: {how_many} {entry.total} samples failed and are not scored, "
                    f"e.g. {first[0]}: {first[1]}"
                )
            )
    return lines


def by_group(comparison: Comparison) -> dict[str, list[Row]]:
    """Return the rows of each group, by its name."""
    groups: dict[str, list[Row]] = {}
    for row in comparison.rows():
        groups.setdefault(row.group, []).append(row)
    return groups


def _paragraphs(lines: Sequence[str]) -> list[str]:
    """Lines as Markdown, each a paragraph."""
    return [part for line in lines for part in ([to_markdown_text(line), ""] if line else [""])]


def _numbers(interval: Interval | None) -> list[float | str]:
    if interval is None:
        return ["", "", ""]
    return [
        round(interval.estimate, _DIGITS),
        *([round(end, _DIGITS) for end in interval.ends] if interval.ends else ("", "")),
    ]
