"""Outlier rules by features: hand-worked cases, and numpy formulas written out patch by patch."""

import numpy as np
import pytest
import torch
from torch import Tensor

from damro.errors import InputsError, ParameterError
from damro.vision.attention import CLSAttention
from damro.vision.features import PatchFeatures
from damro.vision.outlier_rules import cosine_scores, norm_scores, redundancy_scores, sum_layers
from damro.vision.outliers import find_outliers

GRID = (5, 7)


def features_of(patches: Tensor, grid: tuple[int, int], cls: Tensor | None = None) -> PatchFeatures:
    row = torch.zeros(len(patches), dtype=torch.long)
    cls = torch.ones(len(patches), patches.shape[-1]) if cls is None else cls
    return PatchFeatures(patches, cls, grid, 0, row, row)


def attention_of(weights: Tensor, grid: tuple[int, int], layer: int = 0) -> CLSAttention:
    row = torch.zeros(len(weights), dtype=torch.long)
    return CLSAttention(weights, grid, layer, "mean", row, row)


@pytest.fixture
def features() -> PatchFeatures:
    draw = torch.Generator().manual_seed(0)
    return features_of(torch.randn(3, 35, 6, generator=draw), GRID, torch.randn(3, 6, generator=draw))


def test_norms_against_numpy(features: PatchFeatures) -> None:
    expected = np.sqrt((features.patches.numpy() ** 2).sum(-1))
    np.testing.assert_allclose(norm_scores(features).numpy(), expected, rtol=1e-5)


def test_cosines_against_numpy(features: PatchFeatures) -> None:
    x, c = features.patches.numpy(), features.cls.numpy()
    expected = [[x[t, p] @ c[t] / np.linalg.norm(x[t, p]) / np.linalg.norm(c[t]) for p in range(35)] for t in range(3)]
    np.testing.assert_allclose(cosine_scores(features).numpy(), expected, rtol=1e-4, atol=1e-6)


def test_redundancy_against_numpy(features: PatchFeatures) -> None:
    x = features.patches.numpy()
    x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    expected = np.zeros((3, 35))
    for tile in range(3):
        for row in range(5):
            for column in range(7):
                steps = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
                beside = [x[tile, r * 7 + c] for r, c in steps if 0 <= r < 5 and 0 <= c < 7]
                expected[tile, row * 7 + column] = np.mean([x[tile, row * 7 + column] @ other for other in beside])
    np.testing.assert_allclose(redundancy_scores(features).numpy(), expected, rtol=1e-4, atol=1e-6)


def test_redundancy_by_hand() -> None:
    # Directions on a 2 x 2 grid: east, east / north, east. Patch 0 has neighbours 1 (cosine 1) and 2 (0): 0.5;
    # patch 1 has 0 (1) and 3 (1): 1; patch 2 has 0 (0) and 3 (0): 0; patch 3 has 1 (1) and 2 (0): 0.5.
    patches = torch.tensor([[[2.0, 0.0], [1.0, 0.0], [0.0, 3.0], [5.0, 0.0]]])
    assert redundancy_scores(features_of(patches, (2, 2))).tolist() == [[0.5, 1.0, 0.0, 0.5]]


def test_a_patch_without_neighbours_is_not_redundant() -> None:
    assert redundancy_scores(features_of(torch.ones(1, 1, 2), (1, 1))).tolist() == [[0.0]]


def test_norm_rule_flags_the_long_vector() -> None:
    # Norms 1, 2, 3, 4, 50: median 3, absolute deviations 2, 1, 0, 1, 47 with median 1, so that the threshold of
    # norms is 3 + 10 * 1.4826 = 17.826.
    norms = torch.tensor([1.0, 2.0, 3.0, 4.0, 50.0])
    features = features_of(torch.stack([norms, torch.zeros(5)], dim=-1)[None], (1, 5))
    attention = attention_of(torch.tensor([[0.5, 0.2, 0.1, 0.1, 0.1]]), (1, 5))
    found = find_outliers(attention, rule="norm", features=features)
    assert (found.indices.tolist(), found.count.tolist()) == ([[4]], [1])
    # Median + 0.5 * 1.4826 = 3.7413 lets the patch of norm 4 in, and what is flagged stands by attention; of two
    # equals the first comes first.
    assert find_outliers(attention, rule="norm", features=features, cutoff=0.5).indices.tolist() == [[3, 4]]
    # Norm 17 is above 3 + 3 * 1.4826, "mad"'s threshold, and under that of norms.
    norms[4] = 17.0
    features = features_of(torch.stack([norms, torch.zeros(5)], dim=-1)[None], (1, 5))
    assert find_outliers(attention, rule="norm", features=features).count.tolist() == [0]


@pytest.mark.parametrize("rule", ["norm", "cosine", "redundancy"])
@pytest.mark.parametrize(("cutoff", "top_k"), [(0.0, None), (0.5, 4), (-1.0, 7), (2.0, None)])
def test_rules_of_features_against_numpy(features: PatchFeatures, rule: str, cutoff: float, top_k: int | None) -> None:
    score = {"norm": norm_scores, "cosine": cosine_scores, "redundancy": redundancy_scores}[rule](features).numpy()
    weights = torch.rand(3, 35, generator=torch.Generator().manual_seed(3)) / 35
    found = find_outliers(attention_of(weights, GRID), rule=rule, features=features, cutoff=cutoff, top_k=top_k)
    for tile in range(3):
        median = np.median(score[tile])
        threshold = median + cutoff * 1.4826 * np.median(np.abs(score[tile] - median))
        above = sorted(np.flatnonzero(score[tile] > threshold), key=lambda p: -score[tile, p])[:top_k]
        expected = sorted(above, key=lambda p: -float(weights[tile, p]))
        assert found.indices[tile, : found.count[tile]].tolist() == expected
        assert found.count[tile] == len(expected)


def test_redundancy_flags_the_upper_half() -> None:
    # Scores 0.5, 1, 0, 0.5 (see above), median 0.5: only patch 1 is above it.
    features = features_of(torch.tensor([[[2.0, 0.0], [1.0, 0.0], [0.0, 3.0], [5.0, 0.0]]]), (2, 2))
    found = find_outliers(attention_of(torch.full((1, 4), 0.2), (2, 2)), rule="redundancy", features=features)
    assert found.indices.tolist() == [[1]]


def test_several_rules_are_an_intersection(features: PatchFeatures) -> None:
    weights = torch.rand(3, 35, generator=torch.Generator().manual_seed(4)) / 35
    attention = attention_of(weights, GRID)

    def flagged(rule: object, tile: int) -> set[int]:
        found = find_outliers(attention, rule=rule, features=features, cutoff=0.0, top_k=20)
        return set(found.indices[tile, : found.count[tile]].tolist())

    both = [flagged(("topk", "norm", "cosine"), tile) for tile in range(3)]
    assert both == [flagged("topk", t) & flagged("norm", t) & flagged("cosine", t) for t in range(3)]
    assert all(both) and both[0] != flagged("topk", 0)


def test_layers_are_summed() -> None:
    # 0.1 + 0.5, 0.3 + 0.1, 0.2 + 0.2, 0.4 + 0.1: the first patch leads only in the sum and in the second layer.
    layers = [
        attention_of(torch.tensor([[0.1, 0.3, 0.2, 0.4]]), (2, 2), layer=5),
        attention_of(torch.tensor([[0.5, 0.1, 0.2, 0.1]]), (2, 2), layer=3),
    ]
    torch.testing.assert_close(sum_layers(layers).weights, torch.tensor([[0.6, 0.4, 0.4, 0.5]]))
    assert sum_layers(layers).layer == 5
    found = find_outliers(layers, top_k=2)
    assert found.indices.tolist() == [[0, 3]]
    # Shares are of the summed attention: (0.6 + 0.5) / 1.9.
    assert found.share.item() == pytest.approx(1.1 / 1.9)


def test_layers_of_other_tiles_are_refused() -> None:
    one, other = attention_of(torch.ones(1, 4), (2, 2)), attention_of(torch.ones(1, 4), (1, 4))
    with pytest.raises(InputsError, match="same tiles, grid and heads"):
        find_outliers([one, other], top_k=1)
    with pytest.raises(InputsError, match="got none"):
        find_outliers([], top_k=1)


@pytest.mark.parametrize("rule", ["norm", "cosine", "redundancy"])
def test_rules_of_features_need_them(rule: str) -> None:
    with pytest.raises(ParameterError, match=f"features must be given with rule '{rule}'"):
        find_outliers(attention_of(torch.ones(1, 4), (2, 2)), rule=rule)


def test_features_of_other_tiles_are_refused(features: PatchFeatures) -> None:
    with pytest.raises(InputsError, match="same inputs"):
        find_outliers(attention_of(torch.ones(2, 35), GRID), rule="norm", features=features)


@pytest.mark.parametrize("rule", ["sigma", ("topk", "sigma"), ()])
def test_unknown_rules_are_refused(rule: object) -> None:
    with pytest.raises(ParameterError, match="topk, iqr, mad, norm, cosine, redundancy"):
        find_outliers(attention_of(torch.ones(1, 4), (2, 2)), rule=rule, top_k=1)


@pytest.mark.parametrize("cutoff", [float("nan"), float("inf"), "3", True])
def test_cutoff_must_be_a_number(cutoff: object) -> None:
    with pytest.raises(ParameterError, match="finite number"):
        find_outliers(attention_of(torch.ones(1, 4), (2, 2)), rule="mad", cutoff=cutoff)


def test_cutoff_moves_the_threshold_of_attention() -> None:
    # Median 3, median absolute deviation 1: the threshold is 3 + 1.4826 * cutoff; 3.7413 for 0.5.
    attention = attention_of(torch.tensor([[1.0, 2.0, 3.0, 4.0, 50.0]]), (1, 5))
    assert find_outliers(attention, rule="mad").indices.tolist() == [[4]]
    assert find_outliers(attention, rule="mad", cutoff=0.5).indices.tolist() == [[4, 3]]
