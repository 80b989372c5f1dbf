"""Scores by which a patch can be an outlier, beyond the attention it draws: pure functions of patch features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from damro.errors import InputsError, NoClsTokenError
from damro.vision.attention import CLSAttention
from damro.vision.features import PatchFeatures

FeatureRule = Literal["norm", "cosine", "redundancy"]


def norm_scores(features: PatchFeatures) -> Tensor:
    """Length of each patch's vector, `(tiles, patches)`.

    In large ViTs a few patches, on background that looks like its surroundings, have vectors about ten times as
    long as the others (Darcet et al., "Vision Transformers Need Registers", ICLR 2024, section 2.1).

    Example:
        >>> import torch
        >>> zero = torch.zeros(1, dtype=torch.long)
        >>> features = PatchFeatures(torch.tensor([[[3.0, 4.0], [0.0, 1.0]]]), torch.ones(1, 2), (1, 2), 0, zero, zero)
        >>> norm_scores(features).tolist()
        [[5.0, 1.0]]
    """
    norms: Tensor = torch.linalg.vector_norm(features.patches, dim=-1)
    return norms


def cosine_scores(features: PatchFeatures) -> Tensor:
    """Cosine between each patch and [CLS], `(tiles, patches)`: how much of the whole picture a patch tells.

    The global-local similarity of GLSim (Rios et al., arXiv 2407.12891), which takes the highest as the most
    telling patches. Here the highest are those that hold global in place of local information.

    Raises:
        NoClsTokenError: if the features are of a ViT without [CLS].

    Example:
        >>> import torch
        >>> zero = torch.zeros(1, dtype=torch.long)
        >>> features = PatchFeatures(torch.tensor([[[2.0, 0.0], [0.0, 2.0]]]), torch.ones(1, 2), (1, 2), 0, zero, zero)
        >>> cosine_scores(features)
        tensor([[0.7071, 0.7071]])
    """
    if features.cls is None:
        raise NoClsTokenError(
            "rule 'cosine' compares patches with [CLS] and needs a ViT that has one, got features of a ViT without; "
            "'norm' and 'redundancy' look at the patches alone"
        )
    return cosine_similarity(features.patches, features.cls[:, None], dim=-1)


def redundancy_scores(features: PatchFeatures) -> Tensor:
    """Mean cosine between each patch and its up to four neighbours, `(tiles, patches)`.

    Outliers appear where a patch repeats its neighbours (Darcet et al., ICLR 2024, section 2.1, which compares the
    patch embeddings: an early layer comes near to them). Patches at a border have three neighbours or two.

    Example:
        >>> import torch
        >>> zero = torch.zeros(1, dtype=torch.long)
        >>> patches = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
        >>> redundancy_scores(PatchFeatures(patches, torch.ones(1, 2), (1, 3), 0, zero, zero)).tolist()
        [[1.0, 0.5, 0.0]]
    """
    rows, columns = features.grid
    patches = normalize(features.patches, dim=-1)
    grid = patches.view(len(patches), rows, columns, -1)  # (tiles, rows, columns, C)
    total = torch.zeros(grid.shape[:-1], device=grid.device)
    count = torch.zeros_like(total)
    for axis, size in ((1, rows), (2, columns)):
        first, second = grid.narrow(axis, 0, size - 1), grid.narrow(axis, 1, size - 1)
        similarity = (first * second).sum(dim=-1)
        for start in (0, 1):  # each pair counts for both of its patches
            total.narrow(axis, start, size - 1).add_(similarity)
            count.narrow(axis, start, size - 1).add_(1)
    return (total / count.clamp(min=1)).flatten(1)


FEATURE_SCORES: dict[str, Callable[[PatchFeatures], Tensor]] = {
    "norm": norm_scores,
    "cosine": cosine_scores,
    "redundancy": redundancy_scores,
}
"""The rules that look at features, by name."""


def sum_layers(attentions: Sequence[CLSAttention]) -> CLSAttention:
    """Attention summed over layers, as VTC-CLS does (Wang et al., arXiv 2412.05819).

    Args:
        attentions: of the same inputs at several layers, see :func:`damro.vision.attention.cls_attentions`.

    Returns:
        The sum; its `layer` is the deepest.

    Raises:
        InputsError: if there are none, or they are not of the same tiles.

    Example:
        >>> import torch
        >>> zero = torch.zeros(1, dtype=torch.long)
        >>> first = CLSAttention(torch.tensor([[0.25, 0.5]]), (1, 2), 3, "mean", zero, zero)
        >>> total = sum_layers([first, CLSAttention(torch.tensor([[0.5, 0.125]]), (1, 2), 4, "mean", zero, zero)])
        >>> total.weights.tolist(), total.layer
        ([[0.75, 0.625]], 4)
    """
    if not attentions:
        raise InputsError("attention must be of one layer or more, got none")
    kinds = {(tuple(attention.weights.shape), attention.grid, attention.heads) for attention in attentions}
    if len(kinds) > 1:
        raise InputsError(
            f"attention of several layers must be of the same tiles, grid and heads, got {sorted(kinds)}; "
            "read all layers with one call of cls_attentions"
        )
    weights = torch.stack([attention.weights for attention in attentions]).sum(dim=0)
    deepest = max(attentions, key=lambda attention: attention.layer)
    return replace(deepest, weights=weights)
