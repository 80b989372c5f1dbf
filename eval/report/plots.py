"""Bars with intervals: metrics of several methods beside each other. Imports matplotlib when first used."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from damro.eval.report.comparison import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with colour-blindness tell apart: the baseline, the method, controls, sampling.
_COLOURS = {"baseline": "#7f7f7f", "damro": "#0072b2", "control": "#e69f00", "sampling": "#56b4e9"}
_AS_IT_IS: dict[str, Any] = {
    "parse_math": False
}  # names of methods, splits and runs: a dollar sign in them would begin a formula


def colour_of(method: str) -> str:
    """Return the colour of a method's bar.

    Example:
        >>> colour_of("damro") == colour_of("damro@1") != colour_of("random-k")
        True
    """
    if method.startswith("damro"):
        return _COLOURS["damro"]
    if method.startswith("greedy"):
        return _COLOURS["baseline"]
    return _COLOURS["sampling" if method.startswith("sample") else "control"]


def draw_bars(panels: Sequence[Sequence[Row]], title: str) -> Figure:
    """Draw a panel a metric, a bar a method, with its 95 % interval.

    Args:
        panels: The rows of each panel, all of one group and metric.
        title: Of the figure.
    """
    from matplotlib.figure import Figure

    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    tallest = max(len(rows) for rows in panels)
    figure = Figure(figsize=(3.6 * columns + 1, lines * (0.34 * tallest + 1.1) + 0.4), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flatten().tolist()
    for place, rows in enumerate(panels):
        _draw_panel(axes[place], rows, named=place % columns == 0)
    for spare in axes[len(panels) :]:
        spare.set_axis_off()
    figure.suptitle(title, **_AS_IT_IS)
    return figure


def _draw_panel(axes: Axes, rows: Sequence[Row], *, named: bool) -> None:
    for place, row in enumerate(rows):
        if row.value is None:
            continue
        factor = 100 if row.measure.unit == "%" else 1
        value, low, high = (factor * number for number in (row.value.estimate, row.value.low, row.value.high))
        axes.barh(place, value, color=colour_of(row.method), height=0.7)
        if row.value.ends is not None:
            # A percentile interval may leave its estimate outside; a bar of negative length cannot be drawn.
            reach = [[max(0.0, value - low)], [max(0.0, high - value)]]
            axes.errorbar(value, place, xerr=reach, color="black", capsize=3, linewidth=1)
    axes.set_yticks(range(len(rows)), [row.method for row in rows] if named else [""] * len(rows), **_AS_IT_IS)
    axes.invert_yaxis()
    axes.set_title(f"{rows[0].group}", fontsize=9, **_AS_IT_IS)
    axes.set_xlabel(rows[0].measure.title, fontsize=9, **_AS_IT_IS)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def to_data_uri(figure: Figure, dpi: int = 130) -> str:
    """Return a figure as a PNG inside a ``data:`` address, for a page that needs no other file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode("ascii")
