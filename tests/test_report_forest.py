"""eval/report/forest.py, marks.py, the claims of verdict.py: what stands where on a line, in which colour and shape."""

from __future__ import annotations

import math
import re
from itertools import combinations
from typing import Any

import pytest
from test_report_comparison import compare_answers

from damro.eval.benchmark import Measure
from damro.eval.report import marks
from damro.eval.report.comparison import Row
from damro.eval.report.forest import line_of, panels_of, scale_of
from damro.eval.report.marks import mark_of
from damro.eval.report.verdict import Claim, claims_of
from damro.eval.statistics import Interval, first_column
from damro.methods import METHODS

HIGHER = Measure(first_column, "accuracy", plotted=True)
LOWER = HIGHER._replace(better="lower")
FIRST = ("greedy", "damro", "random-k", "least-k", "no-image", "vcd", "icd", "m3id")


def interval(middle: float, low: float, high: float) -> Interval:
    return Interval(middle, low, high, 0.95, 2000, 60)


@pytest.mark.parametrize(
    ("measure", "difference", "verdict"),
    [
        (HIGHER, interval(0.02, 0.01, 0.03), "helps"),
        (LOWER, interval(0.02, 0.01, 0.03), "hurts"),
        (HIGHER, interval(-0.02, -0.03, -0.01), "hurts"),
        (LOWER, interval(-0.02, -0.03, -0.01), "helps"),
        (HIGHER, interval(0.02, -0.01, 0.05), "cannot be told"),
        (HIGHER, Interval(0.02, 0.01, 0.03, 0.95, 2000, 5), "cannot be told"),  # of five images
        (HIGHER, None, "cannot be told"),
    ],
)
def test_a_claim_follows_its_interval(measure: Measure, difference: Interval | None, verdict: str) -> None:
    assert Claim(measure, difference).verdict == verdict


def test_claims_are_about_every_method_but_the_baseline() -> None:
    comparison = compare_answers()
    found = claims_of(comparison, comparison.rows())
    assert {name: [claim.measure.label for claim in claims] for name, claims in found.items()} == {
        "damro": ["accuracy", "F1"]  # the share of yes has no better side
    }
    assert found["damro"][0].difference == next(
        row.difference for row in comparison.rows() if row.method == "damro" and row.metric == "accuracy"
    )


def test_zero_and_intervals_stand_where_their_numbers_are() -> None:
    scale = scale_of([interval(0.02, -0.01, 0.05), interval(-0.03, -0.05, -0.02)], 100)
    assert 0 in scale.ticks and all(0 <= scale.place(tick) <= 100 for tick in scale.ticks)
    line = line_of("damro", Claim(HIGHER, interval(0.02, -0.01, 0.05)), scale)
    assert line.dot is not None
    # Linear: from the interval's low end to its middle is half the way to its high end.
    assert line.dot - line.start == pytest.approx(line.width / 2, abs=0.02)
    assert line.start < scale.place(0) < line.dot  # -1 < 0 < 2
    assert line.text == "+2.0 [-1.0, +5.0]"


@pytest.mark.parametrize(
    "values", [[], [None], [interval(0.0, 0.0, 0.0)], [Interval(0.1, -math.inf, math.inf, 0.95, 9, 1)]]
)
def test_a_scale_holds_zero_whatever_there_is(values: list[Any]) -> None:
    scale = scale_of(values, 100)
    assert 0 < scale.place(0) < 100 and 0 in scale.ticks
    for value in values:
        line = line_of("a", Claim(HIGHER, value), scale)
        assert (line.dot is None) == (value is None) and line.width == 0


def test_panels_are_of_plotted_metrics_without_the_baseline() -> None:
    comparison = compare_answers()
    (panels,) = panels_of(comparison.rows(), "greedy").values()
    assert [panel.title for panel in panels] == ["accuracy, points", "F1, points", "yes, points"]
    assert [panel.better for panel in panels] == ["right", "right", ""]
    assert [[line.label for line in panel.lines] for panel in panels] == [["damro"]] * 3
    alone = [row for row in comparison.rows() if row.method == "greedy"]
    assert panels_of(alone, "greedy") == {}


def test_names_of_rows_are_not_looked_into() -> None:
    row = Row("$\\frac$", "$\\frac$", "accuracy", HIGHER, None, interval(0.1, 0.0, 0.2))
    assert panels_of([row], "greedy")["$\\frac$"][0].lines[0].label == "$\\frac$"


def luminance(colour: str) -> float:
    parts = [int(two, 16) / 255 for two in re.findall("..", colour[1:])]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("method", [*METHODS, *(f"of-another-package-{n}" for n in range(12))])
@pytest.mark.parametrize("ground", ["#ffffff", "#16161a"])
def test_marks_stand_out_on_both_grounds(method: str, ground: str) -> None:
    ink, paper = luminance(mark_of(method).colour), luminance(ground)
    assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 3


def test_no_two_methods_look_alike() -> None:
    for one, other in combinations(map(mark_of, FIRST), 2):
        assert one.colour != other.colour and one.shape != other.shape
    found = {name: mark_of(name)[:2] for name in METHODS}
    assert len(set(found.values())) == len(found)


def test_marks_of_other_names_come_in_an_order_without_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marks, "METHODS", [*FIRST, *(f"method-{n}" for n in range(30))])
    found = [mark_of(f"method-{n}")[:2] for n in range(30)]
    assert len(set(found)) == 30 and not {shape for _, shape in found} & {mark_of(name).shape for name in FIRST}
    assert mark_of("of another package") == mark_of("of another package")
