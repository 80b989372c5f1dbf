"""The [CLS] row of a ViT layer's attention, from the queries and keys of that row only.

Of a ViT without [CLS] (SigLIP) there is no such row; what its patches receive from all of them can take its place,
and is named so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from damro.decoding.families import Encoding, InsideOf, check_inputs, family_of, unwrap
from damro.decoding.hooks import Look, hooked
from damro.errors import NoClsTokenError, ParameterError, UnsupportedModelError
from damro.vision import vit
from damro.vision.finite import check_weights
from damro.vision.sources import Source, has_cls, resolve_source
from damro.vision.vit import HasTower

Heads = Literal["merged", "mean", "max"]


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


def tower_layers(model: PreTrainedModel, family: HasTower) -> nn.ModuleList:
    """The transformer layers of a model's vision tower.

    Raises:
        UnsupportedModelError: if they are not where transformers puts them.
    """
    own = getattr(family, "layers", None)
    found: nn.ModuleList = encoder_layers(family.vision_tower(model)) if own is None else own(model)
    return found


@dataclass(frozen=True)
class ClsQueryKeys:
    """What a hook keeps of one layer.

    Attributes:
        query: `(tiles, heads, d)` of [CLS], or `(tiles, heads, P, d)` of all patches where there is no [CLS].
        keys: `(tiles, heads, 1 + P, d)`.
    """

    query: Tensor
    keys: Tensor


@contextmanager
def record_cls(tower: Any, layers: Sequence[int]) -> Iterator[dict[int, ClsQueryKeys]]:
    """While open, keeps the [CLS] query and the keys of some layers whenever the tower runs in this thread.

    Without [CLS] it keeps all queries.

    Args:
        tower: a ViT of transformers, with `q_proj` and `k_proj` or a fused `qkv` in each layer.
        layers: layer numbers from 0.

    Yields:
        A dict that is filled, by layer, while the tower runs. The hooks are removed on exit, also when the body
        raises.
    """
    recorded: dict[int, ClsQueryKeys] = {}
    parts: dict[int, dict[str, Tensor]] = {number: {} for number in layers}
    first_only = has_cls(tower)
    looks = [
        (module, _keep(parts[number], name, first_only))
        for number in layers
        for name, module in _projections(encoder_layers(tower)[number]).items()
    ]
    with hooked(after=looks):
        yield recorded
    for number, kept in parts.items():
        if kept:
            recorded[number] = _split(kept, tower.config.num_attention_heads)


def encoder_layers(tower: nn.Module) -> nn.ModuleList:
    """The transformer layers of a ViT.

    Raises:
        UnsupportedModelError: if they are not where transformers puts them.
    """
    encoder = getattr(tower, "encoder", tower)  # ViT and DeiT hold their layers themselves
    layers = getattr(encoder, "layers", getattr(encoder, "layer", None))
    if not isinstance(layers, nn.ModuleList):
        raise UnsupportedModelError(
            f"vision tower must have a list of layers named layers, encoder.layers or encoder.layer, got "
            f"{type(tower).__name__}; CLIP, ViT, DeiT, DINOv2 and InstructBLIP's ViT do"
        )
    return layers


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


def cls_weights(recorded: ClsQueryKeys, heads: Heads) -> Tensor:
    """Softmax of [CLS] over all tokens, heads joined: `(tiles, 1 + P)`, float32.

    Example:
        >>> import torch
        >>> one_head = ClsQueryKeys(torch.zeros(1, 1, 2), torch.zeros(1, 1, 4, 2))
        >>> cls_weights(one_head, "merged").tolist()
        [[0.25, 0.25, 0.25, 0.25]]
    """
    if heads != "merged":
        return _join(head_weights(recorded), heads)
    query, keys = recorded.query.float(), recorded.keys.float()
    logits = torch.einsum("thd,thnd->thn", query, keys)  # (tiles, heads, 1 + P)
    return torch.softmax(logits.sum(dim=1) * (query.shape[1] * query.shape[2]) ** -0.5, dim=-1)


def received_weights(recorded: ClsQueryKeys, heads: Heads) -> Tensor:
    """Attention that each patch receives, the mean over all queries, heads joined: `(tiles, P)`, float32.

    Example:
        >>> import torch
        >>> one_head = ClsQueryKeys(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2))
        >>> received_weights(one_head, "mean").tolist()
        [[0.25, 0.25, 0.25, 0.25]]
    """
    if heads != "merged":
        return _join(head_weights(recorded), heads)
    scale = (recorded.query.shape[1] * recorded.query.shape[-1]) ** -0.5
    weights = []
    for query, keys in zip(recorded.query.float(), recorded.keys.float(), strict=True):
        logits = torch.einsum("hqd,hnd->qn", query, keys) * scale
        weights.append(torch.softmax(logits, dim=-1).mean(dim=0))
    return torch.stack(weights)


def head_weights(recorded: ClsQueryKeys) -> Tensor:
    """Each head's own softmax over all tokens, `(tiles, heads, 1 + P)`, float32: of [CLS].

    Without [CLS] it is the mean over the queries of all patches, `(tiles, heads, P)`.

    Example:
        >>> import torch
        >>> two_heads = ClsQueryKeys(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4, 3))
        >>> head_weights(two_heads).tolist()
        [[[0.25, 0.25, 0.25, 0.25], [0.25, 0.25, 0.25, 0.25]]]
    """
    queries, scale = recorded.query.float(), recorded.query.shape[-1] ** -0.5
    if queries.ndim == 3:
        logits = torch.einsum("thd,thnd->thn", queries, recorded.keys.float())
        return torch.softmax(logits * scale, dim=-1)
    weights = []
    # A tile at a time: all at once would be tiles x heads x patches x patches.
    for query, keys in zip(queries, recorded.keys.float(), strict=True):
        logits = torch.einsum("hqd,hnd->hqn", query, keys)
        weights.append(torch.softmax(logits * scale, dim=-1).mean(dim=1))
    return torch.stack(weights)


def _join(weights: Tensor, heads: Heads) -> Tensor:
    """`(tiles, heads, n)` to `(tiles, n)`."""
    if heads == "mean":
        return weights.mean(dim=1)
    if heads == "max":
        return weights.amax(dim=1)
    raise ParameterError(f"heads must be one of {', '.join(get_args(Heads))}, got {heads!r}")


def _projections(layer: nn.Module) -> dict[str, nn.Module]:
    """The modules of a layer whose outputs hold queries and keys."""
    modules = {name.rpartition(".")[2]: module for name, module in layer.named_modules()}
    if "qkv" in modules:
        return {"qkv": modules["qkv"]}
    # transformers 5.10 names the projections of DINOv2 query and key.
    names = ("q_proj", "k_proj") if "q_proj" in modules else ("query", "key")
    return {"query": modules[names[0]], "keys": modules[names[1]]}


def _keep(kept: dict[str, Tensor], name: str, first_only: bool) -> Look:
    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        kept[name] = output[:, :1] if name == "query" and first_only else output

    return hook


def _split(kept: dict[str, Tensor], heads: int) -> ClsQueryKeys:
    """Cuts recorded projections into heads."""
    if "qkv" in kept:
        tiles, tokens, _ = kept["qkv"].shape
        fused = kept["qkv"].view(tiles, tokens, 3, heads, -1)  # query, key, value
        return ClsQueryKeys(fused[:, 0, 0], fused[:, :, 1].transpose(1, 2))
    tiles, tokens, _ = kept["keys"].shape
    query = kept["query"].view(tiles, kept["query"].shape[1], heads, -1).transpose(1, 2)
    query = query[:, :, 0] if query.shape[2] == 1 else query
    return ClsQueryKeys(query, kept["keys"].view(tiles, tokens, heads, -1).transpose(1, 2))
