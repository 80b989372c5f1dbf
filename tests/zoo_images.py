"""What processors of image-text models make of images: pixels in their many shapes, and the tokens that stand for them.

All images have patches of 7 x 7 pixels, of which 2 x 2 become a column, but for those that are shown "whole" or in
"patch_lines", where each is one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

IMAGE, VIDEO = 199, 198
FILLED = (190, 191, 192, 193, 194)
"""Tokens that Ovis2 fills with vectors of its own."""

TILES = "tiles"
"""Pixels image by image, of models that want them prompt by prompt."""

Inputs = dict[str, Any]
Shown = tuple[Inputs, list[list[int]]]
_GRIDS = ((8, 8), (4, 12), (6, 8))
"""Rows and columns of patches of images that are shown in their own shape."""


def drawn(random: torch.Generator, *shape: int) -> Tensor:
    """Numbers from a normal distribution."""
    return torch.randn(shape, generator=random)


def _square(number: int, random: torch.Generator) -> Shown:
    return {"pixel_values": drawn(random, number, 3, 56, 56)}, [[IMAGE] * 16] * number


def _four(number: int, random: torch.Generator) -> Shown:
    """GOT-OCR 2: larger patches, and four columns an image."""
    return {"pixel_values": drawn(random, number, 3, 64, 64)}, [[IMAGE] * 4] * number


def _one_tile(number: int, random: torch.Generator) -> Shown:
    """Idefics 2: tiles side by side, here one an image, and four columns for each."""
    pixels = {"pixel_values": drawn(random, number, 1, 3, 56, 56)}
    return pixels | {"pixel_attention_mask": torch.ones(number, 1, 56, 56).bool()}, [[IMAGE] * 4] * number


def _whole(number: int, random: torch.Generator) -> Shown:
    return {"pixel_values": drawn(random, number, 3, 56, 56)}, [[IMAGE] * 64] * number


def _tiles(number: int, random: torch.Generator) -> Shown:
    """InternVL: tiles and, last, the whole image, one behind the other; a small image is one tile."""
    pixels, counts = _cut("tiles", number, random)
    return pixels, [[IMAGE] * 16 * count for count in counts]


def _marked_tiles(number: int, random: torch.Generator) -> Shown:
    """SmolVLM: every tile behind a marker of its own, the whole image last; images side by side, filled up."""
    runs, pixels = [], []
    for image in range(number):
        tiles = (2, 0, 1)[image % 3]
        marked = [token for tile in range(tiles) for token in (62, 60 + tile, *[IMAGE] * 16)]
        runs.append([*marked, 62, 69, *[IMAGE] * 16, 62])
        pixels.append(drawn(random, tiles + 1, 3, 56, 56))
    return {TILES: pixels}, runs


TILE_COUNTS = {"tiles": (3, 1, 4), "marked_tiles": (3, 1, 2), "counted_tiles": (3, 1, 4), "global_tiles": (3, 1, 4),
               "lined_tiles": (3, 1, 4), "first_tiles": (3, 1, 5), "padded_tiles": (3, 1, 4)}  # fmt: skip
"""How many tiles the first, second and third image has, the whole image included; then again from the first on."""


def _counted_tiles(number: int, random: torch.Generator) -> Shown:
    """Granite Docling: the same, but an image that is not cut up is the tile of the first place."""
    runs, pixels = [], []
    for image in range(number):
        count, tile = TILE_COUNTS["counted_tiles"][image % 3], [IMAGE] * 16
        cut = [token for part in range(max(1, count - 1)) for token in (62, 60 + part, *tile)]
        runs.append([*cut, 63, *([63, 62, 69, *tile, 62] if count > 1 else [])])
        pixels.append(drawn(random, count, 3, 56, 56))
    return {TILES: pixels}, runs


def _cut(shown: str, number: int, random: torch.Generator) -> tuple[Inputs, list[int]]:
    counts = [TILE_COUNTS[shown][image % 3] for image in range(number)]
    return {"pixel_values": drawn(random, sum(counts), 3, 56, 56)}, counts


def _global_tiles(number: int, random: torch.Generator) -> Shown:
    """Aya Vision: every tile behind its number, the whole image last, behind a token of its own."""
    pixels, counts = _cut("global_tiles", number, random)
    tile = [IMAGE] * 16
    cut = [[token for part in range(count - 1) for token in (70 + part, *tile)] for count in counts]
    return pixels, [[62, *parts, 69, *tile, 63] for parts in cut]


def _lined_tiles(number: int, random: torch.Generator) -> Shown:
    """Cohere 2 Vision: a line break behind every tile, the whole image last."""
    pixels, counts = _cut("lined_tiles", number, random)
    return pixels, [[62, *([IMAGE] * 16 + [60]) * count, 63] for count in counts]


def _first_tiles(number: int, random: torch.Generator) -> Shown:
    """Ovis 2: the whole image first, then its tiles row by row with tokens between them, here two a row."""
    pixels, counts = _cut("first_tiles", number, random)
    start, grid, column, line, end = FILLED
    runs, tile = [], [IMAGE] * 16
    for count in counts:
        breaks = [line if part % 2 else column for part in range(count - 2)]
        parts = [token for mark in [grid, *breaks] for token in (mark, *tile)] if count > 1 else [grid]
        runs.append([start, *tile, *parts, end])
    return pixels, runs


def packed(number: int, random: torch.Generator) -> Shown:
    """Qwen2-VL: the patches of all images in one row, those of a column next to each other."""
    grids = torch.tensor([(1, *_GRIDS[image % 3]) for image in range(number)])
    patches = drawn(random, int(grids.prod(-1).sum()), 3 * 2 * 7 * 7)
    return {"pixel_values": patches, "image_grid_thw": grids}, [[IMAGE] * (int(g.prod()) // 4) for g in grids]


def packed_flat(number: int, random: torch.Generator) -> Shown:
    """ERNIE 4.5: the same without time, each image between tokens of its own."""
    pixels, runs = packed(number, random)
    return {**pixels, "pixel_values": pixels["pixel_values"][:, :147]}, [[196, *run, 195] for run in runs]


def _packed_started(number: int, random: torch.Generator) -> Shown:
    """Qwen-Omni: as Qwen2-VL, each image between tokens that tell where it is."""
    pixels, runs = packed(number, random)
    return pixels, [[196, *run, 195] for run in runs]


def _packed_still(number: int, random: torch.Generator) -> Shown:
    """VideoLLaMA 3: the same without time."""
    pixels, runs = packed(number, random)
    pixels["pixel_values"] = pixels["pixel_values"][:, :147]
    return {**pixels, "image_merge_sizes": torch.full((number,), 2)}, runs


def _sized(number: int, random: torch.Generator) -> Shown:
    """Pixtral: images of any size, filled up to the largest."""
    grids = [_GRIDS[image % 3] for image in range(number)]
    pixels = torch.zeros(number, 3, 7 * max(h for h, _ in grids), 7 * max(w for _, w in grids))
    for image, (high, wide) in enumerate(grids):
        pixels[image, :, : 7 * high, : 7 * wide] = drawn(random, 3, 7 * high, 7 * wide)
    sizes = torch.tensor([(7 * high, 7 * wide) for high, wide in grids])
    return {"pixel_values": pixels, "image_sizes": sizes}, [[IMAGE] * (high * wide // 4) for high, wide in grids]


def _lines(number: int, random: torch.Generator) -> Shown:
    """Mistral 3: the same, a token behind every line and another behind the last."""
    pixels, runs = _sized(number, random)
    lined = []
    for image in range(number):
        high, wide = _GRIDS[image % 3]
        tokens = ([IMAGE] * (wide // 2) + [60]) * (high // 2)
        lined.append([*tokens[:-1], 61])
        assert tokens.count(IMAGE) == len(runs[image])
    return pixels, lined


def _patch_lines(number: int, random: torch.Generator) -> Shown:
    """LLaVA with Pixtral: the same, every patch a column."""
    pixels, _ = _sized(number, random)
    grids = (pixels["image_sizes"] // 7).tolist()
    return pixels, [[*(([IMAGE] * wide + [60]) * high)[:-1], 61] for high, wide in grids]


def _packed_patches(number: int, random: torch.Generator) -> Shown:
    """PaddleOCR-VL, Kimi: patches as small images, line by line."""
    pixels, runs = packed(number, random)
    pixels["pixel_values"] = pixels["pixel_values"][:, :147].unflatten(1, (3, 7, 7))
    return pixels, runs


def _placed(number: int, random: torch.Generator) -> Shown:
    """Gemma 4: the patches of every image in a row, each with its column and row, filled up."""
    pixels, runs = _padded(number, random)
    places = torch.full((number, 64, 2), -1)
    for image, (high, wide) in enumerate(pixels["spatial_shapes"].tolist()):
        patch = torch.arange(high * wide)
        places[image, : high * wide] = torch.stack([patch % wide, patch // wide], dim=-1)
    return {"pixel_values": pixels["pixel_values"], "image_position_ids": places}, runs


def _padded(number: int, random: torch.Generator) -> Shown:
    """The patches of every image in a row, filled up."""
    grids = [_GRIDS[image % 3] for image in range(number)]
    pixels = _filled_up(grids, random)
    return pixels, [[IMAGE] * (high * wide // 4) for high, wide in grids]


def _padded_tiles(number: int, random: torch.Generator) -> Shown:
    """LFM2-VL: the same of square tiles, each behind its place, and last of the whole image in a shape of its own."""
    runs, grids = [], []
    for image in range(number):
        high, wide = _GRIDS[(image + 1) % 3]
        parts = [(8, 8)] * (TILE_COUNTS["padded_tiles"][image % 3] - 1)
        cut = [token for part in range(len(parts)) for token in (70 + part, *[IMAGE] * 16)]
        runs.append([62, *cut, *[69][: len(parts)], *[IMAGE] * (high * wide // 4), 63])
        grids += [*parts, (high, wide)]
    return _filled_up(grids, random), runs


def _filled_up(grids: list[tuple[int, int]], random: torch.Generator) -> Inputs:
    patches, read = torch.zeros(len(grids), 64, 147), torch.zeros(len(grids), 64, dtype=torch.long)
    for image, (high, wide) in enumerate(grids):
        patches[image, : high * wide] = drawn(random, high * wide, 147)
        read[image, : high * wide] = 1
    return {"pixel_values": patches, "pixel_attention_mask": read, "spatial_shapes": torch.tensor(grids)}


def _whole_twice(number: int, random: torch.Generator) -> Shown:
    """DeepSeek-VL's larger models: every image a second time, for another tower."""
    pixels, runs = _whole(number, random)
    return {**pixels, "high_res_pixel_values": drawn(random, number, 3, 64, 64)}, runs


def _views(number: int, random: torch.Generator) -> Shown:
    """Step 3.7: images without a closer look at parts of them, four columns each."""
    return {"pixel_values": drawn(random, number, 3, 56, 56)}, [[IMAGE] * 4] * number


def _packed_lines(number: int, random: torch.Generator) -> Shown:
    """Hunyuan: a column more behind every line, and one at either end of an image."""
    pixels, _ = packed_flat(number, random)
    lines = [(high // 2) * (wide // 2 + 1) + 2 for _, high, wide in pixels["image_grid_thw"].tolist()]
    return pixels, [[IMAGE] * columns for columns in lines]


def _pooled(number: int, random: torch.Generator) -> Shown:
    """Molmo 2: patches in rows, and which of them are pooled for each column."""
    squares = torch.arange(64).view(4, 2, 4, 2).transpose(1, 2).reshape(16, 4)
    told = {"image_token_pooling": torch.cat([squares + 64 * image for image in range(number)])}
    told |= {"image_grids": torch.tensor([[4, 4, 0, 0]] * number), "image_num_crops": torch.ones(number).long()}
    return {"pixel_values": drawn(random, number, 64, 147), **told}, [[IMAGE] * 16] * number


def one_row(number: int, random: torch.Generator) -> Shown:
    """MiniCPM-V: the patches of all images side by side in one image, sixteen of them a column."""
    grids = torch.tensor([_GRIDS[image % 2] for image in range(number)])
    pixels = drawn(random, 1, 3, 7, 7 * int(grids.prod(-1).sum()))
    return {"pixel_values": pixels, "target_sizes": grids}, [[IMAGE] * (int(grid.prod()) // 16) for grid in grids]


SHOWN: dict[str, Callable[[int, torch.Generator], Shown]] = {
    "square": _square,
    "four": _four,
    "one_tile": _one_tile,
    "whole": _whole,
    "tiles": _tiles,
    "marked_tiles": _marked_tiles,
    "counted_tiles": _counted_tiles,
    "global_tiles": _global_tiles,
    "lined_tiles": _lined_tiles,
    "first_tiles": _first_tiles,
    "padded_tiles": _padded_tiles,
    "packed": packed,
    "packed_plain": packed,
    "packed_still": _packed_still,
    "packed_flat": packed_flat,
    "packed_flat_plain": packed_flat,
    "packed_blocks": packed,
    "packed_started": _packed_started,
    "sized": _sized,
    "lines": _lines,
    "patch_lines": _patch_lines,
    "packed_patches": _packed_patches,
    "packed_patches_plain": _packed_patches,
    "placed": _placed,
    "whole_twice": _whole_twice,
    "views": _views,
    "packed_lines": _packed_lines,
    "one_row": one_row,
    "pooled": _pooled,
}


def by_prompt(shown: str, pixels: list[Tensor], counts: list[int]) -> Inputs:
    """SmolVLM's pixels: the tiles of all images of a prompt in a row, filled up with tiles of zeros.

    The last tile of every prompt has a margin that is not read, but where a tile is read as a whole (Granite Docling).

    Args:
        shown: as in :func:`images`.
        pixels: of each image, `(tiles, 3, 56, 56)`.
        counts: how many images each prompt has.
    """
    rows, first = [], 0
    for count in counts:
        rows.append(torch.cat(pixels[first : first + count]))
        first += count
    most = max(map(len, rows))
    values, read = torch.zeros(len(rows), most, 3, 56, 56), torch.zeros(len(rows), most, 56, 56)
    for row, tiles in enumerate(rows):
        values[row, : len(tiles)], read[row, : len(tiles)] = tiles, 1
        if shown != "counted_tiles":
            read[row, len(tiles) - 1, :, 42:] = 0
    mask = read.bool() if shown != "counted_tiles" else read.bool()[..., 0, 0]
    return {"pixel_values": values * read[:, :, None], "pixel_attention_mask": mask}


TYPED = ("packed", "packed_flat", "packed_lines", "packed_newlines", "packed_patches", "placed", "marked_row")
"""What is shown with the kind of every token."""


def token_types(name: str, shown: str, ids: Tensor) -> dict[str, Any]:
    """What tells some models which tokens stand for images."""
    of_image = (ids == IMAGE).long()
    if name in ("gemma3", "shieldgemma2"):
        return {"token_type_ids": of_image}
    if name == "ernie4_5_vl_moe":
        around = (ids == 195) | (ids == 196)
        return {"mm_token_type_ids": of_image, "moe_mm_token_type_ids": of_image | around.long()}
    return (
        {"mm_token_type_ids": of_image}
        if shown
        in ("packed", "packed_flat", "packed_lines", "packed_newlines", "packed_patches", "placed", "marked_row")
        else {}
    )
