"""The [CLS] row of a ViT layer's attention, from the queries and keys of that row only.

Of a ViT without [CLS] (SigLIP) there is no such row; what its patches receive from all of them can take its place,
and is named so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from damro.decoding.families import Encoding, InsideOf, check_inputs, family_of, unwrap
from damro.errors import NoClsTokenError, ParameterError
from damro.vision import vit
from damro.vision.finite import check_weights
from damro.vision.query_keys import (
    ClsQueryKeys,
    Heads,
    cls_weights,
    encoder_layers,
    received_weights,
    record_cls,
)
from damro.vision.sources import Source, resolve_source
from damro.vision.vit import HasTower


@dataclass(frozen=True)
class CLSAttention:
    """Attention to the patches of each tile: what the [CLS] token of a ViT pays, or what all tokens pay on average.

    Attributes:
        weights: `(tiles, patches)`, float32; a share of the softmax over all tokens, so a row sums to less than
            one by what [CLS] pays to itself ("max" over heads does not sum to a share), and to one without [CLS].
        grid: patch rows and patch columns of a tile; patch p stands at `divmod(p, grid[1])`.
        layer: the ViT layer, counted from 0.
        heads: how heads were joined.
        row: `(tiles,)`, the prompt row (of a bare ViT, the image) each tile belongs to.
        tile: `(tiles,)`, the tile's number within its image; 0 is the whole image, the base tile. Of a video, the
            frame.
        source: "cls" if this is the [CLS] row, "received" if it is the mean of all rows of a ViT without [CLS].
        grids: of images of different shapes, the grid of each; behind its own patches a row of `weights` is then 0.
            Empty if `grid` is that of all.
    """

    weights: Tensor
    grid: tuple[int, int]
    layer: int
    heads: Heads
    row: Tensor
    tile: Tensor
    source: Source = "cls"
    grids: tuple[tuple[int, int], ...] = ()

    def patches_of(self, tile: int) -> int:
        """How many patches a tile has."""
        rows, columns = self.grids[tile] if self.grids else self.grid
        return rows * columns


@torch.no_grad()
def cls_attention(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    layer: int | None = None,
    heads: Heads | None = None,
    source: Source | None = "cls",
) -> CLSAttention:
    """Reads where the [CLS] token of an LVLM's vision tower, or of a bare ViT, looks.

    Only the query of [CLS] and the keys are taken, by hooks that are gone afterwards, so this works under any
    attention implementation. "merged" treats all heads as one, `softmax(q_cls k^T C**-0.5)`, which is what the
    released code does for LLaVA; "mean" and "max" join the heads' own softmaxes.

    Args:
        model: a supported LVLM, or a bare ViT: `CLIPVisionModel`, `ViTModel`, `DeiTModel`, `Dinov2Model`,
            `Dinov2WithRegistersModel`.
        inputs: what its processor returned for images and text; for a bare ViT, for images.
        layer: ViT layer, negative counts from the end; None takes the one the model's features come from, of a
            bare ViT the last.
        heads: "merged", "mean" or "max"; None takes what the released code does for this family, and "mean" for a
            bare ViT.
        source: "cls"; or "received", of a ViT without [CLS]: the attention each patch receives, the mean over the
            queries of all patches. None takes "cls" where there is a [CLS], otherwise "received".

    Returns:
        One row of weights for every tile of every image, in the order the vision tower reads them. Registers and
        the distillation token take part in the softmax and are left out of the weights.

    Raises:
        UnsupportedModelError: if the family is not supported; NoClsTokenError if the ViT has no [CLS].
        InputsError: if there is no image in `inputs`.
        ParameterError: if `layer`, `heads` or `source` is not one of the model's.
        NonFiniteScoresError: if the vision tower produced NaN or infinity.
    """
    (attention,) = cls_attentions(model, inputs, [layer], heads, source)
    return attention


@torch.no_grad()
def cls_attentions(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    layers: Sequence[int | None],
    heads: Heads | None = None,
    source: Source | None = "cls",
) -> tuple[CLSAttention, ...]:
    """Reads several layers in one run of the tower; see :func:`cls_attention`."""
    family = tower_family(model, inputs)
    resolve_source(source, family.vision_tower(model, inputs))
    numbers = [resolve_layer(model, family, layer) for layer in layers]
    with record_layers(family, model, inputs, sorted(set(numbers))) as recorded:
        encoding = family.encode(model, inputs)
    heads = heads or family_heads(family)
    return tuple(read_layer(family, model, inputs, recorded, encoding, number, heads) for number in numbers)


def record_layers(
    family: HasTower, model: PreTrainedModel, inputs: Mapping[str, Any], layers: Sequence[int]
) -> AbstractContextManager[dict[int, Any]]:
    """A context in which one run of the vision tower leaves what :func:`read_layer` needs of some layers."""
    own = getattr(family, "record", None)
    found: AbstractContextManager[dict[int, Any]] = (
        record_cls(family.vision_tower(model, inputs), layers) if own is None else own(model, inputs, layers)
    )
    return found


def read_layer(
    family: HasTower,
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    recorded: Mapping[int, Any],
    encoding: Encoding,
    layer: int,
    heads: Heads,
) -> CLSAttention:
    """Turns what was recorded of a layer into attention over the patches; or over columns, where columns are ranked.

    Raises:
        ParameterError: if `heads` is unknown, or columns are ranked and it is not "mean".
        NonFiniteScoresError: if weights are NaN or infinite.
        UnsupportedModelError: if the family ranks columns, and those of this model are not made of patches.
    """
    if not hasattr(family, "column_weights"):
        return read_attention(recorded[layer], encoding, layer, heads)
    if heads != "mean":
        raise ParameterError(f"heads must be 'mean' for {model.config.model_type}, got {heads!r}")
    images, weights = zip(*family.column_weights(model, inputs, recorded[layer]), strict=True)
    grids = tuple(image.grid for image in images)
    return CLSAttention(
        check_weights(pad_sequence(list(weights), batch_first=True)),
        grids[0],
        layer,
        heads,
        torch.tensor([image.row for image in images]),
        torch.zeros(len(images), dtype=torch.long),
        recorded[layer].source,
        grids if len(set(grids)) > 1 else (),
    )


def tower_family(model: PreTrainedModel, inputs: Mapping[str, Any]) -> HasTower:
    """How to run the model's ViT, after a look at the inputs.

    Raises:
        UnsupportedModelError: if the model is neither a supported LVLM nor a bare ViT.
        InputsError: if `inputs` are not what an LVLM's processor returns for images and text.
    """
    if vit.is_bare_vit(model):
        inside: Any = InsideOf(vit)
        return vit if unwrap(model) is model else inside
    family = family_of(model)
    check_inputs(model, inputs)
    return family


def family_heads(family: HasTower) -> Heads:
    """How the released code joins the heads for a family."""
    return "mean" if family.DEFAULT_HEADS == "mean" else "merged"


def resolve_layer(model: PreTrainedModel, family: HasTower, layer: int | None) -> int:
    """The layer's number from 0; None is the one the released code reads.

    Raises:
        ParameterError: if there is no such layer.
    """
    if layer is None:
        return family.feature_layer(model, reference=True)
    depth = len(tower_layers(model, family))
    if not isinstance(layer, Integral) or isinstance(layer, bool) or not -depth <= layer < depth:
        raise ParameterError(
            f"layer must name one of the ViT's {depth} layers (0 to {depth - 1}, or from the end -{depth} to -1), "
            f"got {layer!r}"
        )
    return int(layer) % depth


def tower_layers(model: PreTrainedModel, family: HasTower, tower: nn.Module | None = None) -> nn.ModuleList:
    """The transformer layers of a model's vision tower; of the one given, where a model has several.

    Raises:
        UnsupportedModelError: if they are not where transformers puts them.
    """
    own = getattr(family, "layers", None)
    if own is not None:
        found: nn.ModuleList = own(model)
        return found
    return encoder_layers(family.vision_tower(model) if tower is None else tower)


def read_attention(recorded: ClsQueryKeys, encoding: Encoding, layer: int, heads: Heads) -> CLSAttention:
    """Turns recorded queries and keys into attention over the patches.

    Raises:
        ParameterError: if `heads` is unknown.
        NonFiniteScoresError: if weights are NaN or infinite.
    """
    if recorded.query.ndim == 4:
        row, tile = locate_tiles(encoding)
        weights = check_weights(received_weights(recorded, heads))
        return CLSAttention(weights, encoding.grid, layer, heads, row, tile, "received")
    extra = summary_tokens(recorded.keys.shape[2], encoding.grid)
    weights = check_weights(cls_weights(recorded, heads)[:, extra:])
    row, tile = locate_tiles(encoding)
    return CLSAttention(weights, encoding.grid, layer, heads, row, tile)


def summary_tokens(tokens: int, grid: tuple[int, int]) -> int:
    """How many tokens stand before the patches: [CLS] and, in some ViTs, registers or a distillation token.

    Raises:
        NoClsTokenError: if there are none.

    Example:
        >>> summary_tokens(261, (16, 16))  # DINOv2 with four registers
        5
    """
    extra = tokens - grid[0] * grid[1]
    if extra < 1:
        raise NoClsTokenError(
            f"the vision tower must have a [CLS] token before its {grid[0]}x{grid[1]} patches, got {tokens} tokens; "
            "ViTs without one (SigLIP) have no [CLS] attention"
        )
    return extra


def locate_tiles(encoding: Encoding) -> tuple[Tensor, Tensor]:
    """For every row of the tower's batch, the prompt row and the number of the tile within its image."""
    row = [r for r, tiles in zip(encoding.rows, encoding.tiles, strict=True) for _ in range(tiles)]
    tile = [t for tiles in encoding.tiles for t in range(tiles)]
    return torch.tensor(row), torch.tensor(tile)
