"""DAMRO on any image-text model, written out by hand: the stock model reads each negative prompt anew at every step.

Nothing here is the package's: attention comes from eager weights, columns from how each model's processor lays patches
out, prompts from a walk along their tokens.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import get_vision_window_index

from tests.zoo import KINDS, row_of, zoo_model
from tests.zoo_images import IMAGE, TILE_COUNTS, Inputs

TYPES = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")
WINDOWED = ("qwen2_5_vl", "exaone4_5", "qwen2_5_omni_thinker", "hyperclovax_vision_v2")
WITH_CLS = ("internvl", "internvl_qknorm", "internvl_tiles", "qianfan_ocr")
IN_RUNS = ("packed", "packed_plain", "packed_still", "packed_flat", "packed_flat_plain", "packed_started")
"""What is shown with the patches of a column next to each other."""
MERGE = 2
"""Side of the square of patches that is a column, of every model in the zoo but those that are shown "whole"."""

PUT_BACK = {"muse_spark": 28, "muse_glimmer": 56}
"""Sides of windows: patches stand in the tower window by window, and are put back behind it."""


def features_of(model: Any, inputs: Inputs) -> Any:
    """What the model's own encoder makes of the images."""
    encode = model.base_model.get_image_features
    names = [name for name in inspect.signature(encode).parameters if name in inputs]
    return encode(**{name: inputs[name] for name in names}, return_dict=True)


@contextmanager
def eager_weights(name: str) -> Iterator[dict[int, list[Tensor]]]:
    """While open, collects the weights `(batch, heads, queries, keys)` of the eager model's tower by its modules."""
    tower = zoo_model(name, "eager").get_encoder(modality="image")
    home = sys.modules[type(tower).__module__]
    plain: Any = home.eager_attention_forward  # type: ignore[attr-defined]
    seen: dict[int, list[Tensor]] = {}

    def look(module: Any, *args: Any, **kwargs: Any) -> Any:
        output = plain(module, *args, **kwargs)
        seen.setdefault(id(module), []).append(output[1])
        return output

    home.eager_attention_forward = look  # type: ignore[attr-defined]
    try:
        yield seen
    finally:
        home.eager_attention_forward = plain  # type: ignore[attr-defined]


def patch_weights(name: str, inputs: Inputs) -> list[Tensor]:
    """Tile by tile `(patches,)`, in the order of the tower: the attention of [CLS], or what patches receive."""
    with eager_weights(name) as seen, torch.no_grad():
        features_of(zoo_model(name, "eager"), inputs)
    calls = [weights.mean(dim=1) for weights in list(seen.values())[-1]]
    if name in WITH_CLS:
        return [tile[0, 1:] for call in calls for tile in call]
    if KINDS[name].shown in ("padded_tiles", "placed"):
        sizes = [high * wide for high, wide in shapes_of(inputs)]
        return [tile[:size, :size].mean(dim=0) for tile, size in zip(calls[0], sizes, strict=True)]
    if KINDS[name].shown == "marked_tiles":
        read = [mask for mask in inputs["pixel_attention_mask"].flatten(0, 1) if bool(mask.any())]
        patches = [mask.view(8, 7, 8, 7).any(dim=3).any(dim=1).flatten() for mask in read]
        return [tile[own].mean(dim=0) for tile, own in zip(calls[0], patches, strict=True)]
    if len(calls) == 1 and len(calls[0]) == 1:  # all images in one call, each in view of itself alone
        spans = torch.arange(calls[0].shape[-1]).split([high * wide for high, wide in shapes_of(inputs)])
        return [calls[0][0, span][:, span].mean(dim=0) for span in spans]
    return [tile.mean(dim=0) for call in calls for tile in call]


def column_weights(name: str, inputs: Inputs) -> list[Tensor]:
    """Tile by tile `(columns,)`."""
    weights, shown = patch_weights(name, inputs), KINDS[name].shown
    if shown in ("whole", "patch_lines"):
        return weights
    if name in PUT_BACK:
        order, _ = get_vision_window_index(
            inputs["image_grid_thw"], spatial_merge_size=1, window_size=PUT_BACK[name], patch_size=7, kwargs={}
        )
        places = torch.empty_like(torch.cat(weights))
        places[order] = torch.cat(weights)
        weights = list(places.split([len(tile) for tile in weights]))
    if name in WINDOWED:
        order, _ = get_vision_window_index(
            inputs["image_grid_thw"], spatial_merge_size=MERGE, window_size=28, patch_size=7, kwargs={}
        )
        merged = torch.cat(weights).view(-1, MERGE**2).sum(dim=-1)
        columns = torch.empty_like(merged)
        columns[order] = merged
        return list(columns.split([len(tile) // MERGE**2 for tile in weights]))
    if shown in IN_RUNS:
        return [tile.view(-1, MERGE**2).sum(dim=-1) for tile in weights]
    shapes = shapes_of(inputs) or [(8, 8)] * len(weights)
    return [
        tile.view(high // MERGE, MERGE, wide // MERGE, MERGE).sum(dim=(1, 3)).flatten()
        for tile, (high, wide) in zip(weights, shapes, strict=True)
    ]


def shapes_of(inputs: Inputs) -> list[tuple[int, int]]:
    """Rows and columns of patches of every image; nothing where all are squares of 8."""
    for key in ("spatial_shapes", "image_grid_thw"):
        if key in inputs:
            return [(high, wide) for *_, high, wide in inputs[key].tolist()]
    if "image_position_ids" in inputs:
        return [(high + 1, wide + 1) for wide, high in inputs["image_position_ids"].amax(dim=1).tolist()]
    return [(high // 7, wide // 7) for high, wide in inputs["image_sizes"].tolist()] if "image_sizes" in inputs else []


def chosen_columns(name: str, inputs: Inputs, top_k: int) -> tuple[list[Tensor], list[list[int]]]:
    """For each image the columns that are kept, counted within its base tile, and the columns of its tiles."""
    weights = column_weights(name, inputs)
    sizes = [len(tile) for tile in weights]
    images: list[list[int]] = []
    counts = TILE_COUNTS.get(KINDS[name].shown, (1, 1, 1))
    while (first := sum(map(len, images))) < len(sizes):
        images.append(sizes[first : first + counts[len(images) % 3]])
    chosen, first = [], 0
    for tiles in images:
        ranks = weights[first + base_tile(name, tiles)]
        chosen.append(torch.sort(ranks, descending=True, stable=True).indices[:top_k])
        first += len(tiles)
    return chosen, images


def base_tile(name: str, tiles: list[int]) -> int:
    """Which of an image's tiles is the whole image."""
    return 0 if KINDS[name].shown == "first_tiles" else len(tiles) - 1


def negative_rows(name: str, model: Any, inputs: Inputs, top_k: int) -> list[dict[str, Any]]:
    """For each prompt, what the stock model is given instead: its tokens without the columns that are left out."""
    chosen, images = chosen_columns(name, inputs, top_k)
    output = features_of(model, inputs)
    pooled = torch.cat([one.reshape(-1, one.shape[-1]) for one in output.pooler_output])
    positions = positions_of(model, inputs)
    rows, image, column = [], 0, 0
    for row, length in enumerate(inputs["attention_mask"].sum(dim=-1).tolist()):
        ids = row_of(inputs, row)
        start, kept, vectors = len(inputs["input_ids"][row]) - length, [], []
        places = (ids == IMAGE).nonzero().flatten().tolist()
        stay: dict[int, list[int]] = {}
        while places:
            own, places = places[: sum(images[image])], places[sum(images[image]) :]
            before = sum(images[image][: base_tile(name, images[image])])
            for patch in chosen[image].tolist():
                place = own[before + patch]
                # The run that the column stands in begins behind the last token that is no image's.
                first = max((other for other in range(place) if ids[other] != IMAGE), default=-1) + 1
                stay.setdefault(first, []).append(place)
            image += 1
        numbers = {place: column + n for n, place in enumerate((ids == IMAGE).nonzero().flatten().tolist())}
        column += len(numbers)
        for place in range(length):
            if ids[place] != IMAGE:
                kept.append(place)
            kept.extend(stay.get(place, []))
        vectors = [numbers[place] for place in kept if place in numbers]
        told: dict[str, Any] = {"input_ids": ids[kept][None]}
        for key in TYPES:
            if key in inputs:
                told[key] = inputs[key][row, start:][kept][None]
        told["position_ids"] = positions[..., row, start:][..., kept].unsqueeze(-2)
        if positions.ndim == 2:
            told["position_ids"] = torch.arange(len(kept))[None]
        told["mm_encoder_outputs"] = slice_of(output, pooled, vectors)
        rows.append(told)
    return rows


def text_rows(model: Any, inputs: Inputs) -> list[dict[str, Any]]:
    """For each prompt, what the stock model is given of its text alone: no images and no tokens that stand for them."""
    rows = []
    for row, length in enumerate(inputs["attention_mask"].sum(dim=-1).tolist()):
        ids = row_of(inputs, row)
        told = {"input_ids": ids[ids != IMAGE][None], "position_ids": torch.arange(int((ids != IMAGE).sum()))[None]}
        for key in TYPES:
            if key in inputs:
                told[key] = inputs[key][row, -length:][ids != IMAGE][None]
        rows.append(told)
    return rows


def positions_of(model: Any, inputs: Inputs) -> Tensor:
    """`(B, L)`, or `(3, B, L)` where the model gives columns three coordinates."""
    if not hasattr(model.base_model, "get_rope_index"):
        return inputs["attention_mask"].cumsum(dim=-1) - 1
    names = [name for name in inspect.signature(model.base_model.get_rope_index).parameters if name in inputs]
    positions: Tensor = model.base_model.get_rope_index(**{name: inputs[name] for name in names})[0]
    return positions


def slice_of(output: Any, pooled: Tensor, rows: list[int]) -> dict[str, Any]:
    """The output of the encoder with some of its vectors only."""

    def cut(features: Any) -> Any:
        some = torch.cat([one.reshape(-1, one.shape[-1]) for one in features])[rows]
        return some[None] if isinstance(features, Tensor) else [some]

    told = {"pooler_output": cut(output.pooler_output)}
    if output.get("deepstack_features") is not None:
        told["deepstack_features"] = [cut(layer) for layer in output.deepstack_features]
    if output.get("visual_indicator_features") is not None:
        told["visual_indicator_features"] = output.visual_indicator_features
    return {"image": type(output)(**told)}


@torch.no_grad()
def logits_behind(model: Any, told: dict[str, Any], history: Tensor) -> Tensor:
    """`(V,)`: what the stock model says behind one prompt and some tokens `(T,)`, without a cache."""
    longer = dict(told)
    longer["input_ids"] = torch.cat([told["input_ids"], history[None]], dim=-1)
    for key in TYPES:
        if key in told:
            longer[key] = torch.cat([told[key], torch.zeros_like(history)[None]], dim=-1)
    if "position_ids" in told:
        start = int(told["position_ids"].max()) + 1
        new = start + torch.arange(len(history))
        old = told["position_ids"]
        longer["position_ids"] = torch.cat([old, new.expand(*old.shape[:-1], -1)], dim=-1)
    logits: Tensor = model(**longer, use_cache=False).logits[0, -1].float()
    return logits


class Stateless(LogitsProcessor):
    """Subtracts what the stock model says behind negative prompts, each read anew at every step.

    Args:
        model: the LVLM.
        rows: for each prompt, the inputs of the negative one.
        length: of the prompts in `input_ids`.
        alpha: strength.
        beta: cutoff.
    """

    def __init__(self, model: Any, rows: list[dict[str, Any]], length: int, alpha: float, beta: float) -> None:
        self.model, self.rows, self.length, self.alpha, self.beta = model, rows, length, alpha, beta

    def negative(self, input_ids: Tensor) -> Tensor:
        """`(R, V)`."""
        copies = len(input_ids) // len(self.rows)
        return torch.stack(
            [
                logits_behind(self.model, self.rows[row // copies], ids[self.length :])
                for row, ids in enumerate(input_ids)
            ]
        )

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        cutoff = math.log(self.beta) + scores.max(dim=-1, keepdim=True).values
        mixed = (1 + self.alpha) * scores - self.alpha * self.negative(input_ids)
        mixed[scores < cutoff] = -math.inf
        return mixed.log_softmax(dim=-1)
