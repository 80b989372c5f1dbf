"""Draws docs/idea.svg, the picture of the method in the README: ``python docs/idea.py``.

It is a drawing, not a measurement: the patches and bars are chosen to explain.
"""

from __future__ import annotations

from pathlib import Path

INK, SOFT, LINE = "#1f2430", "#5b6472", "#9aa3b2"
PATCH, OUTLIER, PANEL, CARD = "#c9d6ea", "#d1495b", "#eef2f8", "#ffffff"
FONT = "font-family='system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif'"
OUTLIERS = {(0, 4), (1, 0), (4, 5), (5, 1)}
OBJECT = {(2, 2), (2, 3), (3, 2), (3, 3), (3, 4)}


def text(
    x: float, y: float, words: str, size: int = 15, fill: str = INK, weight: int = 400, anchor: str = "start"
) -> str:
    """One line of text."""
    return f"<text x='{x}' y='{y}' {FONT} font-size='{size}' fill='{fill}' font-weight='{weight}'>{words}</text>"


def box(x: float, y: float, width: float, height: float, fill: str, stroke: str = "none", radius: int = 3) -> str:
    """A rectangle."""
    return (
        f"<rect x='{x}' y='{y}' width='{width}' height='{height}' rx='{radius}' fill='{fill}' "
        f"stroke='{stroke}' stroke-width='1.5'/>"
    )


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """A line with a head."""
    return f"<path d='M{x1} {y1} L{x2} {y2}' stroke='{SOFT}' stroke-width='2' fill='none' marker-end='url(#head)'/>"


def grid(x: float, y: float, cell: float) -> list[str]:
    """The image as patches, outliers marked."""
    parts = []
    for row in range(6):
        for column in range(6):
            place = (row, column)
            fill = OUTLIER if place in OUTLIERS else "#7f96b8" if place in OBJECT else PATCH
            parts.append(box(x + column * cell, y + row * cell, cell - 3, cell - 3, fill))
    return parts


def prompt(x: float, y: float, columns: list[str]) -> list[str]:
    """A prompt as a row of columns."""
    return [box(x + 17 * i, y, 14, 26, fill, radius=2) for i, fill in enumerate(columns)]


def bars(x: float, y: float, rows: list[tuple[str, float, str]]) -> list[str]:
    """Next-token probabilities as bars."""
    parts = []
    for i, (word, share, fill) in enumerate(rows):
        top = y + 24 * i
        parts += [text(x, top + 13, word, 14), box(x + 62, top, 130 * share, 16, fill)]
    return parts


def draw() -> str:
    """The whole picture."""
    full = [LINE] * 3 + [PATCH] * 3 + [OUTLIER] + [PATCH] * 2 + [OUTLIER] + [PATCH] * 2 + [LINE] * 3
    outlier_only = [LINE] * 3 + [OUTLIER] * 4 + [LINE] * 3
    parts = [
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 1080 380' role='img' aria-label='The full prompt and a "
        "prompt with the outlier patches only are decoded side by side; the second is subtracted from the first'>",
        f"<defs><marker id='head' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' markerHeight='7' "
        f"orient='auto'><path d='M0 0 L8 4 L0 8 Z' fill='{SOFT}'/></marker></defs>",
        box(0, 0, 1080, 380, PANEL, radius=12),
        text(36, 42, "1  The ViT looks", 17, weight=600),
        *grid(36, 62, 34),
        text(36, 292, "[CLS] attention piles up on a", 14, SOFT),
        text(36, 311, "few patches: the outliers", 14, SOFT),
        box(213, 299, 12, 12, OUTLIER),
        text(300, 42, "2  Two prompts, one model", 17, weight=600),
        box(300, 66, 300, 104, CARD, LINE, 8),
        text(316, 92, "full prompt", 15, weight=600),
        *prompt(316, 112, full),
        text(316, 158, "text, every patch, question", 13, SOFT),
        box(300, 194, 300, 104, CARD, LINE, 8),
        text(316, 220, "outliers only", 15, weight=600),
        *prompt(316, 240, outlier_only),
        text(316, 286, "what the outliers alone suggest", 13, SOFT),
        arrow(250, 150, 292, 118),
        arrow(250, 180, 292, 240),
        text(640, 42, "3  Subtract", 17, weight=600),
        *bars(640, 72, [("dog", 0.62, "#7f96b8"), ("frisbee", 0.78, "#7f96b8")]),
        *bars(640, 222, [("dog", 0.12, OUTLIER), ("frisbee", 0.66, OUTLIER)]),
        text(640, 142, "f = logits of the full prompt", 13, SOFT),
        text(640, 292, "n = logits of the outliers", 13, SOFT),
        arrow(604, 118, 632, 118),
        arrow(604, 246, 632, 246),
        text(876, 42, "4  Decode", 17, weight=600),
        box(866, 120, 190, 122, CARD, LINE, 8),
        *bars(880, 140, [("dog", 0.8, "#3c8d5a"), ("frisbee", 0.12, "#3c8d5a")]),
        text(880, 214, "(1 + \u03b1) f \u2212 \u03b1 n", 15, weight=600),
        text(880, 232, "over plausible tokens", 12, SOFT),
        arrow(838, 110, 862, 150),
        arrow(838, 250, 862, 215),
        text(
            36,
            352,
            "A word that the outlier patches suggest by themselves loses; a word that needs the rest of the "
            "picture wins.",
            15,
            INK,
        ),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("idea.svg").write_text(draw(), encoding="utf-8")
