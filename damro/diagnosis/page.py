"""A diagnosis as one HTML file: no network, no script, every text escaped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from damro._version import __version__
from damro.diagnosis.diagnose import Diagnosis, Example
from damro.diagnosis.headroom import HeadRoom
from damro.diagnosis.plots import draw_changes, draw_knowledge, draw_layers
from damro.diagnosis.verdict import FEWEST, Claim
from damro.diagnosis.words import TASKS, caveats, number, sections, summary
from damro.eval.report.html import Picture, Piece
from damro.eval.report.plots import to_data_uri
from damro.figures import draw_overlay
from damro.pages.explain_page import image_uri
from damro.vision.sources import SOURCE_NAMES

_STATES = {True: ("✓", "holds"), False: ("✗", "fails"), None: ("?", "open")}
_CHANGED = {"questions": "accuracy", "captions": "words of objects"}


class Shown(NamedTuple):
    """An example on the page.

    Attributes:
        title: Names the image and what it shows.
        caption: In pieces; empty if there is none.
        pictures: The image, where the vision tower looks, and where the language model looks.
    """

    title: str
    caption: Sequence[Piece]
    pictures: Sequence[Picture]


def render_page(found: Diagnosis, name: str) -> str:
    """The page.

    Args:
        found: what was found.
        name: the model's name.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("damro.diagnosis"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    charts = _charts(found)
    return environment.get_template("diagnosis.html").render(
        title=f"damro diagnose: {name}",
        summary=summary(found),
        caveats=caveats(found),
        facts=_facts(found, name),
        sections=[(heading, lines, charts.get(heading)) for heading, lines in sections(found).items()],
        claims=[(TASKS[task], [_row(claim) for claim in of_task]) for task, of_task in found.judgement.claims.items()],
        fewest=FEWEST,
        grids=[_grid(task, room) for task, room in _rooms(found).items()],
        examples=[_shown(example, found) for example in found.examples],
        version=__version__,
    )


def _facts(found: Diagnosis, name: str) -> dict[str, str]:
    return {
        "Model": f"{name} ({found.family})",
        "Images": str(found.images),
        "Flagged patches": f"{found.outliers.top_k}, by {SOURCE_NAMES[found.outliers.source]}",
        "Matcher": found.matcher,
    }


def _charts(found: Diagnosis) -> dict[str, Picture]:
    """By the heading of their section."""
    layers = Picture(
        to_data_uri(draw_layers(found.outliers)),
        "Share of the attention by layer; the numbers are in diagnosis.json.",
        f"Share of the attention to patches that the {found.outliers.top_k} patches with most of it hold in each "
        "layer, with 95 % intervals.",
    )
    charts = {"Outliers": layers}
    if found.questions is not None or found.captions is not None:
        charts["What do the outliers know?"] = Picture(
            to_data_uri(draw_knowledge(found.questions, found.captions)),
            "AUC under each second prompt; the numbers are in diagnosis.json.",
            "How well the log-probability under each second prompt tells two kinds of objects apart, with 95 % "
            "intervals. Dashed: chance.",
        )
    rooms = _rooms(found)
    if rooms:
        charts["Head room"] = Picture(
            to_data_uri(draw_changes({f"{TASKS[task]}: {_CHANGED[task]}": room for task, room in rooms.items()})),
            "Change under each second prompt's best contrast; the numbers are in the text.",
            "What the best contrast of each second prompt changes on the images held out, with 95 % intervals.",
        )
    return charts


def _rooms(found: Diagnosis) -> dict[str, HeadRoom]:
    rooms = {"questions": found.question_room, "captions": found.caption_room}
    return {task: room for task, room in rooms.items() if room is not None}


def _row(claim: Claim) -> dict[str, str]:
    """A claim as a line of a table."""
    glyph, state = _STATES[claim.holds]
    return {
        "text": claim.text,
        "value": number(claim.value, signed=True),
        "least": f"{claim.least:g}",
        "images": str(claim.images),
        "glyph": glyph,
        "state": state,
    }


def _grid(task: str, room: HeadRoom) -> dict[str, Any]:
    """The change under every alpha and beta, in points."""
    rows = [
        (name, f"{alpha:g}", [f"{100 * value:+z.1f}" for value in row])
        for name, table in room.change.items()
        for alpha, row in zip(room.alphas, table, strict=True)
    ]
    return {"title": f"{TASKS[task]}: {_CHANGED[task]}", "betas": [f"{beta:g}" for beta in room.betas], "rows": rows}


def _shown(example: Example, found: Diagnosis) -> Shown:
    outliers, attention = found.outliers, SOURCE_NAMES[found.outliers.source]
    original = Picture(image_uri(example.picture), f"{example.name}, as the vision tower sees it", "")
    pictures = [original, _overlay(example, example.weights, f"{attention}, layer {outliers.layer}")]
    if example.map is not None:
        pictures.append(_overlay(example, example.map, "language model, mean over the caption's tokens"))
    title = f"{example.name} shows: {', '.join(example.objects) or 'nothing that is named'}"
    return Shown(title, _pieces(example), pictures)


def _overlay(example: Example, values: Tensor, what: str) -> Picture:
    figure = draw_overlay(example.picture, values, title=what, outliers=example.flagged)
    described = f"{example.name}: {what}; the flagged patches outlined and numbered."
    return Picture(to_data_uri(figure, dpi=80), described, "")


def _pieces(example: Example) -> list[Piece]:
    """The caption, cut at the words of absent objects."""
    if example.caption is None:
        return []
    found, place = [], 0
    for start, end in example.hallucinated:
        found += [Piece(example.caption[place:start], False), Piece(example.caption[start:end], True)]
        place = end
    return [piece for piece in [*found, Piece(example.caption[place:], False)] if piece.text]
