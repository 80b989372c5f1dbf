"""DAMRO's negative view: the prompt whose image is nothing but outlier patches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from damro.decoding.branches.prefix import encode_shared
from damro.decoding.families import check_inputs, family_of
from damro.decoding.rules import Contrast, ContrastRule
from damro.errors import ParameterError
from damro.methods.presets import Task, check_task, preset
from damro.pruning import Pruning, full_prompt, record_for
from damro.vision.attention import CLSAttention, family_heads, read_attention, record_cls
from damro.vision.outliers import check_top_k, rank_patches

Variant = Literal["reference", "corrected"]
Choose = Callable[[Tensor, int], Tensor]


class OutlierView(NamedTuple):
    """DAMRO's two prompts and rule, and what they were made from.

    Attributes:
        contrast: ready for :func:`damro.decoding.generate.decode`.
        attention: the [CLS] attention that patches were chosen by, or of a ViT without [CLS] the attention they
            receive; its `source` tells.
        outliers: `(tiles, k)`, the chosen patches of every tile of every image in descending attention.
    """

    contrast: Contrast
    attention: CLSAttention
    outliers: Tensor


@torch.no_grad()
def outlier_view(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    *,
    alpha: float | None = None,
    beta: float | None = None,
    top_k: int | None = None,
    task: Task | None = None,
    variant: Variant = "reference",
    choose: Choose | None = None,
    shared_image: bool = False,
    pruning: Pruning | None = None,
) -> OutlierView:
    """Runs the vision tower once and builds the full and the outlier-only prompt from that run.

    Args:
        model: of one of ``damro.decoding.families.FAMILIES``.
        inputs: the mapping its processor returned for images and text, padded on the left unless an encoder reads it.
        alpha: strength of the contrast; None takes the preset of the family and `task`.
        beta: plausibility cutoff in (0, 1]; None takes the preset.
        top_k: number of outlier patches of a tile; None takes the preset.
        task: "pope", "chair", "mme" or None; chooses the preset only.
        variant: "reference" or "corrected", see :class:`damro.DAMROProcessor`.
        choose: another choice of patches, `(weights (tiles, patches), k) -> (tiles, k)`.
        shared_image: all prompts show one image; the vision tower sees it once.
        pruning: which image columns of the full prompt to keep, see :mod:`damro.pruning`; None keeps all. The
            outliers are the same with it and without.

    Raises:
        UnsupportedModelError: the family, or one without a preset where alpha, beta or top_k is None; with
            `pruning`, a ViT without [CLS] or columns that are not patches.
        InputsError: no image, no image token, right padding before a causal model; different images with
            `shared_image`.
        ParameterError: alpha, beta, top_k or variant out of range.
    """
    check_variant(variant)
    family = family_of(model)
    check_inputs(model, inputs)
    rule = rule_for(model, alpha, beta, task)
    top_k = preset(model.config.model_type, task).top_k if top_k is None else top_k
    reference = variant == "reference"
    layer = family.feature_layer(model, reference=reference)
    tower = family.vision_tower(model, inputs)
    with record_cls(tower, [layer]) as recorded, record_for(pruning, model, inputs) as ranked:
        encoding = encode_shared(model, inputs) if shared_image else family.encode(model, inputs)
    attention = read_attention(recorded[layer], encoding, layer, family_heads(family))
    check_top_k(top_k, attention.weights.shape[-1])
    outliers = (choose or rank_patches)(attention.weights, top_k)
    # Of an image that all prompts share the tower saw one copy.
    copies = len(attention.row) // len(outliers)
    outliers = outliers.repeat(copies, 1)
    attention = replace(attention, weights=attention.weights.repeat(copies, 1))
    # The released code takes InstructBLIP's features from a tensor with [CLS] in front, by indices that do not
    # count it: patch i - 1 stands for patch i.
    shift = int(reference and model.config.model_type == "instructblip")
    full = full_prompt(model, inputs, encoding, pruning, ranked)
    negative = family.prompt_of_patches(model, inputs, encoding, outliers - shift)
    return OutlierView(Contrast(full, negative, rule), attention, outliers)


def check_variant(variant: str) -> None:
    """Checks the name of a variant.

    Raises:
        ParameterError: if there is no such variant.
    """
    if variant not in get_args(Variant):
        raise ParameterError(f"variant must be one of {', '.join(get_args(Variant))}, got {variant!r}")


def rule_for(model: PreTrainedModel, alpha: float | None, beta: float | None, task: Task | None) -> ContrastRule:
    """The rule of DAMRO and its controls: what is not given comes from the preset of the family and task.

    Raises:
        UnsupportedModelError: if the family has no preset to take alpha or beta from.
        ParameterError: if alpha, beta or task is not valid.
    """
    check_task(task)
    if alpha is None or beta is None:
        defaults = preset(model.config.model_type, task)
        alpha, beta = defaults.alpha if alpha is None else alpha, defaults.beta if beta is None else beta
    return ContrastRule(alpha, beta)
