"""The vectors that a ViT layer puts out, patch by patch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from damro.decoding.hooks import Look, hooked
from damro.errors import UnsupportedModelError
from damro.vision.attention import locate_tiles, resolve_layer, summary_tokens, tower_family
from damro.vision.query_keys import encoder_layers
from damro.vision.sources import has_cls


@dataclass(frozen=True)
class PatchFeatures:
    """Output of one ViT layer: the residual stream behind it, before any final layer norm.

    Attributes:
        patches: `(tiles, patches, C)`, float32.
        cls: `(tiles, C)`, float32, the [CLS] token's; None of a ViT without [CLS].
        grid: patch rows and patch columns of a tile; patch p stands at `divmod(p, grid[1])`.
        layer: the ViT layer, counted from 0.
        row: `(tiles,)`, the prompt row (of a bare ViT, the image) each tile belongs to.
        tile: `(tiles,)`, the tile's number within its image; 0 is the whole image.
    """

    patches: Tensor
    cls: Tensor | None
    grid: tuple[int, int]
    layer: int
    row: Tensor
    tile: Tensor


@torch.no_grad()
def patch_features(model: PreTrainedModel, inputs: Mapping[str, Any], layer: int | None = None) -> PatchFeatures:
    """Reads what a layer of an LVLM's vision tower, or of a bare ViT, makes of every patch.

    Args:
        model: a supported LVLM or a bare ViT.
        inputs: what its processor returned.
        layer: ViT layer, negative counts from the end; None takes the one :func:`damro.cls_attention` reads.

    Raises:
        UnsupportedModelError, InputsError, ParameterError: as :func:`damro.cls_attention` does.
    """
    family = tower_family(model, inputs)
    if hasattr(family, "column_weights"):
        raise UnsupportedModelError(
            f"model must be one whose patches are ranked one by one, to read their features, got "
            f"{model.config.model_type}, of which columns are ranked; rules of attention (topk, iqr, mad) need none"
        )
    number = resolve_layer(model, family, layer)
    tower = family.vision_tower(model, inputs)
    with record_outputs(tower, [number]) as recorded:
        encoding = family.encode(model, inputs)
    hidden = recorded[number].float()  # (tiles, summary tokens + P, C)
    row, tile = locate_tiles(encoding)
    if not has_cls(tower):
        return PatchFeatures(hidden, None, encoding.grid, number, row, tile)
    extra = summary_tokens(hidden.shape[1], encoding.grid)
    return PatchFeatures(hidden[:, extra:], hidden[:, 0], encoding.grid, number, row, tile)


@contextmanager
def record_outputs(tower: nn.Module, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """While open, keeps what some layers put out whenever the tower runs in this thread: `(tiles, tokens, C)` by layer.

    The hooks are removed on exit, also when the body raises.
    """
    recorded: dict[int, Tensor] = {}

    def keep(number: int) -> Look:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            recorded[number] = output

        return hook

    with hooked(after=[(encoder_layers(tower)[number], keep(number)) for number in layers]):
        yield recorded
