"""One colour and one shape a method, in every chart and on every page."""

from __future__ import annotations

import re
from typing import NamedTuple
from zlib import crc32

from damro.methods import METHODS


class Mark(NamedTuple):
    """How a method is drawn.

    Attributes:
        colour: At least 3 to 1 against white and against the pages' dark ground, as WCAG 2 asks of graphics.
        shape: An SVG path around (0, 0), within 5 units. Tells methods apart where colours do not.
        marker: The same shape for matplotlib.
        hollow: Whether only the outline is drawn: of a method that samples.
    """

    colour: str
    shape: str
    marker: str
    hollow: bool = False


_SHAPES = {
    "o": "M-4.5 0A4.5 4.5 0 1 0 4.5 0A4.5 4.5 0 1 0 -4.5 0Z",
    "D": "M0 -5L5 0L0 5L-5 0Z",
    "s": "M-4 -4H4V4H-4Z",
    "^": "M0 -5L5 4H-5Z",
    "v": "M0 5L5 -4H-5Z",
    "P": "M-1.7 -5H1.7V-1.7H5V1.7H1.7V5H-1.7V1.7H-5V-1.7H-1.7Z",
    "X": "M-5 -3L-3 -5L0 -2L3 -5L5 -3L2 0L5 3L3 5L0 2L-3 5L-5 3L-2 0Z",
    "p": "M0 -5L4.8 -1.5L2.9 4.5H-2.9L-4.8 -1.5Z",
    ">": "M5 0L-4 5V-5Z",
    "<": "M-5 0L4 5V-5Z",
    "*": "M0.0 -5.4L1.4 -1.9L5.1 -1.7L2.2 0.7L3.2 4.4L0.0 2.3L-3.2 4.4L-2.2 0.7L-5.1 -1.7L-1.4 -1.9Z",
    "h": "M4.3 2.5L0.0 5.0L-4.3 2.5L-4.3 -2.5L-0.0 -5.0L4.3 -2.5Z",
    "d": "M0 -5.5L3 0L0 5.5L-3 0Z",
    "|": "M-1.6 -5H1.6V5H-1.6Z",
}
"""By matplotlib's names."""
# After Okabe and Ito, whose colours people with colour-blindness tell apart; the bright ones darker.
_KNOWN = {
    "greedy": ("#7a7a7a", "o"),
    "sample": ("#7a7a7a", "o"),
    "damro": ("#1f78c4", "D"),
    "random-k": ("#c77700", "s"),
    "least-k": ("#b5599a", "^"),
    "no-image": ("#d55e00", "v"),
    "vcd": ("#009e73", "P"),
    "icd": ("#8a7d1c", "X"),
    "m3id": ("#7a6bd0", "p"),
}
_COLOURS = ("#2f93a8", "#a0651f", "#c2475b", "#5b8c2a", "#5566c0")
_OTHERS = "><*hd|"
# As many colours as have no divisor in common with the shapes: every pair comes once before one comes again.
_SPARE = [(_COLOURS[n % len(_COLOURS)], _OTHERS[n % len(_OTHERS)]) for n in range(len(_COLOURS) * len(_OTHERS))]
_NAME = re.compile(r"[^:@ ,]+")


def mark_of(method: str) -> Mark:
    """Return how a method is drawn, by the name it has in tables.

    Methods beyond the first have marks in the order of `damro.methods.METHODS`, which no other one of them has.

    Example:
        >>> mark_of("damro") == mark_of("damro:alpha=1 (runs)") != mark_of("random-k")
        True
        >>> mark_of("damro@1") == mark_of("damro")._replace(hollow=True), mark_of("sample").hollow
        (True, True)
    """
    found = _NAME.match(method)
    name = found[0] if found else method
    colour, marker = _KNOWN.get(name) or _SPARE[_place(name) % len(_SPARE)]
    return Mark(colour, _SHAPES[marker], marker, hollow="@" in method or name == "sample")


def _place(name: str) -> int:
    """The number of a method among those without a mark of their own, or of any other name one that stays the same."""
    others = [one for one in METHODS if one not in _KNOWN]
    # Not Python's hash, which differs from process to process.
    return others.index(name) if name in others else crc32(name.encode())


def colour_of(method: str) -> str:
    """Return the colour of a method."""
    return mark_of(method).colour
