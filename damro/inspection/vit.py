"""What the vision tower does: attention to the patches in every layer and head, patch norms, outliers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from damro.decoding.families import Encoding
from damro.decoding.hooks import Look, hooked
from damro.errors import ParameterError
from damro.inspection.layout import TILED, stitch_tiles
from damro.inspection.plain import Plain
from damro.methods.presets import starting_preset
from damro.vision.attention import (
    family_heads,
    read_attention,
    read_layer,
    record_layers,
    resolve_layer,
    tower_family,
    tower_layers,
)
from damro.vision.features import patch_features
from damro.vision.outlier_rules import FEATURE_SCORES
from damro.vision.outliers import Outliers, Rule, find_outliers
from damro.vision.query_keys import Heads, head_weights
from damro.vision.sources import Source, resolve_source


@dataclass(frozen=True)
class ViTInspection(Plain):
    """The vision tower's attention and patch norms on the images of a batch.

    Of families whose columns are merged patches (Qwen-VL, Gemma 3, ...) a patch is such a column: it has the attention
    of its patches together and the mean of their norms. Behind the patches of smaller images rows are 0.

    Attributes:
        layers: numbers of the N layers looked at, from 0.
        source: whose attention all maps show: "cls", that of [CLS], or "received", of a ViT without [CLS], the mean
            over the queries of all patches.
        per_head: `(N, heads, tiles, patches)`, attention to the patches, a share of the softmax over all tokens, in
            each head.
        merged: `(N, tiles, patches)`, the same with all heads taken as one, `softmax(q_cls k^T C**-0.5)`; of families
            whose columns are merged patches, the mean over heads.
        norms: `(N, tiles, patches)`, Euclidean length of the patch vectors that each layer puts out.
        layer: the layer whose attention ranks the patches for DAMRO.
        heads: how its heads are joined.
        weights: `(tiles, patches)`, that layer's attention, heads joined.
        outliers: the patches it flags.
        grid: patch rows and columns of a tile.
        row: `(tiles,)`, the prompt each tile belongs to.
        tile: `(tiles,)`, the tile's number within its image; 0 is the whole image.
        stitched: for LLaVA-NeXT and LLaVA-OneVision, `weights` of each image's tiles joined to one `(rows, columns)`
            picture, padding cut off; None for an image without tiles and for other families.
        grids: of images of different shapes, the grid of each; empty if `grid` is that of all.
    """

    source: Source
    layers: tuple[int, ...]
    per_head: Tensor
    merged: Tensor
    norms: Tensor
    layer: int
    heads: Heads
    weights: Tensor
    outliers: Outliers
    grid: tuple[int, int]
    row: Tensor
    tile: Tensor
    stitched: tuple[Tensor | None, ...]
    grids: tuple[tuple[int, int], ...] = ()


@torch.no_grad()
def inspect_vit(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    layers: Sequence[int] | None = None,
    *,
    layer: int | None = None,
    heads: Heads | None = None,
    top_k: int | None = None,
    rule: Rule = "topk",
    source: Source | None = None,
) -> ViTInspection:
    """Looks at the vision tower in one run (two for rules of features), under any attention implementation.

    Args:
        model: a supported LVLM or a bare ViT, see :func:`damro.cls_attention`.
        inputs: what its processor returned.
        layers: ViT layers to look at, negative counts from the end; None takes all.
        layer: the layer that ranks the patches; None takes the one the released code reads, of a bare ViT the last.
        heads: how its heads are joined; None takes the family's way, of a bare ViT the mean.
        top_k: how many patches to flag; None takes the family's preset, 10 where the paper has none, and no limit for
            rules other than "topk".
        rule: see :func:`damro.find_outliers`; features are those of the layer that ranks the patches.
        source: "cls" or "received", see :func:`damro.cls_attention`; None takes [CLS] where there is one, otherwise
            what the patches receive, as DAMRO does.

    Raises:
        ParameterError: if a layer, `heads`, `top_k`, `rule` or `source` is not one of the model's.
        NoClsTokenError: if `source` or `rule` asks for the [CLS] of a ViT that has none.
        UnsupportedModelError, InputsError: see :func:`damro.cls_attention`.
    """
    family = tower_family(model, inputs)
    tower = family.vision_tower(model, inputs)
    source = resolve_source(source, tower)
    blocks = tower_layers(model, family, tower)
    depth = len(blocks)
    numbers = tuple(resolve_layer(model, family, number) for number in (range(depth) if layers is None else layers))
    if not numbers:
        raise ParameterError(f"layers must name at least one of the ViT's {depth} layers, got none")
    ranking = resolve_layer(model, family, layer)
    heads = heads or family_heads(family)
    wanted = sorted({*numbers, ranking})
    with record_layers(family, model, inputs, wanted) as recorded, record_norms(blocks, numbers) as norms:
        encoding = family.encode(model, inputs)
    attention = read_layer(family, model, inputs, recorded, encoding, ranking, heads)
    attention = replace(attention, weights=attention.weights.cpu())
    patches = attention.weights.shape[-1]
    if top_k is None and rule == "topk":
        top_k = min(starting_preset(str(model.config.model_type)).top_k, patches)
    features = patch_features(model, inputs, ranking) if rule in FEATURE_SCORES else None
    columns = hasattr(family, "column_weights")
    tiled = model.config.model_type in TILED
    maps = [
        _maps_of_columns(family, model, inputs, recorded[number], norms[number], source)
        if columns
        else _maps_of_patches(recorded[number], norms[number], encoding, number, patches)
        for number in numbers
    ]
    per_head, merged, lengths = zip(*maps, strict=True)
    return ViTInspection(
        source=source,
        layers=numbers,
        per_head=torch.stack(per_head).cpu(),
        merged=torch.stack(merged).cpu(),
        norms=torch.stack(lengths).cpu(),
        layer=ranking,
        heads=heads,
        weights=attention.weights,
        outliers=find_outliers(attention, top_k=top_k, rule=rule, features=features),
        grid=attention.grid,
        row=attention.row,
        tile=attention.tile,
        stitched=(None,) * len(attention.row)
        if columns
        else tuple(
            stitch_tiles(model, inputs, encoding, image, tiles[1:]) if tiled and len(tiles) > 1 else None
            for image, tiles in enumerate(torch.split(attention.weights, list(encoding.tiles)))
        ),
        grids=attention.grids,
    )


def _maps_of_patches(
    recorded: Any, norms: list[Tensor], encoding: Encoding, layer: int, patches: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention by head `(heads, tiles, patches)` and merged `(tiles, patches)`, and norms `(tiles, patches)`."""
    by_head = head_weights(recorded).transpose(0, 1)[..., -patches:]
    merged = read_attention(recorded, encoding, layer, "merged").weights
    return by_head, merged, torch.cat(norms)[..., -patches:]


def _maps_of_columns(
    family: Any,
    model: Any,
    inputs: Mapping[str, Any],
    recorded: Any,
    norms: list[Tensor],
    source: Source,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same of merged patches; merged is the mean over heads."""
    heads = [weights for _, weights in family.column_heads(model, inputs, recorded)]
    by_head = pad_sequence([weights.T for weights in heads], batch_first=True).permute(2, 0, 1)
    means = family.column_means(model, inputs, norms, cls=source == "cls")
    return by_head, by_head.mean(dim=0), pad_sequence([lengths for _, lengths in means], batch_first=True)


@contextmanager
def record_norms(blocks: nn.ModuleList, layers: Sequence[int]) -> Iterator[dict[int, list[Tensor]]]:
    """While open, keeps the lengths `(tiles, tokens)` of the vectors that some layers of a ViT put out, run by run."""
    norms: dict[int, list[Tensor]] = {number: [] for number in layers}

    def keep(number: int) -> Look:
        def hook(module: Any, args: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            lengths = hidden.float().norm(dim=-1).cpu()
            norms[number].append(lengths if lengths.ndim > 1 else lengths[None])

        return hook

    with hooked(after=[(blocks[number], keep(number)) for number in layers]):
        yield norms
