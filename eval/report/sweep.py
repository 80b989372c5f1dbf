"""Runs of one method under several strengths and numbers of patches: what a sweep found, as points of a grid."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from damro.eval.benchmark import Benchmark, Measure
from damro.eval.errors import EvalError
from damro.eval.report.comparison import Comparison, Row
from damro.eval.report.tables import show_difference, show_value
from damro.eval.report.text import to_cell, to_markdown_text
from damro.methods import Recipe, parse
from damro.parameters import parameters


class Point(NamedTuple):
    """One place of the grid.

    Attributes:
        method: Name of the method.
        alpha: Strength of its contrast.
        top_k: Patches of the second prompt; None for a method that has none, or its preset's.
        recipe: What is run there.
    """

    method: str
    alpha: float
    top_k: int | None
    recipe: Recipe


class Found(NamedTuple):
    """What was found at one place of the grid.

    Attributes:
        point: The place.
        rows: The metrics that a sweep tells, of the whole run.
    """

    point: Point
    rows: Sequence[Row]


def plan_points(text: str, alphas: Sequence[float], top_ks: Sequence[int]) -> list[Point]:
    """Return the grid of one method.

    Where alpha is 0 nothing is contrasted: one run stands for every number of patches.

    Args:
        text: The method, as `damro.methods.parse` reads it.
        alphas: Strengths.
        top_ks: Numbers of patches; empty leaves it to the preset, and a method that has none has no such axis.

    Raises:
        EvalError: The method has no alpha.
        ParameterError: There is no such method, or a value is out of range.

    Example:
        >>> [(point.top_k, point.recipe.text) for point in plan_points("damro", [0, 1], [5, 10])]
        [(5, 'damro:alpha=0,top_k=5'), (10, 'damro:alpha=0,top_k=5'),
         (5, 'damro:alpha=1,top_k=5'), (10, 'damro:alpha=1,top_k=10')]
        >>> [point.recipe.text for point in plan_points("no-image", [1], [5, 10])]
        ['no-image:alpha=1']
    """
    recipe = parse(text)
    names = {one.name for one in parameters(type(recipe.method))}
    if "alpha" not in names:
        raise EvalError(f"a sweep must be of a method with alpha, got {text!r}: 'damro methods' lists what each has")
    ks: Sequence[int | None] = top_ks if top_ks and "top_k" in names else [None]
    points = []
    for alpha in alphas:
        for top_k in ks:
            asked = ks[0] if alpha == 0 else top_k
            values = {"alpha": float(alpha)} | ({} if asked is None else {"top_k": asked})
            method = replace(recipe.method, **values)
            points.append(Point(method.name, float(alpha), top_k, recipe._replace(method=method)))
    return points


def headline_of(benchmark: Benchmark, measures: dict[str, Measure]) -> tuple[str, ...]:
    """Return the metrics that a sweep of a benchmark tells: its own, or the first that has a better side."""
    return benchmark.headline or tuple(name for name, measure in measures.items() if measure.better)[:1]


def find_points(
    comparison: Comparison, benchmark: Benchmark, points: Sequence[Point], names: dict[str, str]
) -> tuple[list[Row], list[Found]]:
    """Return the baseline's metrics, and those at each place of the grid that has an answer.

    Args:
        comparison: All runs.
        benchmark: Of the runs.
        points: The grid.
        names: By a recipe's text, the name of its run in the comparison.
    """
    whole = comparison.baseline.whole
    told = headline_of(benchmark, dict(whole.measures))
    rows: dict[str, list[Row]] = {}
    for row in comparison.rows():
        if row.group == whole.name and row.metric in told:
            rows.setdefault(row.method, []).append(row)
    for of_run in rows.values():
        of_run.sort(key=lambda row: told.index(row.metric))
    found = [Found(point, rows[names[point.recipe.text]]) for point in points if names.get(point.recipe.text) in rows]
    return rows[comparison.baseline.name], found


def to_rows(baseline: str, plain: Sequence[Row], found: Sequence[Found]) -> list[list[str]]:
    """Return the table: a head, the baseline, and a line a place of the grid."""
    head = ["method", "alpha", "top-k"]
    for row in plain:
        head += [row.measure.title, f"to {baseline}"]
    lines = [head, [baseline, "", "", *_cells(plain)]]
    for point, rows in found:
        lines.append([point.method, f"{point.alpha:g}", _shown(point.top_k), *_cells(rows)])
    return lines


def to_markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return a table of `to_rows` in Markdown."""
    escaped = [[to_markdown_text(cell) for cell in line] for line in lines]
    rows = [f"| {' | '.join(line)} |" for line in escaped]
    return "\n".join([rows[0], "|---" * len(escaped[0]) + "|", *rows[1:]]) + "\n"


def to_csv(found: Sequence[Found]) -> str:
    """Return one line a metric of a place of the grid, fractions of four digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    numbers = ["value", "low", "high", "difference", "difference_low", "difference_high"]
    writer.writerow(["method", "alpha", "top_k", "metric", *numbers])
    for point, rows in found:
        for row in rows:
            values: list[float | str] = []
            for one in (row.value, row.difference):
                ends = ("", "") if one is None or one.ends is None else tuple(round(end, 4) for end in one.ends)
                values += ["" if one is None else round(one.estimate, 4), *ends]
            writer.writerow([to_cell(point.method), f"{point.alpha:g}", _shown(point.top_k), row.metric, *values])
    return text.getvalue()


def _cells(rows: Sequence[Row]) -> list[str]:
    cells = []
    for row in rows:
        shown_so = row.measure.unit, row.measure.digits
        cells += [show_value(row.value, *shown_so), show_difference(row.difference, *shown_so)]
    return cells


def _shown(top_k: int | None) -> str:
    return "" if top_k is None else str(top_k)
