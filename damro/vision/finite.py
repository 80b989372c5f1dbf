"""What can be ranked: numbers."""

from __future__ import annotations

from torch import Tensor

from damro.errors import NonFiniteScoresError


def check_weights(weights: Tensor) -> Tensor:
    """Weights of patches, attention or other scores, that can be ranked.

    Args:
        weights: `(tiles, patches)`.

    Returns:
        The same.

    Raises:
        NonFiniteScoresError: if there is NaN or infinity among them; a ranking would then mean nothing.

    Example:
        >>> import torch
        >>> check_weights(torch.tensor([[0.5, 0.5]])).tolist()
        [[0.5, 0.5]]
    """
    broken = (~weights.isfinite()).any(dim=-1).nonzero().flatten().tolist()
    if broken:
        raise NonFiniteScoresError(
            f"weights of patches must be finite, got NaN or infinity in tiles {broken[:5]} ({len(broken)} in all); the "
            "vision tower overflowed or its weights are broken: try bfloat16 or float32 instead of float16"
        )
    return weights
