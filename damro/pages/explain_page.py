"""An explanation as one HTML file that needs nothing else: no network, no other file, and no mouse."""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import jinja2
import torch
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from damro.inspection import ContrastInspection
from damro.pages.explain import ExplainedAnswer, Explanation, GoneWord
from damro.vision.sources import SOURCE_NAMES

_TRUTH = {None: "", True: "in the picture", False: "not in the picture"}
_TITLES = {"greedy": "Greedy search", "damro": "With DAMRO"}


def render_page(explanation: Explanation) -> str:
    """Renders the page.

    All text is escaped. The page's own policy lets it load nothing and run its one script only.
    """
    templates = files("damro.pages") / "templates"
    style = (templates / "explain.css").read_text("utf-8")
    script = (templates / "explain.js").read_text("utf-8")
    digest = hashlib.sha256(script.encode()).digest()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((templates / "explain.html").read_text("utf-8"))
    return template.render(
        page=_page_values(explanation),
        style=Markup(style),
        script=Markup(script),
        script_hash=f"sha256-{base64.b64encode(digest).decode()}",
    )


def _page_values(explanation: Explanation) -> dict[str, Any]:
    """What the template needs, as strings and numbers."""
    vit = explanation.vit
    count = int(vit.outliers.count[0])
    rows, columns = vit.grid
    return {
        "prompt": explanation.prompt,
        "model": explanation.model,
        "alpha": f"{explanation.alpha:g}",
        "beta": f"{explanation.beta:g}",
        "layer": vit.layer,
        "heads": vit.heads,
        "rows": rows,
        "columns": columns,
        "width": explanation.picture.width,
        "height": explanation.picture.height,
        "picture": image_uri(explanation.picture),
        "outliers": vit.outliers.positions[0, :count].tolist(),
        "source": vit.source,
        "attention": SOURCE_NAMES[vit.source],
        "seen": pack_map(vit.weights[0]),
        "answers": [_answer_values(answer, count) for answer in (explanation.greedy, explanation.damro)],
        "gone": [_gone_values(explanation.greedy, word) for word in explanation.gone()],
        "judged": any(there is not None for there in (*explanation.greedy.in_picture, *explanation.damro.in_picture)),
    }


def image_uri(image: Image.Image) -> str:
    """The image as a data URI (PNG)."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def pack_map(values: Tensor) -> dict[str, str]:
    """A map in one byte a patch, 0 for zero and 255 for the largest: `cells` in base64, `peak` for the reader.

    Example:
        >>> import torch
        >>> pack_map(torch.tensor([[0.0, 0.1], [0.2, 0.05]]))
        {'cells': 'AID/QA==', 'peak': '0.2'}
    """
    peak = float(values.max())
    scaled = (values.flatten() / peak * 255).round() if peak > 0 else torch.zeros(values.numel())
    return {"cells": base64.b64encode(bytes(scaled.int().tolist())).decode(), "peak": f"{peak:.3g}"}


def _answer_values(answer: ExplainedAnswer, outliers: int) -> dict[str, Any]:
    words = []
    for number, word in enumerate(answer.words):
        words.append(
            {
                "id": f"{answer.method}-{number}",
                "text": word.text,
                "differs": answer.differs[number],
                "truth": _TRUTH[answer.in_picture[number]],
                "overlap": round(float(answer.overlap[number]) * outliers),
                "steps": [_step_values(answer, step) for step in word.tokens],
                **pack_map(answer.maps[number]),
            }
        )
    return {"method": answer.method, "title": _TITLES[answer.method], "words": words}


def _gone_values(greedy: ExplainedAnswer, word: GoneWord) -> dict[str, str]:
    """A word that is gone: what each prompt thought of it where the greedy answer says it."""
    shares = (greedy.steps.full, greedy.steps.negative, greedy.steps.contrast)
    full, negative, contrast = (percent(math.exp(float(of[word.step]))) for of in shares)
    truth = _TRUTH[word.in_picture]
    return {"text": word.text, "truth": truth, "full": full, "negative": negative, "contrast": contrast}


def _step_values(answer: ExplainedAnswer, step: int) -> dict[str, Any]:
    """The table of one token: the likeliest ones, and the chosen one if it is not among them."""
    steps = answer.steps
    chosen = int(steps.tokens[step])
    rows = []
    for place, token in enumerate(steps.candidates[step].tolist()):
        shares = [
            steps.candidate_full[step, place],
            steps.candidate_negative[step, place],
            steps.candidate_contrast[step, place],
        ]
        out = bool(steps.vetoed[step, place])
        rows.append(_row_values(answer.candidates[step][place], shares, token == chosen, out))
    if chosen not in steps.candidates[step].tolist():
        shares = [steps.full[step], steps.negative[step], steps.contrast[step]]
        rows.append(_row_values(answer.tokens[step], shares, True, False))
    return {"caption": f"token {step + 1}: {answer.tokens[step]}", "rows": rows}


def _row_values(text: str, shares: list[Tensor], chosen: bool, out: bool) -> dict[str, Any]:
    names = ("full", "negative", "contrast")
    return {
        "text": text,
        "mark": "chosen" if chosen else "taken" if out else "",
        "note": "chosen" if chosen else "passed over" if out else "",
        "shares": [(name, _share(share)) for name, share in zip(names, shares, strict=True)],
    }


def _share(log_probability: Tensor) -> dict[str, str]:
    """Width of a bar that is at most 60 percent of its cell, and the number beside it."""
    share = math.exp(float(log_probability))
    return {"width": f"{share * 60:.1f}", "text": percent(share)}


def percent(share: float) -> str:
    """A share for the eye.

    Example:
        >>> percent(0.1234), percent(0.00001), percent(0.0)
        ('12.3%', '<0.1%', '0%')
    """
    if share == 0:
        return "0%"
    return f"{share:.1%}" if share >= 0.0005 else "<0.1%"


def taken_rows(
    steps: ContrastInspection, tokens: Sequence[str], candidates: Sequence[Sequence[str]]
) -> list[dict[str, Any]]:
    """One row for each step where the contrast took the likeliest token out, ready to be read.

    Args:
        steps: T steps.
        tokens: T spelled tokens.
        candidates: T x n spelled candidates.

    Returns:
        Dicts of `place` (from 1), `out`, `out_full`, `out_negative`, `chosen`, `chosen_full`, `chosen_negative`.
    """
    rows = []
    for step in range(len(steps.tokens)):
        if bool(steps.vetoed[step, 0]):
            rows.append(
                {
                    "place": step + 1,
                    "out": candidates[step][0],
                    "out_full": percent(math.exp(float(steps.candidate_full[step, 0]))),
                    "out_negative": percent(math.exp(float(steps.candidate_negative[step, 0]))),
                    "chosen": tokens[step],
                    "chosen_full": percent(math.exp(float(steps.full[step]))),
                    "chosen_negative": percent(math.exp(float(steps.negative[step]))),
                }
            )
    return rows
