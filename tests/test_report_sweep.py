"""eval/report/sweep.py and the figure of a sweep in plots.py."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest
from matplotlib.figure import Figure
from test_report_comparison import answers, captions

from damro.decoding.errors import ParameterError
from damro.eval.benchmark import find_benchmark
from damro.eval.chair.benchmark import ChairScoring
from damro.eval.errors import EvalError
from damro.eval.pope.benchmark import PopeScoring
from damro.eval.report.comparison import Row, compare
from damro.eval.report.marks import mark_of
from damro.eval.report.plots import draw_sweep
from damro.eval.report.sweep import Found, find_points, headline_of, plan_points, to_csv, to_markdown, to_rows
from damro.eval.statistics import Interval


def grid(benchmark: str) -> tuple[list[Row], list[Found]]:
    """Two methods at alpha 0 and 1, of 5 and 10 patches, by records made up."""
    points = [point for name in ("damro", "random-k") for point in plan_points(name, [0, 1], [5, 10])]
    texts = list(dict.fromkeys(point.recipe.text for point in points))
    names = {text: f"run {number}" for number, text in enumerate(texts)}
    if benchmark == "pope":
        runs = {"greedy": answers(4)} | {name: answers(5 + number) for number, name in enumerate(names.values())}
        comparison = compare(find_benchmark("pope"), "m", runs, PopeScoring())
    else:
        said = ["A bus.", "A cat and a bus.", "A cat.", "A cat and a dog.", "A dog.", "A cat, a dog and a bus."]
        runs = {"greedy": captions("A bus.")} | {
            name: captions(text) for name, text in zip(names.values(), said, strict=True)
        }
        truth = {str(n): ["cat", "dog"] for n in range(20)}
        comparison = compare(find_benchmark("chair"), "m", runs, ChairScoring("builtin", truth=truth))
    return find_points(comparison, find_benchmark(benchmark), points, names)


def test_nothing_is_run_twice_where_nothing_is_contrasted() -> None:
    points = plan_points("damro:beta=0.2@0.7", [0, 2], [5, 10])
    assert [(point.alpha, point.top_k) for point in points] == [(0, 5), (0, 10), (2, 5), (2, 10)]
    texts = [point.recipe.text for point in points]
    assert texts[0] == texts[1] == "damro:alpha=0,beta=0.2,top_k=5@0.7"
    assert texts[3] == "damro:alpha=2,beta=0.2,top_k=10@0.7"
    assert [point.recipe.text for point in plan_points("damro", [1], [])] == ["damro:alpha=1"]


def test_methods_without_alpha_and_values_out_of_range_are_refused() -> None:
    with pytest.raises(EvalError, match="a sweep must be of a method with alpha, got 'greedy'"):
        plan_points("greedy", [1], [5])
    with pytest.raises(ParameterError, match="alpha must be"):
        plan_points("damro", [-1], [5])


def test_every_place_of_the_grid_has_its_numbers() -> None:
    plain, found = grid("pope")
    assert [row.metric for row in plain] == ["accuracy"]
    assert [(one.point.method, one.point.alpha, one.point.top_k) for one in found[:3]] == [
        *(("damro", 0, 5), ("damro", 0, 10), ("damro", 1, 5))
    ]
    # Wrong: every 5th of 60 at alpha 0, every 6th at alpha 1 and 5 patches; every 4th by plain decoding.
    values = [one.rows[0].value for one in found]
    assert [value and value.estimate for value in values[:3]] == [pytest.approx(share) for share in (0.8, 0.8, 5 / 6)]
    lines = to_rows("greedy", plain, found)
    assert lines[0] == ["method", "alpha", "top-k", "accuracy %", "to greedy"]
    assert lines[1][:3] == ["greedy", "", ""] and lines[1][4] == ""
    assert lines[4][:3] == ["damro", "1", "5"] and lines[4][3].startswith("83.3 [") and lines[4][4].startswith("+8.3 [")
    assert len(lines) == 2 + 8 and to_markdown(lines).count("\n") == 11
    rows = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert (rows[2]["method"], rows[2]["alpha"], rows[2]["top_k"], rows[2]["value"]) == ("damro", "1", "5", "0.8333")
    assert rows[2]["difference"] == "0.0833" and len(rows) == 8


def test_a_panel_a_number_of_patches_with_both_methods_over_alpha() -> None:
    plain, found = grid("pope")
    figure = draw_sweep("greedy", plain, found, "$title")
    assert isinstance(figure, Figure)
    assert [axes.get_title() for axes in figure.axes] == ["top-k 5", "top-k 10"]
    first, _ = figure.axes
    assert (first.get_xlabel(), first.get_ylabel()) == ("alpha", "accuracy % (higher is better)")
    assert [text.get_text() for text in first.get_legend().get_texts()] == ["greedy", "damro", "random-k"]
    level, *lines = [line for line in first.lines if line.get_label() != "_nolegend_"]
    assert level.get_ydata()[0] == 75
    drawn = {container.get_label(): container.lines[0] for container in first.containers}
    assert list(drawn["damro"].get_ydata()) == pytest.approx([80, 100 * 5 / 6])
    assert drawn["damro"].get_color() == mark_of("damro").colour
    assert drawn["damro"].get_marker() != drawn["random-k"].get_marker()


def test_of_two_metrics_one_stands_over_the_other() -> None:
    plain, found = grid("chair")
    assert [row.metric for row in plain] == ["recall", "chair_i"]
    first = draw_sweep("greedy", plain, found, "title").axes[0]
    assert (first.get_xlabel(), first.get_ylabel()) == ("recall % (higher is better)", "CHAIRi % (lower is better)")
    lines = {line.get_label(): line for line in first.lines}
    row = next(one.rows for one in found if (one.point.method, one.point.alpha, one.point.top_k) == ("damro", 1, 5))
    values = [value.estimate for value in (row[0].value, row[1].value) if value is not None]
    assert [lines["damro"].get_xdata()[1], lines["damro"].get_ydata()[1]] == pytest.approx(
        [100 * one for one in values]
    )
    assert [text.get_text() for text in first.texts] == ["0", "1"] * 2  # alphas
    same = found[0]._replace(point=found[0].point._replace(alpha=3.0))
    told = [text.get_text() for text in draw_sweep("greedy", plain, [*found, same], "title").axes[0].texts]
    assert "0, 3" in told and len(told) == 4  # those of one point stand beside each other


def test_a_benchmark_without_headlines_is_told_by_its_first_metric_with_a_better_side() -> None:
    mmvp = find_benchmark("mmvp")
    from damro.eval.mmvp.scoring import MEASURES

    neutral = {"share": MEASURES["single"]._replace(better=None), **MEASURES}
    assert headline_of(mmvp, neutral) == ("pair_accuracy",)
    assert headline_of(find_benchmark("chair"), neutral) == ("recall", "chair_i")


def test_what_is_not_defined_is_left_out_of_the_figure() -> None:
    plain, found = grid("pope")
    one = found[0].rows[0]
    single = Interval(0.5, float("-inf"), float("inf"), 0.95, 2000, 1)
    holes = [
        Found(place.point, [replace(one, value=value, difference=None)])
        for place, value in ((found[0], None), (found[2], single))
    ]
    first = draw_sweep("greedy", plain, holes, "title").axes[0]
    (drawn,) = first.containers
    assert list(drawn.lines[0].get_ydata()) == [50]
    assert to_csv(holes).splitlines()[1:] == ["damro,0,5,accuracy,,,,,,", "damro,1,5,accuracy,0.5,,,,,"]
