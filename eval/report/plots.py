"""Charts of matplotlib, and charts as pictures of a page. Imports matplotlib when first used."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from damro.eval.groups import Measure
from damro.eval.report.comparison import Row
from damro.eval.report.marks import mark_of
from damro.eval.report.sweep import Found

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_AS_IT_IS: dict[str, Any] = {"parse_math": False}  # names of runs: a dollar sign in them would begin a formula
_PLAIN = mark_of("greedy").colour


def draw_sweep(baseline: str, plain: Sequence[Row], found: Sequence[Found], title: str) -> Figure:
    """Draw a panel a number of patches, a line a method.

    One metric stands over alpha, with its 95 % intervals; of two, the second stands over the first, and a line goes
    from alpha to alpha. The baseline is drawn beside, without a line.

    Args:
        baseline: Its name.
        plain: Its metrics, one or two.
        found: The grid; what has no number of patches is drawn in every panel.
        title: Of the figure.
    """
    from matplotlib.figure import Figure

    told = dict.fromkeys(one.point.top_k for one in found if one.point.top_k is not None)
    ks: list[int | None] = [*told] or [None]
    figure = Figure(figsize=(3.3 * len(ks) + 1.2, 3.6), layout="constrained")
    panels: list[Axes] = figure.subplots(1, len(ks), squeeze=False, sharex=True, sharey=True)[0].tolist()
    for axes, top_k in zip(panels, ks, strict=True):
        shown = [one for one in found if one.point.top_k in (top_k, None)]
        draw = _draw_over_alpha if len(plain) == 1 else _draw_against
        draw(axes, baseline, plain, shown)
        axes.set_title("" if top_k is None else f"top-k {top_k}", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(_axis_title(plain[-1].measure), fontsize=9, **_AS_IT_IS)
    panels[0].legend(fontsize=8)
    figure.suptitle(title, fontsize=10, **_AS_IT_IS)
    return figure


def _draw_over_alpha(axes: Axes, baseline: str, plain: Sequence[Row], found: Sequence[Found]) -> None:
    """Values with intervals over alpha; lines a little apart, so that intervals do not hide each other."""
    value = _number(plain[0])
    if value is not None:
        axes.axhline(value, color=_PLAIN, linestyle="--", linewidth=1, label=baseline)
    methods = list(dict.fromkeys(one.point.method for one in found))
    span = max((one.point.alpha for one in found), default=0) or 1
    for place, method in enumerate(methods):
        drawn = [one for one in found if one.point.method == method and one.rows[0].value is not None]
        at = [one.point.alpha + 0.012 * span * (2 * place - len(methods) + 1) for one in drawn]
        values = [_number(one.rows[0]) or 0.0 for one in drawn]
        axes.errorbar(at, values, yerr=_reach([one.rows[0] for one in drawn]), capsize=2, **_style(method))
    axes.set_xlabel("alpha", fontsize=9)


def _draw_against(axes: Axes, baseline: str, plain: Sequence[Row], found: Sequence[Found]) -> None:
    """The second metric over the first, alphas beside the points."""
    across, up = map(_number, plain)
    if across is not None and up is not None:
        # A ring around what stands there too: a method of alpha 0 says what the baseline says.
        ring: dict[str, Any] = {"markersize": 12, "markerfacecolor": "none", "markeredgewidth": 1.5, "zorder": 3}
        axes.plot([across], [up], color=_PLAIN, marker="o", linestyle="", label=baseline, **ring)
    for place, method in enumerate(dict.fromkeys(one.point.method for one in found)):
        drawn = [(one.point.alpha, *map(_number, one.rows)) for one in found if one.point.method == method]
        places = [(alpha, x, y) for alpha, x, y in drawn if x is not None and y is not None]
        axes.plot([x for _, x, _ in places], [y for _, _, y in places], **_style(method))
        alphas: dict[tuple[float, float], list[str]] = {}
        for alpha, x, y in places:
            alphas.setdefault((x, y), []).append(f"{alpha:g}")
        for point, told in alphas.items():
            beside = (6, 5) if place % 2 == 0 else (6, -11)  # those of two methods on one point stay apart
            axes.annotate(", ".join(told), point, xytext=beside, textcoords="offset points", fontsize=7)
    axes.set_xlabel(_axis_title(plain[0].measure), fontsize=9, **_AS_IT_IS)


def _axis_title(measure: Measure) -> str:
    """What is drawn, and which direction of it is the better one."""
    return f"{measure.title} ({measure.better} is better)" if measure.better else measure.title


def _style(method: str) -> dict[str, Any]:
    mark = mark_of(method)
    return {"color": mark.colour, "marker": mark.marker, "markersize": 6, "linewidth": 1.3, "label": method}


def _number(row: Row) -> float | None:
    factor = 100 if row.measure.unit == "%" else 1
    return None if row.value is None else factor * row.value.estimate


def _reach(rows: Sequence[Row]) -> list[list[float]]:
    """How far intervals reach below and above; a percentile interval may leave its estimate outside."""
    reach: list[list[float]] = [[], []]
    for row in rows:
        assert row.value is not None
        factor = 100 if row.measure.unit == "%" else 1
        low, high = row.value.ends or (row.value.estimate, row.value.estimate)
        reach[0].append(max(0.0, factor * (row.value.estimate - low)))
        reach[1].append(max(0.0, factor * (high - row.value.estimate)))
    return reach


def to_data_uri(figure: Figure, dpi: int = 130) -> str:
    """Return a figure as a PNG inside a ``data:`` address, for a page that needs no other file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode("ascii")
