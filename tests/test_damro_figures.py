from __future__ import annotations

import struct
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_models import golden_inputs, load_golden
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from damro.decoding.rules import contrast_scores
from damro.errors import InputsError, ParameterError
from damro.figures import draw_heads, draw_overlay, draw_probabilities, draw_strip, save_figure
from damro.inspection import inspect_vit
from damro.inspection.contrast import compare_steps
from tests.family_models import family_inputs, family_model

PICTURE = Image.new("RGB", (60, 40), (200, 30, 30))
MAP = torch.tensor([[0.1, 0.4, 0.2], [0.05, 0.15, 0.1]])


def colour_bar(figure: Figure) -> str:
    """The label of the figure's colour bar; the bar's axes are the last ones."""
    return figure.axes[-1].get_ylabel()


def test_overlay_shows_image_map_outliers_and_mask() -> None:
    mask = torch.zeros(20, 30, dtype=torch.bool)
    mask[5:15, 10:20] = True
    figure = draw_overlay(
        PICTURE, MAP, title="[CLS] attention, layer 22, heads merged, tiny", outliers=[(0, 1), (1, 1)], object_mask=mask
    )
    axes = figure.axes[0]
    photo, laid = axes.get_images()
    assert np.asarray(photo.get_array()).shape == (40, 60)
    assert np.allclose(np.asarray(laid.get_array()), MAP.numpy())
    assert laid.get_extent() == photo.get_extent() == [0, 60, 40, 0]
    assert laid.get_cmap().name == "viridis" and laid.get_interpolation() == "nearest"
    assert laid.get_clim() == pytest.approx((0.05, 0.4))
    assert axes.get_title() == "[CLS] attention, layer 22, heads merged, tiny"
    assert colour_bar(figure) == "share of attention"
    assert [text.get_text() for text in axes.texts] == ["1", "2"]
    boxes = {patch.get_bbox().bounds for patch in axes.patches}
    assert boxes == {(20.0, 0.0, 20.0, 20.0), (20.0, 20.0, 20.0, 20.0)}
    [contour] = axes.collections
    outline = np.concatenate(contour.get_paths()[0].to_polygons())
    # The mask covers x 20..40 and y 10..30 of the picture; the outline runs half a mask pixel around.
    assert outline.min(axis=0) == pytest.approx((20, 10), abs=1.01)
    assert outline.max(axis=0) == pytest.approx((40, 30), abs=1.01)


def test_overlay_refuses_what_does_not_fit() -> None:
    with pytest.raises(InputsError, match=r"outliers must lie on the 2 x 3 patches, got \(2, 0\)"):
        draw_overlay(PICTURE, MAP, title="", outliers=[(2, 0)])
    with pytest.raises(InputsError, match=r"values must be \(rows, columns\), got shape \(6,\)"):
        draw_overlay(PICTURE, MAP.flatten(), title="")


def test_long_titles_are_broken() -> None:
    title = "attention of each word to the image, mean over layers and heads, a-model-with-a-long-name"
    lines = draw_overlay(PICTURE, MAP, title=title).axes[0].get_title().split("\n")
    assert len(lines) == 2 and " ".join(lines) == title


def test_strip_has_one_panel_a_word_on_one_scale() -> None:
    maps = torch.stack([MAP, MAP * 2, MAP / 2])
    figure = draw_strip(PICTURE, maps, ["A", "cat", "$5"], title="words", columns=2)
    original, *panels = figure.axes[:4]
    assert np.array_equal(np.asarray(original.get_images()[0].get_array()), np.asarray(PICTURE))
    assert len(original.get_images()) == 1 and not original.axison
    assert [axes.get_title() for axes in figure.axes[:4]] == ["the image", "A", "cat", "$5"]
    assert len({axes.get_position().y0 for axes in figure.axes[:4]}) == 2  # two in a row
    for axes, one in zip(panels, maps, strict=True):
        laid = axes.get_images()[1]
        assert np.allclose(np.asarray(laid.get_array()), one.numpy())
        assert laid.get_clim() == pytest.approx((0.025, 0.8))
        assert laid.get_interpolation() == "bilinear"
    assert colour_bar(figure) == "share of attention"
    assert [axes.axison for axes in draw_strip(PICTURE, maps[:2], ["A", "cat"], title="", columns=2).axes[:4]] == [
        False, True, True, False,
    ]  # fmt: skip
    with pytest.raises(InputsError, match=r"got shape \(3, 2, 3\) and 1 captions"):
        draw_strip(PICTURE, maps, ["A"], title="words")


def test_each_word_has_its_own_scale_if_asked() -> None:
    maps = torch.stack([MAP, MAP / 2])
    figure = draw_strip(PICTURE, maps, ["A", "cat"], title="words", own_scales=True, colormap="magma")
    words = figure.axes[1:3]
    limits = [axes.get_images()[1].get_clim() for axes in words]
    assert limits == [pytest.approx((0.05, 0.4)), pytest.approx((0.025, 0.2))]
    assert [axes.get_xlabel() for axes in words] == ["to 40.00%", "to 20.00%"]
    assert colour_bar(figure) == "share of attention, each word's own"


def test_the_image_stands_beside_its_map_if_asked() -> None:
    original, mapped, _ = draw_overlay(PICTURE, MAP, title="map", beside=True).axes
    assert np.array_equal(np.asarray(original.get_images()[0].get_array()), np.asarray(PICTURE))
    assert len(mapped.get_images()) == 2 and mapped.get_title() == "map"


def test_head_grid_shows_every_head_and_the_merged_one() -> None:
    seen = inspect_vit(load_golden("llava"), golden_inputs("llava", "img0"), layers=[1, 2])
    figure = draw_heads(seen, model="tiny")
    panels = np.array(figure.axes[:10]).reshape(2, 5)
    assert [axes.get_title() for axes in panels[0]] == ["head 0", "head 1", "head 2", "head 3", "merged"]
    assert [axes.get_ylabel() for axes in panels[:, 0]] == ["layer 1", "layer 2*"]  # 2 ranks the patches
    shown = np.asarray(panels[1, 3].get_images()[0].get_array())
    assert np.allclose(shown, seen.per_head[1, 3, 0].view(4, 4).numpy())
    assert np.allclose(np.asarray(panels[0, 4].get_images()[0].get_array()), seen.merged[0, 0].view(4, 4).numpy())
    assert figure.get_suptitle() == "[CLS] attention by layer and head, tiny (* ranks the patches)"
    assert "log" in colour_bar(figure)


def test_head_grid_of_a_vit_without_cls_names_what_it_shows() -> None:
    one = {key: value[:1] for key, value in family_inputs("paligemma").items()}
    figure = draw_heads(inspect_vit(family_model("paligemma"), one), model="tiny")
    assert figure.get_suptitle() == "attention received by layer and head, tiny (* ranks the patches)"
    shown = torch.tensor(np.asarray(figure.axes[2 * 4 + 1].get_images()[0].get_array()))  # layer 2, head 1
    tower = family_model("paligemma", "eager").model.vision_tower
    with torch.no_grad():
        weights = tower(one["pixel_values"], output_attentions=True).attentions[2]
    torch.testing.assert_close(shown, weights[0, 1].mean(dim=0).view(4, 4), atol=1e-6, rtol=1e-4)


def test_probability_bars() -> None:
    full = torch.tensor([[0.5, 0.4, 0.1]]).log()
    negative = torch.tensor([[0.8, 0.1, 0.1]]).log()
    steps = compare_steps(torch.tensor([1]), full, negative, contrast_scores(full, negative, 1.0, 0.5), 3)
    figure = draw_probabilities(steps, 0, ["dog", "cat", "<b>"], title="step 0, tiny")
    [axes] = figure.axes
    lengths = {bars.get_label(): [bar.get_width() for bar in bars] for bars in axes.containers}
    assert lengths["full prompt"] == pytest.approx([0.5, 0.4, 0.1])
    assert lengths["negative prompt"] == pytest.approx([0.8, 0.1, 0.1])
    # (1 + 1) log f - log n: 0.25 / 0.8 and 0.16 / 0.1, the third token is not plausible.
    odds = 0.3125, 1.6
    assert lengths["after contrast"] == pytest.approx([odds[0] / sum(odds), odds[1] / sum(odds), 0.0], abs=1e-6)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["dog (taken out)", "cat (chosen)", "<b>"]
    assert axes.get_xlabel() == "probability" and axes.yaxis_inverted()
    with pytest.raises(InputsError, match="step must be from 0 to 0, got 1"):
        draw_probabilities(steps, 1, ["dog", "cat", "<b>"], title="")
    with pytest.raises(InputsError, match="words must spell the 3 candidates, got 1"):
        draw_probabilities(steps, 0, ["dog"], title="")


def test_names_words_and_titles_are_drawn_as_they_stand() -> None:
    """matplotlib would read a formula between two dollar signs, and fail over one that is none."""
    odd = r"$\frac$ \$5 $x_1$"
    full = torch.tensor([[0.5, 0.4]]).log()
    steps = compare_steps(torch.tensor([1]), full, full, contrast_scores(full, full, 1.0, 0.5), 2)
    seen = inspect_vit(load_golden("llava"), golden_inputs("llava", "img0"), layers=[2])
    for figure, times in (
        (draw_overlay(PICTURE, MAP, title=odd, label=odd), 2),
        (draw_strip(PICTURE, MAP[None], [odd], title=odd, label=odd), 3),
        (draw_heads(seen, model=odd), 1),
        (draw_probabilities(steps, 0, [odd, "cat"], title=odd), 2),
    ):
        figure.canvas.draw()
        texts = [text for text in figure.findobj(Text) if odd in " ".join(text.get_text().split())]
        assert len(texts) >= times and not any(text.get_parse_math() for text in texts)


def test_figures_are_written_in_three_formats(tmp_path: Path) -> None:
    figure = draw_overlay(PICTURE, MAP, title="title in the file")
    png = save_figure(figure, tmp_path / "a.png").read_bytes()
    assert struct.unpack(">II", png[16:24]) == (960, 840)  # 6.4 x 5.6 inches at 150 a inch
    assert b"<svg" in save_figure(figure, tmp_path / "a.svg").read_bytes()
    assert save_figure(figure, tmp_path / "a.PDF").read_bytes().startswith(b"%PDF")
    with pytest.raises(ParameterError, match="file must end in .png, .svg or .pdf, got '.*a.bmp'"):
        save_figure(figure, tmp_path / "a.bmp")
    assert not (tmp_path / "a.bmp").exists()


def test_nothing_keeps_figures_alive_in_pyplot() -> None:
    draw_overlay(PICTURE, MAP, title="")
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_a_map_without_any_attention_still_draws() -> None:
    seen = inspect_vit(load_golden("llava"), golden_inputs("llava", "img0"), layers=[0])
    empty = replace(seen, per_head=torch.zeros_like(seen.per_head), merged=torch.zeros_like(seen.merged))
    assert len(draw_heads(empty, model="tiny").axes) == 6
