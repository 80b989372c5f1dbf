"""Outlier rules on rows worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from damro import CLSAttention, Outliers, find_outliers
from damro.errors import InputsError, ParameterError


def attention_of(*rows: list[float], grid: tuple[int, int] = (2, 4)) -> CLSAttention:
    zeros = torch.zeros(len(rows), dtype=torch.long)
    return CLSAttention(torch.tensor(rows), grid, 0, "merged", torch.arange(len(rows)), zeros)


# Eight patches, 2 x 4. Sorted: .01 .02 .03 .04 .05 .06 .19 .40; sum 0.8.
ROW = [0.02, 0.40, 0.01, 0.05, 0.19, 0.03, 0.06, 0.04]
# Quartiles (linear): q1 = 0.0275, q2 = 0.045, q3 = 0.0925; range 0.065; fence 0.0925 + 0.0975 = 0.19.
# Distances to the median: .025 .355 .035 .005 .145 .015 .015 .005, median (.015 + .025) / 2 = 0.02;
# 0.045 + 3 * 1.4826 * 0.02 = 0.133956.


def test_topk_is_in_descending_order_with_positions():
    found = find_outliers(attention_of(ROW), top_k=3)
    assert found.indices.tolist() == [[1, 4, 6]]
    assert found.positions.tolist() == [[[0, 1], [1, 0], [1, 2]]]
    assert found.count.tolist() == [3]
    assert found.background is None
    assert found.background_base is None


def test_share_and_entropy():
    found = find_outliers(attention_of(ROW), top_k=2)
    assert found.share.item() == pytest.approx(0.59 / 0.8, abs=1e-6)
    expected = -sum(w / 0.8 * math.log(w / 0.8) for w in ROW)
    assert found.entropy.item() == pytest.approx(expected, abs=1e-6)


def test_even_attention_has_the_entropy_of_its_number_of_patches():
    found = find_outliers(attention_of([0.1] * 8), top_k=4)
    assert found.entropy.item() == pytest.approx(math.log(8), abs=1e-6)
    assert found.share.item() == pytest.approx(0.5)


def test_attention_on_one_patch_has_no_entropy():
    assert find_outliers(attention_of([0.0] * 7 + [0.5]), top_k=1).entropy.item() == pytest.approx(0, abs=1e-7)


def test_of_equal_weights_the_first_comes_first():
    found = find_outliers(attention_of([0.1, 0.2, 0.1, 0.2, 0.1, 0.2, 0.1, 0.1]), top_k=5)
    assert found.indices.tolist() == [[1, 3, 5, 0, 2]]


def test_iqr_worked_by_hand():
    # 0.19 lies on the fence up to rounding; move it clear of it on either side.
    above = [0.191 if w == 0.19 else w for w in ROW]  # the range does not change: q3 = 0.06 + 0.25 * (0.191 - 0.06)
    found = find_outliers(attention_of(above), rule="iqr")
    # q3 = 0.09275, range 0.06525, fence 0.190625.
    assert found.indices.tolist() == [[1, 4]]
    below = [0.15 if w == 0.19 else w for w in ROW]  # q3 = 0.0825, range 0.055, fence 0.165
    assert find_outliers(attention_of(below), rule="iqr").indices.tolist() == [[1]]


def test_mad_worked_by_hand():
    assert find_outliers(attention_of(ROW), rule="mad").indices.tolist() == [[1, 4]]
    below = [0.13 if w == 0.19 else w for w in ROW]  # neither median moves; 0.13 < 0.133956
    assert find_outliers(attention_of(below), rule="mad").indices.tolist() == [[1]]


@pytest.mark.parametrize("rule", ["iqr", "mad"])
def test_even_attention_has_no_outliers(rule):
    found = find_outliers(attention_of([0.1] * 8), rule=rule)
    assert found.indices.shape == (1, 0)
    assert found.count.tolist() == [0]
    assert found.share.tolist() == [0]


def test_rows_with_fewer_outliers_are_filled_with_minus_one():
    found = find_outliers(attention_of(ROW, [0.1] * 7 + [0.9]), rule="mad")
    assert found.indices.tolist() == [[1, 4], [7, -1]]
    assert found.positions.tolist() == [[[0, 1], [1, 0]], [[1, 3], [-1, -1]]]
    assert found.count.tolist() == [2, 1]


def test_top_k_limits_the_other_rules():
    found = find_outliers(attention_of(ROW), rule="mad", top_k=1)
    assert found.indices.tolist() == [[1]]
    assert find_outliers(attention_of(ROW), rule="mad", top_k=8).indices.tolist() == [[1, 4]]


# Objects on the left half of the 2 x 4 grid: patches 0, 1, 4, 5. Background: 2, 3, 6, 7.
LEFT = torch.zeros(20, 40, dtype=torch.bool)
LEFT[:, :20] = True


def test_background_share_beside_that_of_all_patches():
    found = find_outliers(attention_of(ROW), top_k=3, object_mask=LEFT)  # 1 and 4 on the object, 6 not
    assert found.background.item() == pytest.approx(1 / 3)
    assert found.background_base.item() == pytest.approx(0.5)


def test_a_patch_is_background_if_less_than_half_of_it_is_object():
    mask = torch.zeros(20, 40, dtype=torch.bool)
    mask[:5, :10] = True  # half of patch 0's 10 x 10 pixels
    mask[:4, 10:20] = True  # two fifths of patch 1's
    found = find_outliers(attention_of(ROW), top_k=1, object_mask=mask)  # patch 1
    assert found.background.item() == 1
    assert found.background_base.item() == pytest.approx(7 / 8)


def test_one_mask_for_each_tile():
    found = find_outliers(attention_of(ROW, ROW), top_k=1, object_mask=torch.stack([LEFT, ~LEFT]))
    assert found.background.tolist() == [0, 1]


def test_no_flagged_patch_has_no_background_share():
    found = find_outliers(attention_of([0.1] * 8, ROW), rule="mad", object_mask=LEFT)
    assert math.isnan(found.background[0])
    assert found.background[1] == 0
    assert found.background_base.tolist() == [0.5, 0.5]


def test_masks_need_not_divide_into_patches():
    mask = torch.zeros(7, 9, dtype=torch.bool)
    found = find_outliers(attention_of(ROW), top_k=2, object_mask=mask)
    assert (found.background.item(), found.background_base.item()) == (1, 1)
    found = find_outliers(attention_of(ROW), top_k=2, object_mask=~mask)
    assert (found.background.item(), found.background_base.item()) == (0, 0)


def test_weights_are_not_modified_and_the_result_is_frozen():
    attention = attention_of(ROW)
    kept = attention.weights.clone()
    found = find_outliers(attention, rule="iqr", object_mask=LEFT)
    assert torch.equal(attention.weights, kept)
    assert isinstance(found, Outliers)
    with pytest.raises(AttributeError):
        found.indices = None


@pytest.mark.parametrize("top_k", [0, -1, 9, True, 2.5, "3", math.nan])
def test_top_k_out_of_range(top_k):
    with pytest.raises(ParameterError, match="top_k must be a whole number from 1 to the 8 patches of a tile, got"):
        find_outliers(attention_of(ROW), top_k=top_k)


def test_top_k_may_be_a_number_of_numpy():
    assert find_outliers(attention_of(ROW), top_k=np.int64(2)).indices.tolist() == [[1, 4]]


def test_topk_needs_top_k():
    with pytest.raises(ParameterError, match="top_k must be given with rule 'topk', got None"):
        find_outliers(attention_of(ROW))


def test_unknown_rule():
    with pytest.raises(ParameterError, match="rule must be one of topk, iqr, mad.*, got 'zscore'"):
        find_outliers(attention_of(ROW), rule="zscore", top_k=1)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(4, 4), r"object_mask must be boolean .*torch.float32"),
        (torch.zeros(4, dtype=torch.bool), r"object_mask must be boolean \(H, W\) .* of shape \(4,\)"),
        (torch.zeros(3, 4, 4, dtype=torch.bool), "one mask for each of the 2 tiles, got 3"),
    ],
)
def test_masks_of_the_wrong_kind(mask, message):
    with pytest.raises(InputsError, match=message):
        find_outliers(attention_of(ROW, ROW), top_k=1, object_mask=mask)
