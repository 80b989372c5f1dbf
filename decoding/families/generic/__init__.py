"""Every causal image-text model of transformers without a module of its own: Qwen-VL, InternVL, SmolVLM, Gemma 3, ...

Prompts are the model's own inputs, see :class:`~damro.decoding.families.generic.prompt.TokenPrompt`. The vision tower,
what comes of it, and where patches become columns are found as ``generate`` finds them, or by a look at the model
itself; no model is named but for how its processor cuts images up (:data:`layout.TILINGS`).

Patches are ranked as the columns that they become.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from damro.decoding.errors import InputsError, UnsupportedModelError
from damro.decoding.families.base import (
    LVLM,
    ColumnPatches,
    Encoding,
    attention_mask_of,
    has_cls,
    image_columns,
)
from damro.decoding.families.generic.attention import RecordedLayer, recording, repeat_recorded, tower_layers
from damro.decoding.families.generic.features import deepest_layer, encoder_keys, image_features, image_tower
from damro.decoding.families.generic.layout import images_of
from damro.decoding.families.generic.prompt import TYPES, ImageFeatures, TokenPrompt, repeated
from damro.decoding.families.generic.support import check_patches
from damro.decoding.families.generic.weights import column_heads, column_means, column_weights

__all__ = [
    "DEFAULT_HEADS",
    "PIXELS",
    "POOLED_AS_LIST",
    "REQUIRED_INPUTS",
    "column_heads",
    "column_means",
    "column_patches",
    "column_weights",
    "decoder",
    "each_its_image",
    "encode",
    "encode_once",
    "feature_layer",
    "full_prompt",
    "images_of",
    "layers",
    "prompt_of_patches",
    "prompt_without",
    "record",
    "vision_tower",
]

REQUIRED_INPUTS: tuple[str, ...] = ()
PIXELS: tuple[str, ...] = ("pixel_values",)
DEFAULT_HEADS = "mean"
POOLED_AS_LIST = True


def vision_tower(model: LVLM, inputs: Mapping[str, Any] | None = None) -> nn.Module:
    """The module that reads images."""
    return image_tower(model)


def decoder(model: LVLM) -> nn.Module:
    """The model itself: given tokens and image features it is its language model and head."""
    module: nn.Module = model
    return module


def layers(model: LVLM) -> nn.ModuleList:
    """The transformer layers of the vision tower."""
    return tower_layers(image_tower(model))


def feature_layer(model: LVLM, *, reference: bool) -> int:
    """The layer whose output becomes the columns; there is no released code to differ from.

    See :func:`damro.decoding.families.generic.features.deepest_layer`.

    Raises:
        UnsupportedModelError: if the model's columns are no patches that can be ranked.
    """
    check_patches(model)
    return deepest_layer(model)


def encode(model: LVLM, inputs: Mapping[str, Any]) -> Encoding:
    """Runs the vision tower once.

    Returns:
        Its output and, for each prompt, the vectors of its columns. Where its images stand is found where patches are
        chosen (:func:`images_of`), as decoding without a choice works on models whose columns are no patches, too.
    """
    return _encoding(model, inputs, image_features(model, inputs))


def encode_once(model: LVLM, inputs: Mapping[str, Any]) -> Encoding:
    """Runs the vision tower once over the one image that all prompts show; else as :func:`encode`.

    What is recorded meanwhile is that of one copy, and stands there as often as there are prompts.

    Args:
        model: the model.
        inputs: as for :func:`each_its_image`.
    """
    rows, whole = len(inputs["input_ids"]), each_its_image(model, inputs)
    if not _is_repeated(model, inputs):
        pixels: Tensor = inputs["pixel_values"]
        if len(pixels) % rows or not _same_parts(pixels, rows):
            raise InputsError(
                f"inputs of {model.config.model_type} must hold the image once for each of the {rows} prompts, got "
                "others; pass every prompt with its image"
            )
        return encode(model, inputs)
    tensors = {name: whole[name] for name in encoder_keys(model) if isinstance(whole.get(name), Tensor)}
    first = {name: value[: len(value) // rows] for name, value in tensors.items()}
    outputs = repeated(image_features(model, {**whole, **first}), rows)
    repeat_recorded(rows)
    return _encoding(model, whole, outputs)


def _encoding(model: LVLM, inputs: Mapping[str, Any], outputs: Any) -> Encoding:
    counts = image_columns(model, inputs["input_ids"]).sum(dim=-1).tolist()
    pooled = ImageFeatures.of(outputs).pooled
    if sum(counts) != len(pooled):
        raise InputsError(
            f"inputs: image tokens in input_ids must match the image features, got {sum(counts)} tokens for "
            f"{len(pooled)} features; pass what the model's own processor returned, unchanged"
        )
    return Encoding(outputs, torch.split(pooled, counts), tuple(range(len(counts))), (1,) * len(counts), (0, 0))


def full_prompt(model: LVLM, inputs: Mapping[str, Any], encoding: Encoding) -> TokenPrompt:
    """The prompt the model itself would read."""
    ids: Tensor = inputs["input_ids"]
    mask = attention_mask_of(model, inputs).to(ids.device)
    of_positions = _of_positions(model)
    return TokenPrompt(
        ids,
        mask,
        image_columns(model, ids),
        ImageFeatures.of(encoding.outputs),
        {name: inputs[name] for name in TYPES if inputs.get(name) is not None},
        _coordinates(model, {**inputs, "attention_mask": mask}),
        {
            name: inputs[name]
            for name in of_positions
            if inputs.get(name) is not None and name not in (*TYPES, "input_ids", "attention_mask")
        },
    )


def prompt_of_patches(model: LVLM, inputs: Mapping[str, Any], encoding: Encoding, patches: Tensor) -> TokenPrompt:
    """Keeps some columns of the base tile of each image.

    Args:
        model: the model.
        inputs: what its processor returned.
        encoding: the vision tower's run over them.
        patches: `(images, k)`, columns of each image's base tile in the order they shall stand.
    """
    rows: list[list[Tensor]] = [[] for _ in inputs["input_ids"]]
    for image, chosen in zip(images_of(model, inputs), patches, strict=True):
        rows[image.row].append(chosen.cpu() + image.first)
    none = torch.empty(0, dtype=torch.long)
    return full_prompt(model, inputs, encoding).keep([torch.cat([none, *row]) for row in rows])


def prompt_without(model: LVLM, inputs: Mapping[str, Any], encoding: Encoding, patches: Tensor) -> TokenPrompt:
    """Leaves out some columns of the base tile of each image; all others stay.

    Args:
        model: the model.
        inputs: what its processor returned.
        encoding: the vision tower's run over them.
        patches: `(images, k)`, columns of each image's base tile.
    """
    full = full_prompt(model, inputs, encoding)
    stays = [torch.ones(int(columns), dtype=torch.bool) for columns in full.image_mask.sum(dim=-1)]
    for image, dropped in zip(images_of(model, inputs), patches, strict=True):
        stays[image.row][dropped.cpu() + image.first] = False
    return full.keep([row.nonzero().flatten() for row in stays])


def column_patches(model: LVLM, inputs: Mapping[str, Any], encoding: Encoding) -> list[ColumnPatches]:
    """Refuses: prompts of these models are not pruned.

    Raises:
        UnsupportedModelError: always.
    """
    raise UnsupportedModelError(
        f"keep_tokens must be left out for {model.config.model_type}, whose prompts are not pruned; LLaVA, LLaVA-NeXT, "
        "ViP-LLaVA and Video-LLaVA's are"
    )


def each_its_image(model: LVLM, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Inputs in which every prompt has an image of its own, of prompts that all show the same.

    Args:
        model: the model.
        inputs: of B prompts; the image stands in them once, or once a prompt. Where images have numbers in their batch
            (Molmo 2, MiniCPM-V) they are left as they are.

    Raises:
        InputsError: if there are several images.
    """
    if not _is_repeated(model, inputs):
        return inputs
    rows = len(inputs["input_ids"])
    once = {name: inputs[name] for name in encoder_keys(model) if isinstance(inputs.get(name), Tensor)}
    if all(len(value) % rows == 0 and _same_parts(value, rows) for value in once.values()):
        return inputs
    repeated = {name: value.repeat(rows, *[1] * (value.ndim - 1)) for name, value in once.items()}
    image = image_columns(model, inputs["input_ids"])
    columns = image.sum(dim=-1)
    if not bool((columns == columns[0]).all()) or len(inputs.get("image_grid_thw", [0])) != 1:
        raise InputsError(
            f"inputs must show the same image in all {rows} prompts to share it, got others; leave shared_prefix out, "
            "or pass one image at a time"
        )
    return {**inputs, **repeated}


def _is_repeated(model: LVLM, inputs: Mapping[str, Any]) -> bool:
    """Whether the tower's inputs of several equal images are those of one, repeated: no numbers of patches."""
    told = [name for name in encoder_keys(model) if isinstance(inputs.get(name), Tensor)]
    return not {"image_token_pooling", "target_sizes"}.intersection(told)


def _same_parts(value: Tensor, parts: int) -> bool:
    """Whether a tensor consists of so many equal parts."""
    split = value.reshape(parts, -1)
    return bool((split == split[:1]).all())


@contextmanager
def record(model: LVLM, inputs: Mapping[str, Any], numbers: list[int]) -> Iterator[dict[int, RecordedLayer]]:
    """While open, records the attention of some layers of the vision tower; see :mod:`.attention`."""
    tower = image_tower(model)
    with recording(tower, numbers, "cls" if has_cls(tower) else "received") as recorded:
        yield recorded


def _of_positions(model: LVLM) -> tuple[str, ...]:
    """Names of the inputs that say where columns stand; none if their number says it."""
    index = getattr(model.base_model, "get_rope_index", None)
    return () if index is None else tuple(name for name in inspect.signature(index).parameters if name != "kwargs")


def _coordinates(model: LVLM, inputs: Mapping[str, Any]) -> Tensor | None:
    """`(axes, B, L)`, where columns stand; None if their number says it.

    Raises:
        InputsError: if what tells tokens of images from text is missing.
    """
    names = _of_positions(model)
    if not names:
        return None
    if "mm_token_type_ids" in names and inputs.get("mm_token_type_ids") is None:
        raise InputsError(
            f"inputs of {model.config.model_type} must hold 'mm_token_type_ids', got {sorted(inputs)}; call the "
            "model's own processor, or its apply_chat_template, which return it"
        )
    found: Tensor = model.base_model.get_rope_index(
        **{name: inputs[name] for name in names if inputs.get(name) is not None}
    )[0]
    return found
