"""Which patches become which column: candidates, and a look at the model itself.

The layer that ranks is followed by norms, perhaps by more layers' projections, and by what joins patches to columns.
Every one of these works patch by patch or square by square. So if the output of the layer is changed at some patches,
the columns that change are theirs: a candidate that says otherwise is wrong.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from damro.decoding.errors import UnsupportedModelError
from damro.decoding.families.generic.attention import tower_layers
from damro.decoding.families.generic.features import image_features
from damro.decoding.families.generic.layout import Grid, ImageColumns, patch_size
from damro.decoding.families.generic.prompt import flat
from damro.decoding.hooks import replaced_output

_LOOKS = 2
"""So many times some patches are changed, others each time, beside a tile that is left as it is."""

_found: weakref.WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], str]] = weakref.WeakKeyDictionary()


def runs(grid: Grid, merge: int) -> Tensor:
    """Patches that follow each other become a column: the processor has sorted them.

    Returns:
        `(patches,)`, the column of every patch of a tile.

    Example:
        >>> runs((2, 4), 2).tolist()
        [0, 0, 0, 0, 1, 1, 1, 1]
    """
    return torch.arange(grid[0] * grid[1]) // merge**2


def blocks(grid: Grid, merge: int) -> Tensor:
    """Patches stand line by line, and a square of them becomes a column; see :func:`runs`.

    Example:
        >>> blocks((2, 4), 2).tolist()
        [0, 0, 1, 1, 0, 0, 1, 1]
    """
    row, column = torch.arange(grid[0])[:, None], torch.arange(grid[1])
    return ((row // merge) * (grid[1] // merge) + column // merge).flatten()


def windows(grid: Grid, merge: int, window: int) -> Tensor:
    """As :func:`runs`, but columns stand window by window in the tower (Qwen2.5-VL), and line by line behind it.

    Args:
        grid: rows and columns of patches.
        merge: side of the square that becomes a column.
        window: side of a window, in columns.

    Example:
        >>> windows((2, 4), 1, 2).tolist()
        [0, 1, 4, 5, 2, 3, 6, 7]
    """
    rows, columns = grid[0] // merge, grid[1] // merge
    place = torch.arange(rows * columns)
    row, column = place // columns, place % columns
    key = (row // window) * columns + column // window
    order = torch.argsort(key, stable=True)
    return order.repeat_interleave(merge**2)


def candidates(model: Any, grid: Grid, merge: int) -> dict[str, Tensor]:
    """The maps that may be this model's, by name."""
    maps = {"runs": runs(grid, merge), "blocks": blocks(grid, merge)}
    window = _window(model, merge)
    if window is None:
        return maps
    # Patches, too, may stand window by window, and be put back before they are merged (Muse Spark).
    patches = windows(grid, 1, window * merge)
    return {**maps, "windows": windows(grid, merge, window), "window blocks": maps["blocks"][patches]}


def _window(model: Any, merge: int) -> int | None:
    """Side of the tower's windows in columns; None without windows."""
    told = (model.config.vision_config, model.get_encoder(modality="image"))
    size = next((one.window_size for one in told if getattr(one, "window_size", None)), None)
    return None if not isinstance(size, int) else max(1, size // patch_size(model) // merge)


def column_map(model: Any, inputs: Mapping[str, Any], image: ImageColumns, layer: int, first: int) -> Tensor:
    """The column of every patch of a tile, `(patches,)`, as the model itself shows it.

    One small run of the tower for every shape that is new to it, with an image of noise three times in a batch.

    Args:
        model: the LVLM.
        inputs: what its processor returned.
        image: the tile.
        layer: of the tower, whose output is changed.
        first: how many tokens stand before the patches ([CLS]).

    Raises:
        UnsupportedModelError: if no candidate is the model's.
    """
    grid = _small(image.patches, image.merge, _window(model, image.merge))
    tower = model.get_encoder(modality="image")
    known = _found.setdefault(tower, {})
    key = (grid, image.merge, layer, first)
    if key not in known:
        known[key] = _verified(model, noise(model, inputs, grid), grid, image.merge, layer, first)
    return candidates(model, image.patches, image.merge)[known[key]]


def forget(model: Any) -> None:
    """Drops what has been looked up on a model, so that the next choice of patches looks again."""
    _found.pop(model.get_encoder(modality="image"), None)


def _small(grid: Grid, merge: int, window: int | None) -> Grid:
    """A shape no larger than need be, with several windows that end as they do in this one."""
    period = merge * (window or 2)
    rows, columns = (side if side < 3 * period else 2 * period + side % period for side in grid)
    return rows, columns


def noise(model: Any, inputs: Mapping[str, Any], grid: Grid) -> dict[str, Any]:
    """Inputs of the tower for one tile of noise, of that shape where the model reads images of any shape."""
    pixels: Tensor = inputs["pixel_values"]
    patches, told = grid[0] * grid[1], {}
    shape = list(pixels.shape)
    if inputs.get("image_grid_thw") is not None:
        shape[0] = patches
        told["image_grid_thw"] = inputs["image_grid_thw"].new_tensor([[1, *grid]])
        if inputs.get("image_merge_sizes") is not None:
            told["image_merge_sizes"] = inputs["image_merge_sizes"][:1]
    elif inputs.get("spatial_shapes") is not None:
        shape[:2] = 1, patches
        told["spatial_shapes"] = inputs["spatial_shapes"].new_tensor([grid])
    elif inputs.get("image_position_ids") is not None:
        shape[:2] = 1, patches
        place = torch.arange(patches, device=pixels.device)
        told["image_position_ids"] = torch.stack([place % grid[1], place // grid[1]], dim=-1)[None]
    else:
        shape[:-3] = [1] * (pixels.ndim - 3)
        if inputs.get("image_sizes") is not None:
            side = patch_size(model)
            shape[-2:] = grid[0] * side, grid[1] * side
            told["image_sizes"] = inputs["image_sizes"].new_tensor([shape[-2:]])
    mask = inputs.get("pixel_attention_mask")
    if mask is not None:
        size = shape[:2] if mask.ndim == 2 else [*shape[:-3], *shape[-2:]]
        told["pixel_attention_mask"] = mask.new_ones(size)
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return {"pixel_values": drawn.to(pixels.device, pixels.dtype), **told}


def _verified(model: Any, inputs: Mapping[str, Any], grid: Grid, merge: int, layer: int, first: int) -> str:
    """The name of the first candidate that tells rightly which columns change."""
    maps = candidates(model, grid, merge)
    looks = _telling_patches(list(maps.values()), grid[0] * grid[1] // merge**2)
    changed = _changed_columns(model, inputs, layer, looks, first, first + grid[0] * grid[1])
    for name, told in maps.items():
        if [set(told[patches].tolist()) for patches in looks] == changed:
            return name
    raise UnsupportedModelError(
        f"image columns of {model.config.model_type} must be patches, or squares of them, got columns that change "
        "with other patches; methods that choose patches (damro, random-k, least-k) need to know which is which"
    )


def _telling_patches(maps: Sequence[Tensor], columns: int) -> list[Tensor]:
    """Patches to change, look by look, of which no two maps that differ tell the same columns in every look."""
    random = torch.Generator().manual_seed(0)
    apart = sum(not torch.equal(one, other) for one, other in combinations(maps, 2))
    while True:
        looks = [torch.randperm(len(maps[0]), generator=random)[: max(1, columns // 3)] for _ in range(_LOOKS)]
        told = [[set(one[patches].tolist()) for patches in looks] for one in maps]
        if sum(one != other for one, other in combinations(told, 2)) == apart:
            return looks


@torch.no_grad()
def _changed_columns(
    model: Any, inputs: Mapping[str, Any], layer: int, looks: Sequence[Tensor], first: int, tokens: int
) -> list[set[int]]:
    """Look by look, the columns that change if a layer puts out something else for some patches of a tile.

    All looks are one run: the tile stands in it once as it is and once for each look.

    Args:
        model: the LVLM.
        inputs: of the tower, for the tile.
        layer: of the tower, whose output is changed.
        looks: patches to change.
        first: how many tokens stand before the patches.
        tokens: of the tile in the tower, at least.
    """
    copies = 1 + len(looks)
    several = {name: value.repeat(copies, *[1] * (value.ndim - 1)) for name, value in inputs.items()}
    rows: list[Tensor] = []  # of the tower's output, `(tokens, D)` for each copy

    def change(output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        at_once = hidden.shape[:-1].numel() >= copies * tokens  # or copy by copy
        for own in hidden.reshape(copies if at_once else 1, -1, hidden.shape[-1]):
            rows.append(_exchanged(rows[0], looks[len(rows) - 1] + first) if rows else own)
        changed = torch.stack(rows if at_once else rows[-1:]).reshape(hidden.shape)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    with replaced_output(tower_layers(model.get_encoder(modality="image"))[layer], change):
        found = flat(image_features(model, several).pooler_output)
    plain, *others = found.float().view(copies, -1, found.shape[-1])
    differences = [(other - plain).abs().amax(dim=-1) for other in others]
    return [set((one > 1e-2 * one.max()).nonzero().flatten().tolist()) for one in differences]


def _exchanged(row: Tensor, tokens: Tensor) -> Tensor:
    """`(tokens, D)` with others in some places: as large, so that the difference is large behind any norm."""
    other = row.clone()
    chosen = other[tokens.to(row.device)]
    other[tokens.to(row.device)] = -chosen.roll(1 + row.shape[-1] // 2, dims=-1)
    return other
