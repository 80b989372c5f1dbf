"""Charts of matplotlib as pictures of a page. Imports matplotlib when first used."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def to_data_uri(figure: Figure, dpi: int = 130) -> str:
    """Return a figure as a PNG inside a ``data:`` address, for a page that needs no other file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode("ascii")
