"""Where the images of a batch stand in their prompts, and of which shape they are.

What a vision tower reads at once is a tile: an image, or a part of one that was cut up. Of an image that was cut up the
base tile counts, which shows the whole of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from damro.decoding.errors import InputsError, UnsupportedModelError
from damro.decoding.families.base import image_columns
from damro.decoding.families.generic.support import check_patches

Grid = tuple[int, int]

Joined = Literal["adjacent", "one between", "marked", "counted"]
"""How to tell that tiles are of one image: no token stands between them; at most one does; base tiles stand behind a
marker of their own, which is that of the last tile; or every tile stands behind its place in the image, so that where
the first place comes again, another image begins."""


class Tiling(NamedTuple):
    """How a processor cuts images up.

    Attributes:
        joined: how the tiles of an image stand in a prompt.
        base: which of them is the whole image.
    """

    joined: Joined
    base: Literal["first", "last"] = "last"


TILINGS: dict[str, Tiling] = {
    "internvl": Tiling("adjacent"),
    "qianfan_ocr": Tiling("adjacent"),
    "got_ocr2": Tiling("adjacent"),
    "aya_vision": Tiling("marked"),
    "cohere2_vision": Tiling("one between"),
    "lfm2_vl": Tiling("one between"),
    "ovis2": Tiling("one between", "first"),
    "idefics3": Tiling("marked"),
    "smolvlm": Tiling("marked"),
    "granite_docling": Tiling("counted"),
}
"""Models whose processors cut images up, by `config.model_type`. Of all others a tile is an image."""


class ImageColumns(NamedTuple):
    """The columns of an image's base tile.

    Attributes:
        row: the prompt it stands in.
        first: the ordinal of its first column among the image columns of that prompt.
        tile: its number among the tiles that the tower reads.
        patches: rows and columns of its patches.
        merge: side of the square of patches that becomes a column.
    """

    row: int
    first: int
    tile: int
    patches: Grid
    merge: int

    @property
    def grid(self) -> Grid:
        """Rows and columns of its columns."""
        return self.patches[0] // self.merge, self.patches[1] // self.merge

    @property
    def columns(self) -> int:
        """How many there are."""
        return self.grid[0] * self.grid[1]


def patch_size(model: Any) -> int:
    """Side of a patch in pixels."""
    size = getattr(model.config.vision_config, "patch_size", None)
    if size is None:
        raise UnsupportedModelError(
            f"vision_config must have a patch_size, got none for {model.config.model_type}; its columns cannot be "
            "told to be patches"
        )
    return int(size if isinstance(size, int) else size[0])


def patch_grids(model: Any, inputs: Mapping[str, Any]) -> list[Grid]:
    """Rows and columns of patches of every tile that the tower reads, in its order."""
    if inputs.get("image_grid_thw") is not None:
        return [(frames * rows, columns) for frames, rows, columns in inputs["image_grid_thw"].tolist()]
    if inputs.get("spatial_shapes") is not None:
        return [(rows, columns) for rows, columns in inputs["spatial_shapes"].tolist()]
    if inputs.get("image_position_ids") is not None:  # (tiles, patches, 2): column and row, -1 where it is filled up
        return [(rows, columns) for columns, rows in (inputs["image_position_ids"].amax(dim=1) + 1).tolist()]
    pixels: Tensor = inputs["pixel_values"]
    side = patch_size(model)
    if inputs.get("image_sizes") is not None:
        return [(height // side, width // side) for height, width in inputs["image_sizes"].tolist()]
    if pixels.ndim < 4:
        raise UnsupportedModelError(
            f"pixel_values must be images or come with image_grid_thw or spatial_shapes, got shape "
            f"{tuple(pixels.shape)} for {model.config.model_type}; which patch is where cannot be told"
        )
    tiles = pixels.flatten(0, -4)
    # Where prompts have different numbers of tiles (Idefics3), those of nothing but zeros fill up.
    read = len(tiles) if pixels.ndim == 4 else int((tiles != 0).flatten(1).any(dim=1).sum())
    return [(tiles.shape[-2] // side, tiles.shape[-1] // side)] * read


def images_of(model: Any, inputs: Mapping[str, Any]) -> list[ImageColumns]:
    """The base tile of every image, in the order of the prompts.

    Raises:
        UnsupportedModelError: if image columns are no squares of patches.
        InputsError: if tiles and image tokens do not come out even.
    """
    check_patches(model)
    ids: Tensor = inputs["input_ids"].cpu()
    image = image_columns(model, ids)
    grids = patch_grids(model, inputs)
    merge = _merge(model, grids, int(image.sum()))
    sizes = [rows * columns // merge**2 for rows, columns in grids]
    left = image.sum(dim=-1).tolist()
    tiles: list[list[int]] = [[] for _ in left]
    row = 0
    for tile, size in enumerate(sizes):
        while left[row] == 0:
            row += 1
        if left[row] < size:
            raise InputsError(
                f"inputs: image tokens in input_ids must match the images, got no room for the {size} columns of tile "
                f"{tile}; pass what the model's own processor returned, unchanged"
            )
        left[row] -= size
        tiles[row].append(tile)
    last = _token_before_last(ids, image, tiles, sizes)
    found = []
    for row, own in enumerate(tiles):
        spans = list(torch.split(image[row].nonzero().flatten(), [sizes[tile] for tile in own]))
        starts = [0, *torch.tensor([sizes[tile] for tile in own]).cumsum(0).tolist()]
        for number in base_tiles(TILINGS.get(model.config.model_type), ids[row], spans, last):
            tile = own[number]
            found.append(ImageColumns(row, starts[number], tile, grids[tile], merge))
    return found


def base_tiles(tiling: Tiling | None, ids: Tensor, spans: list[Tensor], marker: int | None) -> list[int]:
    """Which tiles of a prompt are base tiles.

    Args:
        tiling: how the processor cuts images up; None if it does not.
        ids: `(L,)`, the tokens of the prompt.
        spans: for each tile, its columns.
        marker: the token in front of the last tile of the last prompt.

    Example:
        >>> import torch
        >>> two = [torch.tensor([1, 2]), torch.tensor([4, 5])]
        >>> ids = torch.tensor([7, 0, 0, 8, 0, 0])
        >>> for joined in ("adjacent", "one between", "marked", "counted"):
        ...     base_tiles(Tiling(joined), ids, two, 8)
        [0, 1]
        [1]
        [1]
        [1]
    """
    if tiling is None:
        return list(range(len(spans)))
    if tiling.joined == "marked":
        return [tile for tile, span in enumerate(spans) if int(span[0]) and int(ids[span[0] - 1]) == marker]
    images: list[list[int]] = []
    for tile in range(len(spans)):
        if images and _same_image(tiling.joined, ids, spans, tile):
            images[-1].append(tile)
        else:
            images.append([tile])
    return [image[0 if tiling.base == "first" else -1] for image in images]


def _same_image(joined: Joined, ids: Tensor, spans: list[Tensor], tile: int) -> bool:
    """Whether a tile belongs to the image of the one before it."""
    first, here = int(spans[0][0]), int(spans[tile][0])
    if joined == "counted":
        return first == 0 or int(ids[here - 1]) != int(ids[first - 1])
    between = here - int(spans[tile - 1][-1]) - 1
    return between <= (0 if joined == "adjacent" else 1)


def _token_before_last(ids: Tensor, image: Tensor, tiles: list[list[int]], sizes: list[int]) -> int | None:
    row = max(row for row, own in enumerate(tiles) if own)
    first = int(image[row].nonzero().flatten()[-sizes[tiles[row][-1]]])
    return int(ids[row, first - 1]) if first else None


def _merge(model: Any, grids: list[Grid], columns: int) -> int:
    """Side of the square of patches that becomes a column."""
    patches = sum(rows * across for rows, across in grids)
    merge = round(math.sqrt(patches / columns))
    if merge**2 * columns != patches or any(rows % merge or across % merge for rows, across in grids):
        raise UnsupportedModelError(
            f"image columns of {model.config.model_type} must be patches, or squares of them, got {columns} columns of "
            f"{patches} patches; methods that choose patches (damro, random-k, least-k) need them"
        )
    return merge
