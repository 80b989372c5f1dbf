"""What one image's look at gives, by hand, and averages over images."""

import numpy as np
import pytest
import torch
from PIL import Image

from damro.diagnosis.captioning import follow
from damro.diagnosis.following import measure_following
from damro.diagnosis.looking import Look, in_common, ratio_of, shift, shift_of, top_share
from damro.diagnosis.outliers import measure_outliers


def look(share: float, background: tuple[float, float] | None = None) -> Look:
    return Look("cls", 1, 0, (2, 4), torch.zeros(8), torch.tensor([0, 1]), (0.25, share), 2.0, 0.5, 0.0, background)


def test_averages_over_images() -> None:
    found = measure_outliers([look(0.8, (1.0, 0.5)), look(0.6), look(0.7, (0.5, 0.5))])
    assert (found.top_k, found.uniform, found.layer, found.other) == (2, 0.25, 1, 0)
    assert found.share.estimate == pytest.approx(0.7)
    assert [one.estimate for one in found.by_layer] == pytest.approx([0.25, 0.7])
    assert (found.norm_ratio.estimate, found.after_shift.estimate, found.in_other.estimate) == (2.0, 0.5, 0.0)
    assert found.background is not None and found.background.estimate == 0.75
    assert found.background_difference is not None and found.background_difference.estimate == 0.25
    assert found.placed == 2


def test_without_places_there_is_no_background() -> None:
    found = measure_outliers([look(0.8), look(0.6)])
    assert found.background is None and found.background_others is None and found.placed == 0


def test_shares_ratios_and_overlaps() -> None:
    assert top_share(torch.tensor([1.0, 4.0, 3.0, 2.0]), 2) == pytest.approx(0.7)
    assert ratio_of(torch.tensor([1.0, 9.0, 3.0]), torch.tensor([1])) == pytest.approx(4.5)
    assert in_common(torch.tensor([7, 1, 2, 3]), torch.tensor([3, 9, 8, 7])) == 0.5


def test_a_shift_moves_the_picture_and_repeats_its_edge() -> None:
    values = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    moved = np.asarray(shift(Image.fromarray(values), 1))
    assert np.array_equal(moved[1:, 1:], values[:-1, :-1])
    assert np.array_equal(moved[0, 1:], values[0, :-1]) and np.array_equal(moved[1:, 0], values[:-1, 0])
    assert moved.shape == values.shape
    assert [shift_of(Image.new("RGB", size)) for size in ((96, 96), (640, 480))] == [2, 5]


def test_following_counts_flagged_patches_among_those_looked_at() -> None:
    weights = torch.tensor([0.4, 0.3, 0.1, 0.2])  # patches 0 and 1 are flagged
    maps = torch.tensor([[0.1, 0.4, 0.4, 0.1], [0.3, 0.3, 0.2, 0.2]])
    overlap, share = follow(maps, weights, 2)
    assert overlap == pytest.approx((0.5 + 1.0) / 2)
    assert share == pytest.approx((0.5 + 0.6) / 2)
    found = measure_following([overlap] * 10, [share] * 10, [0.5] * 10)
    assert found.overlap_above.estimate == pytest.approx(0.25)
    assert found.share_above.estimate == pytest.approx(0.05)


def test_random_patches_have_k_of_all_in_common_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(20, generator=generator)
    overlap, share = follow(torch.rand(4000, 20, generator=generator), weights, 5)
    assert overlap == pytest.approx(5 / 20, abs=0.01)
    assert share == pytest.approx(5 / 20, abs=0.01)
