"""What a register changes: lengths of patch vectors before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from damro.decoding.hooks import Look, hooked
from damro.vision.attention import tower_family
from damro.vision.query_keys import encoder_layers
from damro.vision.registers import PLACE, Maximum, added_register


@dataclass(frozen=True)
class RegisterEffect:
    """Lengths of what each ViT layer puts out, without a register and with one.

    Attributes:
        before: `(layers, tiles, patches)`, Euclidean lengths of the patches' vectors.
        after: the same, while a register takes outliers on.
        register: `(layers, tiles)`, its own.
        grid: patch rows and patch columns of a tile.
    """

    before: Tensor
    after: Tensor
    register: Tensor
    grid: tuple[int, int]


@torch.no_grad()
def compare_norms(
    model: PreTrainedModel, inputs: Mapping[str, Any], masks: Mapping[int, Tensor], maximum: Maximum = "neuron"
) -> RegisterEffect:
    """Runs a vision tower twice over the same images, without a register and with one.

    Args:
        model: a supported LVLM or a bare ViT.
        inputs: what its processor returned.
        masks: the register neurons, see :func:`damro.vision.registers.added_register`.
        maximum: see there.

    Raises:
        UnsupportedModelError: a ViT that cannot be given a register.
    """
    family = tower_family(model, inputs)
    tower = family.vision_tower(model, inputs)
    before, encoding = _lengths(family, model, inputs, tower)
    with added_register(tower, masks, maximum):
        after, _ = _lengths(family, model, inputs, tower)
    patches = encoding.grid[0] * encoding.grid[1]
    return RegisterEffect(before[..., -patches:], after[..., -patches:], after[..., PLACE], encoding.grid)


def _lengths(family: Any, model: Any, inputs: Mapping[str, Any], tower: nn.Module) -> tuple[Tensor, Any]:
    """`(layers, tiles, tokens)`, and what came of the run."""
    lengths: dict[int, Tensor] = {}
    blocks = encoder_layers(tower)
    with hooked(after=[(block, keep_lengths(lengths, number)) for number, block in enumerate(blocks)]):
        encoding = family.encode(model, inputs)
    return torch.stack([lengths[number] for number in range(len(blocks))]), encoding


def keep_lengths(lengths: dict[int, Tensor], number: int) -> Look:
    """A look at what a layer puts out, which keeps the lengths of its vectors, `(tiles, tokens)`."""

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        lengths[number] = hidden.float().norm(dim=-1).cpu()

    return hook
