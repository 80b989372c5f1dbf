"""Attention rollout: which patches what [CLS] holds has come from, through all layers and their residual streams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from damro.errors import UnsupportedModelError
from damro.vision.attention import CLSAttention, locate_tiles, resolve_layer, tower_family
from damro.vision.finite import check_weights
from damro.vision.query_keys import ClsQueryKeys, full_weights, record_cls
from damro.vision.sources import has_cls


@torch.no_grad()
def attention_rollout(model: PreTrainedModel, inputs: Mapping[str, Any], layer: int | None = None) -> CLSAttention:
    """Rolls attention out from the patches to a layer (Abnar and Zuidema, ACL 2020, section 3).

    `A_l = (W_l + I) / 2` with W_l the mean of the heads' attention, and the rollout is `A_L ... A_1`: of [CLS] its row,
    of a ViT without [CLS] the mean of all rows. It is no attention of any one layer, and ranks patches otherwise than
    DAMRO.

    Args:
        model: an LVLM of a family with a module, or a bare ViT.
        inputs: what its processor returned.
        layer: L, the last layer that counts, from 0, negative from the end; None takes the one that ranks patches for
            DAMRO.

    Returns:
        One row of weights for every tile, `heads` "mean".

    Raises:
        UnsupportedModelError: a model without a module of its own, whose tower need not attend to everything.
        ParameterError: if there is no such layer.
        InputsError: if there is no image in `inputs`.
        NonFiniteScoresError: if the vision tower produced NaN or infinity.
    """
    family = tower_family(model, inputs)
    if hasattr(family, "column_weights"):
        raise UnsupportedModelError(
            f"model must be of a family with a module of its own, or a bare ViT, for a rollout, got "
            f"{model.config.model_type}; look at single layers"
        )
    tower: Any = family.vision_tower(model, inputs)
    last = resolve_layer(model, family, layer)
    with record_cls(tower, range(last + 1), every=True) as recorded:
        encoding = family.encode(model, inputs)
    layers = [recorded[number] for number in range(last + 1)]
    rolled = torch.stack([_roll(layers, number, of_cls=has_cls(tower)) for number in range(len(layers[0].keys))])
    row, tile = locate_tiles(encoding)
    patches = encoding.grid[0] * encoding.grid[1]
    weights = check_weights(rolled[:, -patches:])
    return CLSAttention(weights, encoding.grid, last, "mean", row, tile, "cls" if has_cls(tower) else "received")


def _roll(layers: list[ClsQueryKeys], tile: int, *, of_cls: bool) -> Tensor:
    """`(tokens,)`: the row of [CLS], or the mean of all rows, from the last layer down to the first."""
    tokens = layers[0].keys.shape[2]
    row = layers[0].keys.new_full((tokens,), 0.0 if of_cls else 1 / tokens, dtype=torch.float32)
    if of_cls:
        row[0] = 1.0
    for recorded in reversed(layers):  # a row times matrices, rather than matrix times matrix
        one = ClsQueryKeys(recorded.query[tile : tile + 1], recorded.keys[tile : tile + 1])
        row = (row @ full_weights(one)[0] + row) / 2
    return row
