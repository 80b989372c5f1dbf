"""eval/report/plots.py."""

import base64
import io

from matplotlib.figure import Figure
from PIL import Image

from damro.eval.report.plots import to_data_uri


def test_a_figure_becomes_a_picture_of_its_size() -> None:
    head, _, content = to_data_uri(Figure(figsize=(3, 2)), dpi=40).partition(",")
    assert head == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == (120, 80)
