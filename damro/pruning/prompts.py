"""Pruning: the prompt with fewer image columns, chosen by the [CLS] attention that also flags outliers.

All choices are made before the language model runs and need nothing but the vision tower's own run, so that
prefill, decoding and the KV cache all get cheaper. Kept columns stay in image order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from damro.decoding.families import ColumnPatches, Encoding, check_inputs, family_of
from damro.decoding.prompts import Prompt, VisualPrompt, embedded
from damro.errors import ParameterError
from damro.pruning.rules import (
    gumbel_scores,
    information_density,
    iqr_counts,
    keep_top,
    kept_columns,
    present_patches,
)
from damro.vision.attention import resolve_layer, summary_tokens
from damro.vision.finite import check_weights
from damro.vision.query_keys import ClsQueryKeys, cls_weights, record_cls

By = Literal["attention", "layers", "correlation", "unattended"]


@torch.no_grad()
def prune(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    keep_tokens: int | None = 192,
    *,
    by: By = "attention",
    start_layer: int | None = None,
    seed: int = 0,
) -> VisualPrompt:
    """The full prompt with some of its image columns only.

    ::

        prompt = prune(model, inputs, keep_tokens=192)
        ids = model.generate(
            inputs_embeds=prompt.inputs_embeds, attention_mask=prompt.attention_mask, max_new_tokens=64
        )

    LLaVA-NeXT's tiles are pruned one by one; of its newline columns those of lines that keep a patch stay.
    Patches that are cut off as padding of a tile are not candidates. Of a video of Video-LLaVA every frame is pruned
    by itself, and keeps its own [CLS] column.

    Args:
        model: a LLaVA, LLaVA-NeXT, ViP-LLaVA or Video-LLaVA model. InstructBLIP's and BLIP-2's columns are queries
            of a Q-Former, not patches; there are few of them already.
        inputs: what its processor returned for images and left-padded text.
        keep_tokens: see :class:`Pruning`.
        by: see :class:`Pruning`.
        start_layer: see :class:`Pruning`.
        seed: see :class:`Pruning`.

    Raises:
        ParameterError: if a parameter is out of range.
        UnsupportedModelError: if the image columns are not patches, or the ViT has no [CLS].
        InputsError: no image, no image token, right padding before a causal model.
    """
    pruning = Pruning(keep_tokens, by, start_layer, seed)
    check_inputs(model, inputs)
    with pruning.record(model, inputs) as recorded:
        encoding = family_of(model).encode(model, inputs)
    return pruning.apply(model, inputs, encoding, recorded)


@dataclass(frozen=True)
class Pruning:
    """Which image columns to keep, for a vision pass that something else may need too.

    Attributes:
        keep_tokens: patches to keep of each tile, of a video of each frame; None for as many as the picture asks
            for: with "correlation" its information density, otherwise the patches above the third quartile by 1.5
            interquartile ranges (the count of LLaVA-PruMerge, arXiv 2403.15388), at least one; with "unattended"
            all but those.
        by: "attention", the most attended by [CLS] at the layer the features come from, head mean (FasterVLM,
            arXiv 2412.01818); "layers", the same summed from `start_layer` to that layer (VTC-CLS, arXiv
            2412.05819); "correlation", drawn with probabilities in proportion to that attention, `keep_tokens` or
            as many as the density allows, whichever is less (after arXiv 2407.14439, see
            :func:`information_density`); "unattended", the least attended: what is left without the outliers, the
            other experiment on whether they mislead.
        start_layer: of "layers", the first ViT layer of the sum; negative counts from the end.
        seed: of "correlation". A tile's draw does not depend on what else is in the batch.

    Raises:
        ParameterError: if one is out of range or missing.

    Example:
        >>> Pruning(keep_tokens=0)
        Traceback (most recent call last):
            ...
        damro.decoding.errors.ParameterError: keep_tokens must be a whole number of at least 1, or None, got 0
    """

    keep_tokens: int | None = 192
    by: By = "attention"
    start_layer: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks what can be checked without a model."""
        keep = self.keep_tokens
        if keep is not None and (not isinstance(keep, Integral) or isinstance(keep, bool) or keep < 1):
            raise ParameterError(f"keep_tokens must be a whole number of at least 1, or None, got {keep!r}")
        if self.by not in get_args(By):
            raise ParameterError(f"by must be one of {', '.join(get_args(By))}, got {self.by!r}")
        if (self.by == "layers") != (self.start_layer is not None):
            raise ParameterError(
                f"start_layer must be given with by='layers' and only there, got {self.start_layer!r} with {self.by!r}"
            )

    def record(
        self, model: PreTrainedModel, inputs: Mapping[str, Any]
    ) -> AbstractContextManager[dict[int, ClsQueryKeys]]:
        """A context in which one run of the vision tower leaves what :meth:`apply` needs.

        Args:
            model: the LVLM.
            inputs: what its processor returned; they tell a ViT of images from one of videos.

        Raises:
            ParameterError: if `start_layer` is none of the ViT's, or lies behind the layer of the features.
            UnsupportedModelError: if the family's prompts are not pruned.
        """
        family: Any = family_of(model)
        if hasattr(family, "column_weights"):
            family.column_patches(model, inputs, None)  # refuses, before its ViT is taken for one of CLIP's kind
        last = family.feature_layer(model, reference=False)
        first = last if self.start_layer is None else resolve_layer(model, family, self.start_layer)
        if first > last:
            raise ParameterError(
                f"start_layer must not lie behind layer {last}, which the features come from, got {self.start_layer}"
            )
        return record_cls(family.vision_tower(model, inputs), range(first, last + 1))

    def apply(
        self,
        model: PreTrainedModel,
        inputs: Mapping[str, Any],
        encoding: Encoding,
        recorded: Mapping[int, ClsQueryKeys],
        without: Tensor | None = None,
    ) -> VisualPrompt:
        """The full prompt, pruned.

        Args:
            model: the LVLM.
            inputs: what its processor returned.
            encoding: the vision tower's run over them.
            recorded: what :meth:`record` kept of that run.
            without: boolean `(tiles of all images, patches)`, patches that are no candidates; None if all are.
        """
        family = family_of(model)
        columns = family.column_patches(model, inputs, encoding)
        patches = encoding.grid[0] * encoding.grid[1]
        if self.keep_tokens is not None and self.keep_tokens > patches:
            raise ParameterError(f"keep_tokens must not exceed the {patches} patches of a tile, got {self.keep_tokens}")
        tiles = len(recorded[max(recorded)].keys)
        present = present_patches(columns, encoding.tiles, patches)
        if without is not None:
            present &= ~without
        kept = self.choose(recorded, encoding.grid, present[:tiles])
        # Of an image that all prompts share the tower saw one copy.
        kept = kept.repeat(len(present) // tiles, 1)
        return keep_patches(model, inputs, encoding, columns, kept)

    def choose(self, recorded: Mapping[int, ClsQueryKeys], grid: tuple[int, int], present: Tensor) -> Tensor:
        """Boolean `(tiles, patches)`: the patches that stay.

        Args:
            recorded: by layer, what :meth:`record` kept.
            grid: patch rows and patch columns of a tile.
            present: boolean `(tiles, patches)`, the patches that fill a column.
        """
        last = recorded[max(recorded)]
        extra = summary_tokens(last.keys.shape[2], grid)
        weights = torch.stack([cls_weights(layer, "mean") for layer in recorded.values()]).sum(dim=0)
        scores = check_weights(weights[:, extra:].cpu())  # (tiles, patches)
        if self.by == "correlation":
            keys = last.keys[:, :, extra:].transpose(1, 2).flatten(2).cpu()  # (tiles, patches, C)
            count = (information_density(keys, present) * present.sum(dim=-1)).ceil().long()
            return keep_top(gumbel_scores(scores, self.seed), count.clamp(1, self.keep_tokens), present)
        if self.keep_tokens is not None:
            count = torch.full((len(scores),), self.keep_tokens)
        else:
            count = iqr_counts(scores, present)
            count = (present.sum(dim=-1) - count if self.by == "unattended" else count).clamp(min=1)
        return keep_top(-scores if self.by == "unattended" else scores, count, present)


def keep_patches(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    encoding: Encoding,
    columns: Sequence[ColumnPatches],
    kept: Tensor,
) -> VisualPrompt:
    """The full prompt with the columns of some patches only, boolean `(tiles of all images, patches)`."""
    prompt = embedded(family_of(model).full_prompt(model, inputs, encoding))
    return prompt.keep(kept_columns(columns, kept, encoding, len(prompt.image_mask)))


def record_for(
    pruning: Pruning | None, model: PreTrainedModel, inputs: Mapping[str, Any]
) -> AbstractContextManager[Mapping[int, ClsQueryKeys]]:
    """What :meth:`Pruning.record` is, or nothing to record without pruning."""
    return nullcontext({}) if pruning is None else pruning.record(model, inputs)


def full_prompt(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    encoding: Encoding,
    pruning: Pruning | None,
    recorded: Mapping[int, ClsQueryKeys],
) -> Prompt:
    """The prompt that sees the image, pruned or whole.

    Args:
        model: the LVLM.
        inputs: what its processor returned.
        encoding: the vision tower's run over them, inside of :func:`record_for`.
        pruning: None keeps all columns.
        recorded: what :func:`record_for` kept.
    """
    if pruning is None:
        return family_of(model).full_prompt(model, inputs, encoding)
    return pruning.apply(model, inputs, encoding, recorded)
