"""The negative prompt of DAMRO and its controls: the prompt whose image is nothing but some patches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from damro.decoding.families import check_inputs, family_of
from damro.decoding.rules import Contrast, ContrastRule
from damro.methods.base import Scene, VisionRun, seed_of
from damro.methods.damro import Damro, Variant
from damro.methods.presets import Task
from damro.pruning import Pruning
from damro.vision.attention import CLSAttention, family_heads, read_layer
from damro.vision.outliers import check_top_k, rank_patches

Choose = Callable[[Tensor, int], Tensor]
"""A choice of patches: from `(tiles, patches)`, attention, and k to `(tiles, k)`, in the order they shall stand."""


@dataclass(frozen=True)
class PatchContrast(Contrast):
    """A contrast whose negative prompt holds some patches of the image.

    Attributes:
        attention: the [CLS] attention that patches were chosen by, or of a ViT without [CLS] the attention they
            receive; its `source` tells.
        outliers: `(tiles, k)`, the chosen patches of every tile of every image, in their order.
    """

    attention: CLSAttention
    outliers: Tensor

    def by_row(self) -> list[list[list[int]]]:
        """The chosen patches of the base tiles in each row of the prompt."""
        found: list[list[list[int]]] = [[] for _ in range(len(self.full.attention_mask))]
        where = zip(self.attention.row.tolist(), self.attention.tile.tolist(), self.outliers.tolist(), strict=True)
        for row, tile, chosen in where:
            if tile == 0:
                found[row].append(chosen)
        return found


class OutlierView(NamedTuple):
    """DAMRO's two prompts and rule, and what they were made from.

    Attributes:
        contrast: ready for :func:`damro.decoding.generate.decode`.
        attention: as of :class:`PatchContrast`.
        outliers: `(tiles, k)`, the chosen patches of every tile of every image in descending attention.
    """

    contrast: PatchContrast
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
    method = Damro(alpha=alpha, beta=beta, top_k=top_k, task=task, variant=variant)
    family_of(model)
    check_inputs(model, inputs)
    settled = method.settle(model.config.model_type)
    contrast = patch_contrast(model, inputs, Scene(shared_image, pruning), settled, choose or rank_patches)
    return OutlierView(contrast, contrast.attention, contrast.outliers)


def patch_contrast(
    model: PreTrainedModel, inputs: Mapping[str, Any], scene: Scene, method: Damro, choose: Choose
) -> PatchContrast:
    """The prompt against its image's chosen patches.

    Args:
        model: the LVLM.
        inputs: what its processor returned.
        scene: see :class:`damro.methods.base.Scene`.
        method: settled; its strengths, its number of patches and its variant count.
        choose: which patches.

    Raises:
        ParameterError: more patches than there are.
        InputsError: as :meth:`damro.methods.base.Scene.look`.
        UnsupportedModelError: a ViT whose attention cannot be read.
    """
    assert method.alpha is not None and method.beta is not None and method.top_k is not None  # settled
    family = family_of(model)
    reference = method.variant == "reference"
    run, attention, outliers = rank_image(model, inputs, scene, method.top_k, choose, reference=reference)
    # Where the released code takes features from a tensor with [CLS] in front, by indices that do not count it, patch
    # i - 1 stands for patch i.
    shift = getattr(family, "REFERENCE_SHIFT", 0) if reference else 0
    full = scene.full_prompt(model, inputs, run)
    negative = family.prompt_of_patches(model, inputs, run.encoding, outliers - shift)
    return PatchContrast(full, negative, ContrastRule(method.alpha, method.beta), attention, outliers)


class Ranked(NamedTuple):
    """One run of the vision tower, and what was chosen by its attention.

    Attributes:
        run: of the tower.
        attention: by which patches were chosen.
        outliers: `(tiles, k)`, the chosen patches of every tile of every image.
    """

    run: VisionRun
    attention: CLSAttention
    outliers: Tensor


def rank_image(
    model: PreTrainedModel, inputs: Mapping[str, Any], scene: Scene, top_k: int, choose: Choose, *, reference: bool
) -> Ranked:
    """Runs the vision tower once and chooses patches of each tile.

    Args:
        model: the LVLM.
        inputs: what its processor returned.
        scene: see :class:`damro.methods.base.Scene`.
        top_k: how many.
        choose: which.
        reference: rank by the layer that the released code reads, see :meth:`Family.feature_layer`.

    Raises:
        ParameterError: more patches than there are.
        InputsError: as :meth:`damro.methods.base.Scene.look`.
        UnsupportedModelError: a ViT whose attention cannot be read.
    """
    family = family_of(model)
    layer = family.feature_layer(model, reference=reference)
    run = scene.look(model, inputs, [layer])
    attention = read_layer(family, model, inputs, run.recorded, run.encoding, layer, family_heads(family))
    outliers = choose_patches(attention, top_k, choose)
    # Of an image that all prompts share the tower saw one copy.
    copies = len(attention.row) // len(outliers)
    attention = replace(attention, weights=attention.weights.repeat(copies, 1))
    return Ranked(run, attention, outliers.repeat(copies, 1))


def choose_patches(attention: CLSAttention, top_k: int, choose: Choose) -> Tensor:
    """`(tiles, k)`: a choice of patches; of images of different shapes, among the patches of each.

    Raises:
        ParameterError: more patches than there are.
    """
    patches = [attention.patches_of(tile) for tile in range(len(attention.weights))]
    check_top_k(top_k, min(patches))
    if not attention.grids:
        return choose(attention.weights, top_k)
    # Each as its number among tiles that are all of its own shape, so that random choices differ between images.
    alike = [row[:count].expand(len(patches), -1) for row, count in zip(attention.weights, patches, strict=True)]
    return torch.stack([choose(weights, top_k)[tile] for tile, weights in enumerate(alike)])


def random_patches(seeds: int | list[int]) -> Choose:
    """K patches drawn without replacement, the same ones for the same seeds on every device.

    Args:
        seeds: one for all tiles of a batch, which are then drawn in a row, or one a tile, whose draw then depends on
            nothing else. Of fewer seeds than tiles, those of an image that all prompts show, each prompt has the same.

    Example:
        >>> import torch
        >>> torch.equal(random_patches(1)(torch.zeros(2, 9), 3), random_patches(1)(torch.ones(2, 9), 3))
        True
        >>> torch.equal(random_patches([5, 6])(torch.zeros(2, 9), 3)[1:], random_patches([6])(torch.zeros(1, 9), 3))
        True
    """

    def choose(weights: Tensor, top_k: int) -> Tensor:
        if isinstance(seeds, int):
            order = torch.rand(weights.shape, generator=torch.Generator().manual_seed(seeds)).argsort(dim=-1)
        else:
            patches = weights.shape[-1]
            drawn = torch.stack([torch.randperm(patches, generator=torch.Generator().manual_seed(s)) for s in seeds])
            order = drawn.repeat(len(weights) // len(drawn), 1)
        return order[:, :top_k].to(weights.device)

    return choose


def random_choice(model: PreTrainedModel, inputs: Mapping[str, Any], scene: Scene, seed: int) -> Choose:
    """Patches drawn by the seed and, where images have names, by theirs alone."""
    if scene.images is None:
        return random_patches(seed)
    tiles = zip(scene.images, tiles_of_images(model, inputs), strict=False)
    return random_patches(
        [seed_of(seed, f"{name}#{tile}", "patches") for name, count in tiles for tile in range(count)]
    )


def least_patches(weights: Tensor, top_k: int) -> Tensor:
    """The k patches with the least attention, the least first.

    Example:
        >>> import torch
        >>> least_patches(torch.tensor([[0.3, 0.1, 0.2]]), 2).tolist()
        [[1, 2]]
    """
    return weights.argsort(dim=-1, stable=True)[:, :top_k]


def tiles_of_images(model: PreTrainedModel, inputs: Mapping[str, Any]) -> list[int]:
    """How many tiles the vision tower reads of each image."""
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    family: Any = family_of(model)
    if hasattr(family, "images_of"):
        return [1] * len(family.images_of(model, inputs))
    if "image_sizes" not in inputs:
        pixels: Tensor = next(inputs[key] for key in family.PIXELS if key in inputs)
        return [pixels.shape[1] if pixels.ndim == 5 else 1] * len(pixels)  # the frames of a video
    pinpoints, side = model.config.image_grid_pinpoints, model.config.vision_config.image_size
    return [int(image_size_to_num_patches(size, pinpoints, side)) for size in inputs["image_sizes"]]
