"""Pictures of attention and probabilities. The one importer of matplotlib.

Every function returns a `matplotlib.figure.Figure` that belongs to no window; :func:`save_figure` writes it. Colour
maps are perceptually even and safe for colour-blind readers, and nothing is told by colour alone.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from textwrap import fill, shorten
from typing import Any, Literal

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image
from torch import Tensor

from damro.errors import InputsError, ParameterError
from damro.inspection import ContrastInspection, ViTInspection
from damro.vision.sources import SOURCE_NAMES

Interpolation = Literal["bilinear", "nearest"]

MAP = "viridis"
_BLUE, _ORANGE, _GREEN = "#0072B2", "#E69F00", "#009E73"  # Okabe and Ito's palette
_NEUTRAL = "#808080"  # contrast 3.9 to 1 on white, 3.8 to 1 on #27272a
_FORMATS = (".png", ".svg", ".pdf")
_OPACITY = 0.6
_AS_IT_IS: dict[str, Any] = {
    "parse_math": False
}  # names, words and titles: a dollar sign in them would begin a formula
_TITLE_WIDTH = 60  # characters; matplotlib's own wrapping upsets the constrained layout


def draw_overlay(
    image: Image.Image,
    values: Tensor,
    *,
    title: str,
    label: str = "share of attention",
    outliers: Sequence[tuple[int, int]] = (),
    object_mask: Tensor | None = None,
    interpolation: Interpolation = "nearest",
    colormap: str = MAP,
    beside: bool = False,
) -> Figure:
    """A map of patches over the image.

    Args:
        image: what the map covers from edge to edge; see :func:`damro.inspection.seen_image`.
        values: `(rows, columns)`.
        title: says layer, heads and model.
        label: what the colour bar measures.
        outliers: row and column of patches to outline, numbered in this order.
        object_mask: boolean `(H, W)` over the same extent at any resolution; its outline is drawn dashed.
        interpolation: "nearest" shows the patches as they are, "bilinear" blends them.
        colormap: of matplotlib's.
        beside: shows the image itself on the left.

    Raises:
        InputsError: if `values` is no table, or an outlier lies outside it.
        ParameterError: if there is no such colour map.
    """
    check_colormap(colormap)
    figure = Figure(figsize=(11.2 if beside else 6.4, 5.6), layout="constrained")
    *left, axes = figure.subplots(1, 1 + beside, squeeze=False)[0]
    for original in left:
        original.imshow(image)
        original.set_axis_off()
    limits = float(values.min()), float(values.max())
    shown = _paint_map(axes, image, values, interpolation, limits, colormap)
    _outline_patches(axes, image, values, outliers)
    if object_mask is not None:
        height, width = object_mask.shape
        across = (torch.arange(width) + 0.5) * image.width / width
        down = (torch.arange(height) + 0.5) * image.height / height
        axes.contour(
            across.numpy(), down.numpy(), object_mask.float().numpy(),
            levels=[0.5], colors="white", linestyles="dashed", linewidths=1.5,
        )  # fmt: skip
    axes.set_title(fill(title, _TITLE_WIDTH), **_AS_IT_IS)
    figure.colorbar(shown, ax=axes).set_label(label, **_AS_IT_IS)
    return figure


def draw_strip(
    image: Image.Image,
    maps: Tensor,
    captions: Sequence[str],
    *,
    title: str,
    label: str = "share of attention",
    columns: int = 6,
    interpolation: Interpolation = "bilinear",
    colormap: str = MAP,
    own_scales: bool = False,
) -> Figure:
    """The image itself, and one small map for each word, on one scale or each on its own.

    Args:
        image: what the maps cover.
        maps: `(T, rows, columns)`.
        captions: T words.
        title: says layers, heads and model.
        label: what the colour bar measures.
        columns: pictures in a row.
        interpolation: see :func:`draw_overlay`.
        colormap: of matplotlib's.
        own_scales: every map goes from its own lowest to its own highest value, which stands below it. Maps of words
            differ in what all patches get; on one scale most of them look blank.

    Raises:
        InputsError: if there is no map, or not one caption a map.
        ParameterError: if there is no such colour map.
    """
    check_colormap(colormap)
    if maps.ndim != 3 or len(maps) != len(captions) or not len(maps):
        raise InputsError(
            f"maps must be (T, rows, columns) with one caption each, got shape {tuple(maps.shape)} "
            f"and {len(captions)} captions"
        )
    across = min(columns, 1 + len(maps))
    down = math.ceil((1 + len(maps)) / across)
    figure = Figure(figsize=(1.7 * across + 1.2, 1.95 * down + 0.6), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    original, *panels = grid.flat
    original.imshow(image)
    original.set_axis_off()
    original.set_title("the image", fontsize=9, style="italic")
    limits = float(maps.min()), float(maps.max())
    for number, axes in enumerate(panels):
        if number >= len(maps):
            axes.set_axis_off()
            continue
        if own_scales:
            limits = float(maps[number].min()), float(maps[number].max())
            axes.set_xlabel(f"to {limits[1]:.2%}", fontsize=8)
        shown = _paint_map(axes, image, maps[number], interpolation, limits, colormap)
        axes.set_title(_short(captions[number]), fontsize=9, **_AS_IT_IS)
    figure.suptitle(fill(title, 18 * across), **_AS_IT_IS)
    bar = figure.colorbar(shown, ax=grid, shrink=0.8)
    if own_scales:
        bar.set_ticks([limits[0], limits[1]], labels=["lowest", "highest"])
        label = f"{label}, each word's own"
    bar.set_label(label, **_AS_IT_IS)
    return figure


def draw_heads(inspection: ViTInspection, *, model: str, tile: int = 0, colormap: str = MAP) -> Figure:
    """The vision tower's attention, every head in every layer looked at, on one logarithmic scale.

    The last column shows all heads taken as one. The layer that ranks the patches for DAMRO is marked.

    Args:
        inspection: the vision tower's.
        model: its name, for the title.
        tile: row of the tile in the batch.
        colormap: of matplotlib's.

    Raises:
        ParameterError: if there is no such colour map.
    """
    check_colormap(colormap)
    layers, heads = inspection.per_head.shape[:2]
    maps = torch.cat([inspection.per_head[:, :, tile], inspection.merged[:, None, tile]], dim=1)
    maps = maps.reshape(layers, heads + 1, *inspection.grid)
    figure = Figure(figsize=(0.9 * (heads + 1) + 1.6, 0.95 * layers + 0.9), layout="constrained")
    grid = figure.subplots(layers, heads + 1, squeeze=False)
    tiny = torch.finfo(maps.dtype).tiny
    norm = LogNorm(vmin=max(float(maps.min()), tiny), vmax=max(float(maps.max()), 2 * tiny))
    for row, number in enumerate(inspection.layers):
        for column in range(heads + 1):
            axes = grid[row, column]
            shown = axes.imshow(maps[row, column].numpy(), cmap=colormap, norm=norm)
            axes.set_xticks([])
            axes.set_yticks([])
            if row == 0:
                axes.set_title(f"head {column}" if column < heads else "merged", fontsize=8)
            if column == 0:
                mark = "*" if number == inspection.layer else ""
                axes.set_ylabel(f"layer {number}{mark}", fontsize=8)
    title = f"{SOURCE_NAMES[inspection.source]} by layer and head, {model} (* ranks the patches)"
    figure.suptitle(title, **_AS_IT_IS)
    figure.colorbar(shown, ax=grid, label="share of attention (log scale)", shrink=0.8)
    return figure


def draw_probabilities(steps: ContrastInspection, step: int, words: Sequence[str], *, title: str) -> Figure:
    """Bars of the likeliest tokens of one step: full prompt, negative prompt, after contrast.

    Args:
        steps: from :func:`damro.inspection.inspect_contrast`.
        step: which generated token.
        words: how the step's n candidates are spelled.
        title: says step and model.

    Raises:
        InputsError: if there is no such step, or not one word a candidate.
    """
    if not 0 <= step < len(steps.tokens):
        raise InputsError(f"step must be from 0 to {len(steps.tokens) - 1}, got {step}")
    candidates = steps.candidates[step].tolist()
    if len(words) != len(candidates):
        raise InputsError(f"words must spell the {len(candidates)} candidates, got {len(words)}")
    figure = Figure(figsize=(6.4, 0.62 * len(words) + 1.4), layout="constrained")
    axes = figure.subplots()
    series = (
        ("full prompt", steps.candidate_full, _BLUE, ""),
        ("negative prompt", steps.candidate_negative, _ORANGE, "///"),
        ("after contrast", steps.candidate_contrast, _GREEN, "..."),
    )
    for number, (name, values, colour, hatch) in enumerate(series):
        at = [place + (number - 1) * 0.27 for place in range(len(words))]
        axes.barh(at, values[step].exp().tolist(), 0.25, label=name, color=colour, hatch=hatch, edgecolor="white")
    chosen, vetoed = int(steps.tokens[step]), steps.vetoed[step].tolist()
    labels = []
    for token, word, out in zip(candidates, words, vetoed, strict=True):
        labels.append(_short(word) + (" (chosen)" if token == chosen else " (taken out)" if out else ""))
    axes.set_yticks(range(len(words)), labels, **_AS_IT_IS)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("probability")
    axes.set_title(fill(title, _TITLE_WIDTH), **_AS_IT_IS)
    axes.legend(loc="lower right")
    return figure


def suit_any_paper(figure: Figure) -> Figure:
    """Takes the paper away from behind a figure, and writes and rules in a grey that shows on light and on dark.

    What is written on a map has an outline of its own, and stays; so does the white behind a colour bar, since
    its colours let the paper through.

    Args:
        figure: it is changed.

    Returns:
        The figure.
    """
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.tick_params(colors=_NEUTRAL)
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
            text.set_color(_NEUTRAL)
        for spine in axes.spines.values():
            spine.set_edgecolor(_NEUTRAL)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Writes a figure as PNG, SVG or PDF, by the name's ending, in one step: nobody finds half of it.

    Raises:
        ParameterError: if the ending is another.
    """
    target = Path(path)
    check_format(target)
    part = target.with_name(f"{target.stem}.{os.getpid()}.part{target.suffix}")
    try:
        figure.savefig(part, dpi=150)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return target


def check_format(path: str | os.PathLike[str]) -> None:
    """Checks the ending before anything is computed.

    Raises:
        ParameterError: if it is not one of ours.

    Example:
        >>> check_format("map.jpg")
        Traceback (most recent call last):
        damro.decoding.errors.ParameterError: file must end in .png, .svg or .pdf, got 'map.jpg'
    """
    if Path(path).suffix.lower() not in _FORMATS:
        raise ParameterError(f"file must end in .png, .svg or .pdf, got {os.fspath(path)!r}")


def check_colormap(name: str) -> None:
    """Checks the name of a colour map before anything is computed.

    Raises:
        ParameterError: if matplotlib has none of that name.

    Example:
        >>> check_colormap("virids")
        Traceback (most recent call last):
        damro.decoding.errors.ParameterError: colormap must be one of matplotlib's, got 'virids'; did you ...
    """
    if name not in colormaps:
        near = get_close_matches(name, list(colormaps), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "such as 'viridis', 'magma' or 'cividis'"
        raise ParameterError(f"colormap must be one of matplotlib's, got {name!r}; {hint}")


def _paint_map(
    axes: Axes,
    image: Image.Image,
    values: Tensor,
    interpolation: Interpolation,
    limits: tuple[float, float],
    colormap: str,
) -> Any:
    """The image in grey, so that colours are the map's alone, and the map over it."""
    if values.ndim != 2:
        raise InputsError(f"values must be (rows, columns), got shape {tuple(values.shape)}")
    extent = (0.0, float(image.width), float(image.height), 0.0)
    axes.imshow(image.convert("L"), cmap="gray", vmin=0, vmax=255, extent=extent)
    shown = axes.imshow(
        values.numpy(), cmap=colormap, alpha=_OPACITY, extent=extent,
        interpolation=interpolation, vmin=limits[0], vmax=limits[1],
    )  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])
    return shown


def _outline_patches(axes: Axes, image: Image.Image, values: Tensor, patches: Sequence[tuple[int, int]]) -> None:
    """Numbered outlines, white on black so that they stand out on any colour."""
    rows, columns = values.shape
    height, width = image.height / rows, image.width / columns
    for rank, (row, column) in enumerate(patches, start=1):
        if not (0 <= row < rows and 0 <= column < columns):
            raise InputsError(f"outliers must lie on the {rows} x {columns} patches, got ({row}, {column})")
        corner = column * width, row * height
        for colour, line in (("black", 3.0), ("white", 1.2)):
            axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=line))
        axes.text(
            corner[0] + width / 2, corner[1] + height / 2, str(rank), color="white", fontsize=7,
            ha="center", va="center", path_effects=[withStroke(linewidth=2, foreground="black")],
        )  # fmt: skip


def _short(text: str) -> str:
    """Text cut to a label's length."""
    return shorten(text, 24, placeholder="...")
