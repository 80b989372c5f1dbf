"""Which patches are outliers: pure functions from scores to patch numbers, and figures about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from numbers import Integral, Real
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from damro.errors import InputsError, ParameterError
from damro.vision.attention import CLSAttention
from damro.vision.features import PatchFeatures
from damro.vision.finite import check_weights
from damro.vision.outlier_rules import FEATURE_SCORES, FeatureRule, sum_layers

AttentionRule = Literal["topk", "iqr", "mad"]
Rule = AttentionRule | FeatureRule
RULES: tuple[str, ...] = (*get_args(AttentionRule), *get_args(FeatureRule))

_CUTOFF = 3.0
# Norms spread unevenly over a picture, and high norms are several times the median: 3 would flag mere scatter. Of
# cosines between neighbours the median is close to 1, which they cannot exceed: the more redundant half it is.
_FEATURE_CUTOFFS = {"norm": 10.0, "cosine": 3.0, "redundancy": 0.0}


@dataclass(frozen=True)
class Outliers:
    """Outlier patches of each tile, in descending attention.

    Rules that flag a varying number of patches pad `indices` and `positions` with -1.

    Attributes:
        indices: `(tiles, k)`, patch numbers.
        positions: `(tiles, k, 2)`, row and column of each.
        count: `(tiles,)`, how many were flagged.
        share: `(tiles,)`, share of the attention over patches that they hold.
        entropy: `(tiles,)`, entropy of the attention over patches in nats; `log(patches)` if it is even.
        background: `(tiles,)`, share of the flagged patches that lie on background, NaN where none was flagged;
            None without an object mask.
        background_base: `(tiles,)`, share of all patches that lie on background; None without an object mask.
    """

    indices: Tensor
    positions: Tensor
    count: Tensor
    share: Tensor
    entropy: Tensor
    background: Tensor | None = None
    background_base: Tensor | None = None


def find_outliers(
    attention: CLSAttention | Sequence[CLSAttention],
    *,
    top_k: int | None = None,
    rule: Rule | Sequence[Rule] = "topk",
    features: PatchFeatures | None = None,
    cutoff: float | None = None,
    object_mask: Tensor | None = None,
) -> Outliers:
    """Flags the patches that draw the most [CLS] attention, or whose features stand out.

    Args:
        attention: what :func:`damro.cls_attention` returned; several layers are summed.
        top_k: how many; needed for "topk", an upper limit for the other rules.
        rule: of the attention, "topk"; "iqr", above the third quartile by 1.5 interquartile ranges (Tukey); "mad",
            above the median by `cutoff` median absolute deviations scaled to a standard deviation (1.4826). Of the
            features, by the same threshold as "mad": "norm", "cosine" with [CLS], "redundancy" with neighbours; see
            :mod:`damro.vision.outlier_rules`. Several rules: the patches that each of them flags.
        features: what :func:`damro.vision.features.patch_features` returned for the same inputs; for rules of features.
        cutoff: for the rules with that threshold; None takes 3, for "norm" 10 and for "redundancy" 0, the upper
            half. Cosines end at 1, so that a tile of much alike patches may need a lower one.
        object_mask: boolean `(H, W)` for all tiles or `(tiles, H, W)`, True on objects, in the tile's own frame
            at any resolution. A patch lies on background if less than half of it is object.

    Raises:
        ParameterError: if `rule` is unknown or lacks `features`, `top_k` is not in `1 .. patches`, or `cutoff` is
            not a finite number.
        InputsError: if the mask is not boolean, or features or mask are not of the same tiles.
        NonFiniteScoresError: if attention or features hold NaN or infinity.

    Example:
        >>> import torch
        >>> weights = torch.tensor([[0.1, 0.6, 0.1, 0.2]])
        >>> zero = torch.zeros(1, dtype=torch.long)
        >>> found = find_outliers(CLSAttention(weights, (2, 2), 0, "merged", zero, zero), top_k=2)
        >>> found.indices.tolist(), found.positions.tolist()
        ([[1, 3]], [[[0, 1], [1, 1]]])
        >>> round(found.share.item(), 2)
        0.8
    """
    if not isinstance(attention, CLSAttention):
        attention = sum_layers(attention)
    weights = check_weights(attention.weights)
    rules = (rule,) if isinstance(rule, str) else tuple(rule)
    if not rules:
        raise ParameterError(f"rule must name one or more of {', '.join(RULES)}, got none")
    flagged = torch.stack([_flag(attention, features, name, top_k, cutoff) for name in rules]).all(dim=0)
    across = torch.tensor([columns for _, columns in attention.grids] or [attention.grid[1]], device=weights.device)
    count = flagged.sum(dim=-1)
    # Sorting unflagged patches behind all others keeps descending attention among the flagged.
    order = weights.masked_fill(~flagged, float("-inf")).argsort(dim=-1, descending=True, stable=True)
    width = int(count.max())
    beyond = torch.arange(width, device=weights.device) >= count[:, None]
    indices = order[:, :width].masked_fill(beyond, -1)
    positions = torch.stack([indices // across[:, None], indices % across[:, None]], dim=-1)
    positions = positions.masked_fill(beyond[..., None], -1)
    shares = weights / weights.sum(dim=-1, keepdim=True)
    background, base = _background(attention, flagged, object_mask)
    return Outliers(
        indices=indices,
        positions=positions,
        count=count,
        share=(shares * flagged).sum(dim=-1),
        entropy=torch.special.entr(shares).sum(dim=-1),
        background=background,
        background_base=base,
    )


def _flag(
    attention: CLSAttention, features: PatchFeatures | None, rule: Rule, top_k: int | None, cutoff: float | None
) -> Tensor:
    """The patches that one rule flags."""
    if rule not in FEATURE_SCORES:
        limit = _CUTOFF if cutoff is None else cutoff
        if not attention.grids:
            return flag_patches(attention.weights, top_k, rule, limit)
        # Images of different shapes: each among its own patches.
        own = [row[: attention.patches_of(tile)] for tile, row in enumerate(attention.weights)]
        return pad_sequence([flag_patches(row[None], top_k, rule, limit)[0] for row in own], batch_first=True)
    if features is None:
        raise ParameterError(
            f"features must be given with rule {rule!r}, got None; pass damro.patch_features(model, inputs)"
        )
    scores = check_weights(FEATURE_SCORES[rule](features).to(attention.weights.device))
    if scores.shape != attention.weights.shape:
        raise InputsError(
            f"features must be of the attention's tiles and patches {tuple(attention.weights.shape)}, got "
            f"{tuple(scores.shape)}; read both from the same inputs"
        )
    return flag_patches(scores, top_k, "mad", _FEATURE_CUTOFFS[rule] if cutoff is None else cutoff)


def flag_patches(weights: Tensor, top_k: int | None, rule: str, cutoff: float = _CUTOFF) -> Tensor:
    """Boolean `(tiles, patches)`: the flagged patches of each row of `weights`, attention or another score.

    Raises:
        ParameterError: see :func:`find_outliers`.
    """
    if rule not in get_args(AttentionRule):
        raise ParameterError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")
    if not isinstance(cutoff, Real) or isinstance(cutoff, bool) or not isfinite(cutoff):
        raise ParameterError(f"cutoff must be a finite number of deviations above the median, got {cutoff!r}")
    patches = weights.shape[-1]
    if top_k is None and rule == "topk":
        raise ParameterError("top_k must be given with rule 'topk', got None; the paper uses 10 for LLaVA")
    if top_k is not None:
        check_top_k(top_k, patches)
    limit = patches if top_k is None else top_k
    best = torch.zeros_like(weights, dtype=torch.bool)
    best.scatter_(-1, rank_patches(weights, limit), True)
    if rule == "topk":
        return best
    quantile = weights.quantile(weights.new_tensor([0.25, 0.5, 0.75]), dim=-1)[..., None]
    if rule == "iqr":
        threshold = quantile[2] + 1.5 * (quantile[2] - quantile[0])
    else:
        deviation = (weights - quantile[1]).abs().quantile(0.5, dim=-1, keepdim=True)
        threshold = quantile[1] + cutoff * 1.4826 * deviation
    return best & (weights > threshold)


def rank_patches(weights: Tensor, top_k: int) -> Tensor:
    """The `top_k` patches of each row in descending order of weight; of equals the first comes first."""
    return weights.argsort(dim=-1, descending=True, stable=True)[:, :top_k]


def check_top_k(top_k: int, patches: int) -> None:
    """Checks a number of patches.

    Raises:
        ParameterError: unless it is a whole number in `1 .. patches`.
    """
    if not isinstance(top_k, Integral) or isinstance(top_k, bool) or not 1 <= top_k <= patches:
        raise ParameterError(f"top_k must be a whole number from 1 to the {patches} patches of a tile, got {top_k!r}")


def _background(
    attention: CLSAttention, flagged: Tensor, object_mask: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Share of flagged and of all patches on background."""
    if object_mask is None:
        return None, None
    tiles = len(flagged)
    if object_mask.dtype != torch.bool or object_mask.ndim not in (2, 3):
        raise InputsError(
            f"object_mask must be boolean (H, W) or (tiles, H, W), got {object_mask.dtype} "
            f"of shape {tuple(object_mask.shape)}"
        )
    masks = object_mask.expand(tiles, *object_mask.shape[-2:]) if object_mask.ndim == 2 else object_mask
    if len(masks) != tiles:
        raise InputsError(f"object_mask must have one mask for each of the {tiles} tiles, got {len(masks)}")
    area = torch.nn.functional.adaptive_avg_pool2d(masks.float()[:, None], attention.grid)
    background = (area.flatten(1) < 0.5).to(flagged.device)
    return (flagged & background).sum(-1) / flagged.sum(-1), background.float().mean(-1)
