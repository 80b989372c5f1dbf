import math

from matplotlib.text import Text

from damro.eval.pope.groups import MEASURES
from damro.eval.report.comparison import Row
from damro.eval.report.plots import draw_bars, to_data_uri
from damro.eval.statistics import Interval


def test_names_in_a_chart_are_drawn_as_they_stand() -> None:
    """matplotlib would read a formula between two dollar signs, and fail over one that is none."""
    odd = r"$\frac$"
    row = Row(f"{odd}.jsonl", odd, "accuracy", MEASURES["accuracy"], Interval(0.5, 0.4, 0.6, 0.95, 2000), None)
    figure = draw_bars([[row]], f"POPE, {odd}")
    assert to_data_uri(figure).startswith("data:image/png;base64,iVBOR")
    texts = [text for text in figure.findobj(Text) if odd in text.get_text()]
    assert len(texts) >= 3 and not any(text.get_parse_math() for text in texts)


def test_a_single_image_is_drawn_without_an_interval() -> None:
    value = Interval(0.5, -math.inf, math.inf, 0.95, 2000, 1)
    (axes,) = draw_bars([[Row("s", "damro", "accuracy", MEASURES["accuracy"], value, None)]], "title").axes
    assert [patch.get_width() for patch in axes.patches] == [50]
    assert not [one for one in axes.containers if hasattr(one, "has_xerr")]
