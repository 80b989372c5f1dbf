"""``report.html``: one file, no network, every text escaped; samples are shown by a script of the page's own."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from damro._version import __version__
from damro.eval.benchmark import Measure
from damro.eval.records import write_whole
from damro.eval.report.comparison import Comparison, Row
from damro.eval.report.facts import Origin, facts_of
from damro.eval.report.forest import Line, Scale, factor_of, line_of, panels_of, scale_of
from damro.eval.report.marks import mark_of
from damro.eval.report.samples import count_objects, list_samples, make_thumbnails
from damro.eval.report.tables import (
    COST_TITLES,
    by_group,
    cost_rows,
    group_notes,
    is_clear,
    notes,
    show_difference,
    show_value,
    warnings,
)
from damro.eval.report.verdict import Claim, claims_of
from damro.eval.samples import OpenImage

_FAILED_SHOWN = 20
_BLOCK = 50  # pictures that the page's script reads at once
_GLYPHS = {"better": "▲ ", "worse": "▼ ", "": ""}  # of a difference: colour alone would not tell


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


class Card(NamedTuple):
    """What a method does, in claims.

    Attributes:
        method: Its name.
        against: What it is compared with.
        lines: A claim each, with the scale of its line.
    """

    method: str
    against: str
    lines: Sequence[tuple[Line, Scale]]


@dataclass(frozen=True)
class Page:
    """What a report shows.

    Attributes:
        title: Of the page.
        lead: Sentences to read first.
        cards: By a heading, verdicts; shown next.
        facts: What the result depends on: a name, and lines.
        pictures: Shown below the verdicts.
        comparisons: Shown as differences, samples and tables, with notes.
        open_image: Opens the images of the samples; None where they are not at hand.
    """

    title: str
    lead: Sequence[str] = ()
    cards: Mapping[str, Sequence[Card]] = field(default_factory=dict)
    facts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    pictures: Sequence[Picture] = ()
    comparisons: Sequence[Comparison] = ()
    open_image: OpenImage | None = None


def render(page: Page) -> str:
    """Return the HTML of a page.

    The page's own policy lets it load nothing and run its one script only.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("damro.eval.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    folder = files("damro.eval.report") / "templates"
    style, script = ((folder / name).read_text("utf-8") for name in ("report.css", "report.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    listed = [list_samples(one) for one in page.comparisons]
    images = dict.fromkeys(name for one in listed for name in one.images)
    sets = [one.data | {"left_out": one.left_out} for one in listed if one.data["samples"]]
    thumbnails = list(make_thumbnails(images, page.open_image).items())
    blocks = [dict(thumbnails[start : start + _BLOCK]) for start in range(0, len(thumbnails), _BLOCK)]
    data = {"sets": sets, "blocks": {name: number for number, block in enumerate(blocks) for name in block}}
    return environment.get_template("report.html").render(
        page=page,
        tables=[_table(one) for one in page.comparisons],
        data=data,
        blocks=blocks,
        mark_of=mark_of,
        glyphs=_GLYPHS,
        style=Markup(style),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        version=__version__,
    )


def write_report(
    comparison: Comparison,
    path: Path,
    origin: Origin = Origin(),  # noqa: B008
    pictures: Sequence[Picture] = (),
) -> None:
    """Write the report of a comparison.

    Args:
        comparison: What to tell.
        path: The file.
        origin: Where its runs come from.
        pictures: Shown in place of verdicts.
    """
    title = f"{comparison.benchmark.upper()}: {comparison.model}"
    cards = {"": _cards(comparison)} if len(comparison.entries) > 1 and not pictures else {}
    facts = facts_of(comparison, origin)
    page = Page(title, (), cards, facts, pictures, [comparison], origin.open_image)
    write_whole(path, render(page))


def make_cards(claims: Mapping[tuple[str, str], Mapping[str, Claim]]) -> list[Card]:
    """Return a card for each pair of method and what it is compared with; claims of one name share their scale.

    Args:
        claims: By method and what it is compared with: a name of what is measured, and the claim.
    """
    measures: dict[str, Measure] = {name: one.measure for of in claims.values() for name, one in of.items()}
    scales = {
        name: scale_of((of[name].difference for of in claims.values() if name in of), factor_of(measure))
        for name, measure in measures.items()
    }
    return [
        Card(method, against, [(line_of(name, one, scales[name]), scales[name]) for name, one in of.items()])
        for (method, against), of in claims.items()
    ]


def _cards(comparison: Comparison) -> list[Card]:
    against = comparison.baseline.name
    found = claims_of(comparison, comparison.rows())
    return make_cards(
        {(name, against): {claim.measure.label: claim for claim in claims} for name, claims in found.items()}
    )


def _table(comparison: Comparison) -> dict[str, Any]:
    """What the template shows of a comparison."""
    rows = comparison.rows()
    panels = panels_of(rows, comparison.baseline.name)
    groups: list[dict[str, Any]] = []
    for name, of_group in by_group(comparison).items():
        metrics = list(dict.fromkeys(row.measure.title for row in of_group))
        lines = [
            (method, [_cell(row) for row in of_group if row.method == method])
            for method in dict.fromkeys(row.method for row in of_group)
        ]
        judged = any(cell["kind"] for _, cells in lines for cell in cells)
        told = {"name": name, "metrics": metrics, "lines": lines, "notes": group_notes(comparison, name)}
        groups.append(
            told | {"judged": judged, "panels": panels.get(name, []), "open": name == comparison.baseline.whole.name}
        )
    if costs := cost_rows(comparison):
        lines = [(name, [{"value": cell, "difference": "", "kind": ""} for cell in cells]) for name, cells in costs]
        groups.append(
            {"name": "cost", "metrics": COST_TITLES, "lines": lines, "notes": []}
            | {"judged": False, "panels": [], "open": False}
        )
    runs = (*comparison.entries, *comparison.unscored)
    return {
        "title": f"{comparison.benchmark.upper()}, {comparison.model}",
        "baseline": comparison.baseline.name,
        "groups": sorted(groups, key=lambda group: not group["open"]),
        "objects": count_objects(comparison),
        "methods": [entry.name for entry in comparison.entries],
        "notes": notes(comparison),
        "warnings": warnings(comparison),
        "failed": [(entry.name, list(entry.failed.items())[:_FAILED_SHOWN]) for entry in runs if entry.failed],
    }


def _cell(row: Row) -> dict[str, str]:
    kind, shown = "", (row.measure.unit, row.measure.digits)
    if row.difference is not None and is_clear(row.difference, *shown) and row.measure.better:
        kind = "better" if (row.difference.estimate < 0) == (row.measure.better == "lower") else "worse"
    difference = show_difference(row.difference, *shown)
    return {"value": show_value(row.value, *shown), "difference": difference, "kind": kind}
