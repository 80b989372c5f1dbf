"""Differences and their intervals on lines with a zero, in percent of the line's width: what a page draws.

A line is HTML, not one picture: texts beside it stay texts, and it is as wide as a phone lets it be.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from damro.eval.benchmark import Measure
from damro.eval.report.comparison import Row
from damro.eval.report.tables import show_difference
from damro.eval.report.verdict import Claim
from damro.eval.statistics import Interval

_ROOM = 0.06  # of the width, at both ends
_GLYPHS = {"helps": "▲", "hurts": "▼", "cannot be told": "?"}


class Scale(NamedTuple):
    """A line from one number to another, in the unit that is shown.

    Attributes:
        low: Its left end.
        high: Its right end.
        ticks: Numbers to write below it, zero among them.
    """

    low: float
    high: float
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """Where a number stands, in percent of the width; one beyond an end stands there.

        Example:
            >>> scale_of([Interval(1.0, -1.0, 3.0, 0.95, 2000)], 1).place(1.0)
            50.0
        """
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(max(share, 0.0), 1.0), 2)


class Line(NamedTuple):
    """A difference on a line.

    Attributes:
        label: Whose it is, or of what.
        verdict: As `damro.eval.report.verdict.Claim` has it; empty where a measure has no direction.
        glyph: That in a sign.
        text: The numbers.
        dot: Where the difference stands; None where it is not defined.
        start: Where its interval begins.
        width: How wide that is.
    """

    label: str
    verdict: str
    glyph: str
    text: str
    dot: float | None
    start: float
    width: float


class Panel(NamedTuple):
    """The differences of one metric of one group.

    Attributes:
        title: The metric.
        better: Where the better side is: "right", "left" or empty.
        scale: Of all lines.
        ticks: Place and text.
        lines: One a method.
    """

    title: str
    better: str
    scale: Scale
    ticks: Sequence[tuple[float, str]]
    lines: Sequence[Line]


def scale_of(values: Iterable[Interval | None], factor: int) -> Scale:
    """Return a scale on which intervals and zero have room.

    Args:
        values: What is to be drawn.
        factor: From the values to what is shown: 100 for percent.
    """
    ends = [0.0]
    for one in values:
        if one is not None:
            ends += [factor * number for number in (one.estimate, *(one.ends or ()))]
    low, high = min(ends), max(ends)
    if low == high:
        low, high = -1.0, 1.0
    room = _ROOM * (high - low)
    step = _step((high - low) / 4)
    ticks = [step * n for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return Scale(low - room, high + room, tuple(ticks))


def _step(rough: float) -> float:
    """The next of 1, 2 and 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * n for n in (1, 2, 5, 10) if power * n >= rough * 0.999)


def line_of(label: str, claim: Claim, scale: Scale) -> Line:
    """Return a claim as a line."""
    measure, difference = claim
    verdict = claim.verdict if measure.better else ""
    shown = show_difference(difference, measure.unit, measure.digits) or "not defined"
    if difference is None:
        return Line(label, verdict, _GLYPHS.get(verdict, ""), shown, None, 0, 0)
    factor = factor_of(measure)
    low, high = difference.ends or (difference.estimate, difference.estimate)
    start, end = scale.place(factor * low), scale.place(factor * high)
    dot = scale.place(factor * difference.estimate)
    return Line(label, verdict, _GLYPHS.get(verdict, ""), shown, dot, start, round(end - start, 2))


def panels_of(rows: Sequence[Row], baseline: str) -> dict[str, list[Panel]]:
    """Return the panels of each group: a metric that reports draw, with a line for every method but the baseline."""
    found: dict[str, list[Panel]] = {}
    drawn = [row for row in rows if row.measure.plotted and row.method != baseline]
    for group in dict.fromkeys(row.group for row in drawn):
        of_group = [row for row in drawn if row.group == group]
        found[group] = [
            _panel([row for row in of_group if row.metric == metric])
            for metric in dict.fromkeys(row.metric for row in of_group)
        ]
    return found


def _panel(rows: Sequence[Row]) -> Panel:
    measure = rows[0].measure
    scale = scale_of((row.difference for row in rows), factor_of(measure))
    better = {"higher": "right", "lower": "left", None: ""}[measure.better]
    unit = "points" if measure.unit == "%" else measure.unit
    lines = [line_of(row.method, Claim(row.measure, row.difference), scale) for row in rows]
    ticks = [(scale.place(tick), f"{tick:+g}" if tick else "0") for tick in scale.ticks]
    return Panel(f"{measure.label}{', ' if unit else ''}{unit}", better, scale, ticks, lines)


def factor_of(measure: Measure) -> int:
    """Return what a measure's numbers are multiplied with to be shown."""
    return 100 if measure.unit == "%" else 1
