"""Where in the picture the image columns of a prompt lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llava_next import modeling_llava_next

from damro.decoding.families import Encoding, family_of
from damro.decoding.hooks import Look, hooked
from damro.errors import InputsError
from damro.inspection.plain import Plain

TILED = ("llava_next", "llava_onevision")
"""Families that cut an image into tiles. Where others have several, they are the frames of a video."""


@dataclass(frozen=True)
class ImageView(Plain):
    """A grid of patches over one image of a prompt, and how to read it out of the image columns.

    Attributes:
        name: "image", the whole image in one grid, or "tiles", LLaVA-NeXT's finer grid over the same image; of a
            video "frame 0", "frame 1" and so on.
        image: the image's number in the prompt.
        grid: rows and columns of patches.
        columns: ordinals among the prompt's image columns: `(patches,)` in row-major order; with `mixing`
            `(queries,)`.
        mixing: None, or `(queries, patches)`: how much each query column holds of each patch (InstructBLIP).
    """

    name: str
    image: int
    grid: tuple[int, int]
    columns: Tensor
    mixing: Tensor | None = None

    def read(self, values: Tensor) -> Tensor:
        """Lays values of the image columns out as pictures.

        Args:
            values: `(..., I)`, one value for each image column of the prompt.

        Returns:
            `(..., rows, columns)`.

        Example:
            >>> import torch
            >>> view = ImageView("image", 0, (2, 1), torch.tensor([3, 1]))
            >>> view.read(torch.tensor([0.0, 0.1, 0.2, 0.3])).tolist()
            [[0.30...], [0.10...]]
        """
        chosen = values[..., self.columns]
        if self.mixing is not None:
            chosen = chosen @ self.mixing
        return chosen.reshape(*chosen.shape[:-1], *self.grid)


def find_view(views: tuple[ImageView, ...], name: str = "image", image: int = 0) -> ImageView:
    """The view of that name and image.

    Raises:
        InputsError: if there is none.
    """
    for view in views:
        if (view.name, view.image) == (name, image):
            return view
    known = ", ".join(f"{view.name!r} of image {view.image}" for view in views)
    raise InputsError(f"view must be one of {known}, got {name!r} of image {image}")


def image_views(
    model: PreTrainedModel, inputs: Mapping[str, Any], encoding: Encoding, cross: Tensor | None = None
) -> tuple[ImageView, ...]:
    """The views of a single prompt's images.

    Args:
        model: a supported LVLM.
        inputs: what its processor returned for one prompt.
        encoding: the vision tower's run over them.
        cross: for InstructBLIP, `(images, or frames of videos, queries, patches)`: what :func:`record_cross` kept.
    """
    family: Any = family_of(model)
    if hasattr(family, "images_of"):  # columns are merged patches: those of each image's base tile
        bases = enumerate(family.images_of(model, inputs))
        return tuple(
            ImageView("image", number, base.grid, torch.arange(base.first, base.first + base.columns))
            for number, base in bases
        )
    views: list[ImageView] = []
    start = 0
    for image, feature in enumerate(encoding.features):
        ordinals = torch.arange(start, start + len(feature))
        start += len(feature)
        if cross is not None:
            first, tiles = sum(encoding.tiles[:image]), encoding.tiles[image]
            for frame, own in enumerate(ordinals.view(tiles, -1)):
                name = "image" if tiles == 1 else f"frame {frame}"
                views.append(ImageView(name, image, encoding.grid, own, cross[first + frame]))
            continue
        patches = encoding.grid[0] * encoding.grid[1]
        tiled = model.config.model_type in TILED
        if encoding.tiles[image] > 1 and not tiled:  # a video: every frame is [CLS] and its patches
            frames = enumerate(ordinals.view(encoding.tiles[image], -1))
            views.extend(ImageView(f"frame {frame}", image, encoding.grid, own[1:]) for frame, own in frames)
        elif tiled:
            views.append(ImageView("image", image, encoding.grid, ordinals[:patches]))
            # LLaVA-OneVision shrinks the tiles of large images: their columns are no patches.
            if encoding.tiles[image] > 1 and model.config.model_type == "llava_next":
                fine = _fine_grid(ordinals[patches:], tiled_shape(model, inputs, encoding, image))
                views.append(ImageView("tiles", image, (fine.shape[0], fine.shape[1]), fine.flatten()))
        else:
            # With the feature strategy "full" the [CLS] column stands in front of the patches.
            views.append(ImageView("image", image, encoding.grid, ordinals[len(feature) - patches :]))
    return tuple(views)


def _fine_grid(ordinals: Tensor, shape: tuple[int, int]) -> Tensor:
    """`(rows, columns)`, without the newline column that ends every row."""
    return ordinals.view(shape[0], shape[1] + 1)[:, :-1]


def tiled_shape(model: PreTrainedModel, inputs: Mapping[str, Any], encoding: Encoding, image: int) -> tuple[int, int]:
    """Patch rows and columns of LLaVA-NeXT's tiles together, padding cut off."""
    tiles = encoding.tiles[image] - 1
    blank = torch.zeros(tiles, encoding.grid[0] * encoding.grid[1])
    rows, columns = stitch_tiles(model, inputs, encoding, image, blank).shape
    return rows, columns


def stitch_tiles(
    model: PreTrainedModel, inputs: Mapping[str, Any], encoding: Encoding, image: int, values: Tensor
) -> Tensor:
    """Joins the tiles of LLaVA-NeXT or LLaVA-OneVision to one picture and cuts off the padding, as the model does.

    Args:
        model: of a family in :data:`TILED`.
        inputs: with `image_sizes`.
        encoding: the vision tower's run over them.
        image: which image.
        values: `(tiles, patches)`, without the base tile.

    Returns:
        `(rows, columns)`.
    """
    size = inputs["image_sizes"][image].tolist()
    config: Any = model.config
    packing: Any = modeling_llava_next  # untyped
    down, across = packing.get_anyres_image_grid_shape(
        size, config.image_grid_pinpoints, config.vision_config.image_size
    )
    rows, columns = encoding.grid
    whole = values.view(down, across, rows, columns).transpose(1, 2).reshape(down * rows, across * columns)
    cut: Tensor = packing.unpad_image(whole[None], size)[0]
    return cut


@contextmanager
def record_cross(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """While open, keeps InstructBLIP's cross-attention whenever its Q-Former runs.

    Yields:
        A list that gets one tensor `(images, queries, 1 + patches)` for each cross-attention layer, averaged over
        heads; it stays empty for other families. Hooks are removed on exit.
    """
    kept: list[Tensor] = []
    qformer = getattr(model, "qformer", None)
    layers: Any = () if qformer is None else qformer.encoder.layer
    crossing = [layer.crossattention.attention for layer in layers if layer.has_cross_attention]
    with hooked(after=[look for attention in crossing for look in _looks_across(attention, kept)]):
        yield kept


def _looks_across(attention: Any, kept: list[Tensor]) -> list[tuple[nn.Module, Look]]:
    """Modules, and functions that see their output: they append the weights of one attention after each of its runs."""
    parts: dict[str, Tensor] = {}

    def keep(name: str) -> Look:
        def hook(module: Any, args: Any, output: Tensor) -> None:
            parts[name] = output.view(*output.shape[:2], attention.num_attention_heads, -1).float()

        return hook

    def finish(module: Any, args: Any, output: Any) -> None:
        logits = torch.einsum("bqhd,bkhd->bhqk", parts.pop("query"), parts.pop("key")) * attention.scaling
        kept.append(torch.softmax(logits, dim=-1).mean(dim=1).cpu())

    return [
        (attention.query, keep("query")),
        (attention.key, keep("key")),
        (attention, finish),
    ]


def encode_with_views(model: PreTrainedModel, inputs: Mapping[str, Any]) -> tuple[Encoding, tuple[ImageView, ...]]:
    """Runs the vision tower (and Q-Former) once and tells where its columns lie."""
    with record_cross(model) as kept:
        encoding = family_of(model).encode(model, inputs)
    patches = encoding.grid[0] * encoding.grid[1]
    cross = torch.stack(kept).mean(dim=0)[..., -patches:] if kept else None
    return encoding, image_views(model, inputs, encoding, cross)
