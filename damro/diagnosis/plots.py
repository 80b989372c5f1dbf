"""Charts of a diagnosis. Imports matplotlib when first used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from damro.diagnosis.headroom import HeadRoom
from damro.diagnosis.knowledge import METHOD, CaptionKnowledge, QuestionKnowledge
from damro.diagnosis.outliers import OutlierFindings
from damro.diagnosis.settings import PROMPTS
from damro.eval.report.marks import colour_of, mark_of
from damro.eval.statistics import Interval
from damro.vision.sources import SOURCE_NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_layers(found: OutlierFindings) -> Figure:
    """Share of the attention that the top k patches of every layer hold, beside an even spread."""
    figure, [axes] = _figure(6.4, 3.2)
    layers = range(len(found.by_layer))
    shares = [100 * one.estimate for one in found.by_layer]
    ends = [one.ends or (one.estimate, one.estimate) for one in found.by_layer]
    axes.plot(layers, shares, color=colour_of(METHOD), marker="o", markersize=4, label=f"top {found.top_k} patches")
    axes.fill_between(
        layers,
        [100 * low for low, _ in ends],
        [100 * high for _, high in ends],
        color=colour_of(METHOD),
        alpha=0.25,
        linewidth=0,
    )
    axes.axhline(100 * found.uniform, color="#7f7f7f", linestyle="--", label="even spread")
    axes.axvline(found.layer, color="#7f7f7f", linestyle=":", label="DAMRO's layer")
    axes.set_xlabel("layer of the vision tower")
    axes.set_ylabel(f"% of the {SOURCE_NAMES[found.source]}")
    axes.set_ylim(0, 103)  # room for the marks at 100
    axes.legend(fontsize=8)
    return figure


def draw_knowledge(questions: QuestionKnowledge | None, captions: CaptionKnowledge | None) -> Figure:
    """AUCs under every second prompt."""
    panels: list[tuple[str, Mapping[str, Interval | None]]] = []
    if questions is not None:
        panels += [
            ("questions: present\nover denied", questions.present),
            ("questions: hallucinated\nover denied", questions.hallucinated),
        ]
    if captions is not None:
        panels.append(("captions: hallucinated\nover true words", captions.hallucinated))
    figure, axes = _figure(3.1 * len(panels) + 0.8, 2.3, len(panels))
    for place, (title, values) in enumerate(panels):
        _draw_values(axes[place], values, 1, named=place == 0)
        axes[place].axvline(0.5, color="#7f7f7f", linestyle="--", linewidth=1)
        axes[place].set_title(title, fontsize=9)
        axes[place].set_xlabel("AUC", fontsize=9)
        axes[place].set_xlim(0, 1)
    return figure


def draw_changes(rooms: Mapping[str, HeadRoom]) -> Figure:
    """What the best contrast of every second prompt changes on images held out.

    Args:
        rooms: by what is changed.
    """
    figure, axes = _figure(3.6 * len(rooms) + 0.8, 2.3, len(rooms))
    for place, (title, room) in enumerate(rooms.items()):
        _draw_values(axes[place], {name: effect.change for name, effect in room.best.items()}, 100, named=place == 0)
        axes[place].axvline(0, color="#7f7f7f", linestyle="--", linewidth=1)
        axes[place].set_title(title, fontsize=9)
        axes[place].set_xlabel("points, images held out", fontsize=9)
    return figure


def _figure(width: float, height: float, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes: list[Axes] = figure.subplots(1, panels, squeeze=False)[0].tolist()
    for one in axes:
        one.tick_params(labelsize=8)
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _draw_values(axes: Axes, values: Mapping[str, Interval | None], factor: int, *, named: bool) -> None:
    """A point with its interval for every second prompt."""
    for place, name in enumerate(PROMPTS):
        value = values[name]
        if value is None:
            continue
        middle = factor * value.estimate
        low, high = value.ends or (value.estimate, value.estimate)
        # A percentile interval may leave its estimate outside; a bar of negative length cannot be drawn.
        reach = [[max(0.0, middle - factor * low)], [max(0.0, factor * high - middle)]]
        mark = mark_of(name)
        axes.errorbar(middle, place, xerr=reach, color=mark.colour, marker=mark.marker, capsize=3, linewidth=1.5)
    axes.set_yticks(range(len(PROMPTS)), PROMPTS if named else [""] * len(PROMPTS))
    axes.set_ylim(len(PROMPTS) - 0.5, -0.5)
