"""``report.html``: one file, no network, every text escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from damro._version import __version__
from damro.eval.chair.scoring import CaptionScore
from damro.eval.records import write_whole
from damro.eval.report.comparison import Comparison, Row
from damro.eval.report.plots import draw_bars, to_data_uri
from damro.eval.report.tables import (
    COST_TITLES,
    by_group,
    cost_rows,
    group_notes,
    is_clear,
    notes,
    show_difference,
    show_value,
)

_FAILED_SHOWN = 20


class Picture(NamedTuple):
    """A picture of a page.

    Attributes:
        source: A ``data:`` address.
        description: What it shows, for those who do not see it.
        caption: Below it.
    """

    source: str
    description: str
    caption: str


class Piece(NamedTuple):
    """A piece of a caption: plain, or a hallucinated object."""

    text: str
    hallucinated: bool


@dataclass(frozen=True)
class Example:
    """One image and what each method says about it.

    Attributes:
        title: Names the image.
        captions: By method, the pieces of its caption.
        picture: The image, if it is at hand.
    """

    title: str
    captions: Mapping[str, Sequence[Piece]]
    picture: Picture | None = None


@dataclass(frozen=True)
class Page:
    """What a report shows.

    Attributes:
        title: Of the page.
        lead: Sentences to read first.
        facts: What the result depends on.
        pictures: Shown first.
        examples: Captions with hallucinated objects marked; shown next.
        charts: Pictures of the scores.
        comparisons: Shown as tables, with notes.
    """

    title: str
    lead: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    pictures: Sequence[Picture] = ()
    examples: Sequence[Example] = ()
    charts: Sequence[Picture] = ()
    comparisons: Sequence[Comparison] = ()


def render(page: Page) -> str:
    """Return the HTML of a page."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("damro.eval.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.get_template("report.html")
    return template.render(page=page, tables=[_table(one) for one in page.comparisons], version=__version__)


def write_report(comparison: Comparison, path: Path) -> None:
    """Write the report of a comparison."""
    title = f"{comparison.benchmark.upper()}: {comparison.model}"
    page = Page(
        title,
        facts={"Benchmark": comparison.benchmark, "Model": comparison.model, "Baseline": comparison.baseline.name},
        examples=caption_examples(comparison, 5),
        charts=[bars(comparison)] if find_spec("matplotlib") else [],
        comparisons=[comparison],
    )
    write_whole(path, render(page))


def bars(comparison: Comparison) -> Picture:
    """Return the bars of a comparison's main metrics."""
    rows = comparison.rows()
    panels: list[list[Row]] = []
    for group in dict.fromkeys(row.group for row in rows):
        of_group = [row for row in rows if row.group == group and row.measure.plotted]
        for metric in dict.fromkeys(row.metric for row in of_group):
            panels.append([row for row in of_group if row.metric == metric])
    title = f"{comparison.benchmark.upper()}, {comparison.model}: bars with 95 % intervals"
    names = ", ".join(entry.name for entry in comparison.entries)
    return Picture(to_data_uri(draw_bars(panels, title)), f"Bars of {names}; the tables hold the numbers.", title)


def caption_examples(comparison: Comparison, count: int) -> list[Example]:
    """Return the captions of the first images about which methods say different things."""
    if not comparison.baseline.groups[0].captions:
        return []
    by_method = {
        entry.name: {record.image_id: record for record in entry.groups[0].captions} for entry in comparison.entries
    }
    examples: list[Example] = []
    for image in by_method[comparison.baseline.name]:
        captions = {name: pieces(records[image]) for name, records in by_method.items()}
        if len({tuple(found) for found in captions.values()}) > 1 and len(examples) < count:
            examples.append(Example(f"Image {image}", captions))
    return examples


def pieces(record: CaptionScore) -> tuple[Piece, ...]:
    """Cut a caption at its hallucinated objects."""
    found, place = [], 0
    for mention in record.hallucinated:
        found += [Piece(record.caption[place : mention.start], False)]
        found += [Piece(record.caption[mention.start : mention.end], True)]
        place = mention.end
    return tuple(piece for piece in [*found, Piece(record.caption[place:], False)] if piece.text)


def _table(comparison: Comparison) -> dict[str, Any]:
    """What the template shows of a comparison."""
    groups: list[dict[str, Any]] = []
    for name, of_group in by_group(comparison).items():
        metrics = list(dict.fromkeys(row.measure.title for row in of_group))
        lines = [
            (method, [_cell(row) for row in of_group if row.method == method])
            for method in dict.fromkeys(row.method for row in of_group)
        ]
        groups.append({"name": name, "metrics": metrics, "lines": lines, "notes": group_notes(comparison, name)})
    if costs := cost_rows(comparison):
        lines = [(name, [{"value": cell, "difference": "", "kind": ""} for cell in cells]) for name, cells in costs]
        groups.append({"name": "cost", "metrics": COST_TITLES, "lines": lines, "notes": []})
    runs = (*comparison.entries, *comparison.unscored)
    failed = [(entry.name, list(entry.failed.items())[:_FAILED_SHOWN]) for entry in runs if entry.failed]
    title = f"{comparison.benchmark.upper()}, {comparison.model}"
    return {"title": title, "groups": groups, "notes": notes(comparison), "failed": failed}


def _cell(row: Row) -> dict[str, str]:
    kind, shown = "", (row.measure.unit, row.measure.digits)
    if row.difference is not None and is_clear(row.difference, *shown) and row.measure.better:
        kind = "better" if (row.difference.estimate < 0) == (row.measure.better == "lower") else "worse"
    difference = show_difference(row.difference, *shown)
    return {"value": show_value(row.value, *shown), "difference": difference, "kind": kind}
