"""Which patches are outliers: pure functions from scores to patch numbers, and figures about them."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Literal, get_args

import torch
from torch import Tensor

from damro.attention import CLSAttention
from damro.errors import InputsError, ParameterError

Rule = Literal["topk", "iqr", "mad"]


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
    attention: CLSAttention,
    *,
    top_k: int | None = None,
    rule: Rule = "topk",
    object_mask: Tensor | None = None,
) -> Outliers:
    """Flags the patches that draw the most [CLS] attention.

    Args:
        attention: what :func:`damro.cls_attention` returned.
        top_k: how many; needed for "topk", an upper limit for the other rules.
        rule: "topk"; "iqr", above the third quartile by 1.5 interquartile ranges (Tukey); "mad", above the median
            by 3 median absolute deviations scaled to a standard deviation (1.4826).
        object_mask: boolean `(H, W)` for all tiles or `(tiles, H, W)`, True on objects, in the tile's own frame
            at any resolution. A patch lies on background if less than half of it is object.

    Raises:
        ParameterError: if `rule` is unknown or `top_k` is not in `1 .. patches`.
        InputsError: if the mask is not boolean or has another shape.

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
    weights = attention.weights
    flagged = flag_patches(weights, top_k, rule)
    count = flagged.sum(dim=-1)
    # Sorting unflagged patches behind all others keeps descending attention among the flagged.
    order = weights.masked_fill(~flagged, float("-inf")).argsort(dim=-1, descending=True, stable=True)
    width = int(count.max())
    beyond = torch.arange(width, device=weights.device) >= count[:, None]
    indices = order[:, :width].masked_fill(beyond, -1)
    rows, columns = indices // attention.grid[1], indices % attention.grid[1]
    positions = torch.stack([rows, columns], dim=-1).masked_fill(beyond[..., None], -1)
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


def flag_patches(weights: Tensor, top_k: int | None, rule: Rule) -> Tensor:
    """Boolean `(tiles, patches)`: the flagged patches of each row of `weights`.

    Raises:
        ParameterError: see :func:`find_outliers`.
    """
    if rule not in get_args(Rule):
        raise ParameterError(f"rule must be one of {', '.join(get_args(Rule))}, got {rule!r}")
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
        threshold = quantile[1] + 3 * 1.4826 * deviation
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
