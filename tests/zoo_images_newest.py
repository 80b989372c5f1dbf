"""What processors of the newest image-text models make of images; see `tests.zoo_images`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.zoo_images import IMAGE, Shown, drawn, one_row, packed, packed_flat


def _separated(number: int, random: torch.Generator) -> Shown:
    """DeepSeek-OCR 2: 144 queries and a separator for each image."""
    return {"pixel_values": drawn(random, number, 3, 64, 64)}, [[IMAGE] * 145] * number


def _separated_lines(number: int, random: torch.Generator) -> Shown:
    """Unlimited OCR: two lines of two columns and a newline, and a separator."""
    return {"pixel_values": drawn(random, number, 3, 64, 64)}, [[IMAGE] * 7] * number


def _packed_newlines(number: int, random: torch.Generator) -> Shown:
    """HY 4: as Qwen2-VL without time, with a newline behind every line of columns."""
    pixels, _ = packed_flat(number, random)
    grids = pixels["image_grid_thw"].tolist()
    return pixels, [[IMAGE] * (high // 2 * (wide // 2 + 1)) for _, high, wide in grids]


def _packed_squares(number: int, random: torch.Generator) -> Shown:
    """Inkling 2: the squares of patches that are a column, and grids that count those."""
    pixels, runs = packed(number, random)
    grids = pixels["image_grid_thw"] // torch.tensor([1, 2, 2])
    return {"pixel_values": drawn(random, int(grids.prod(-1).sum()), 14, 14, 3), "image_grid_thw": grids}, runs


def _marked_row(number: int, random: torch.Generator) -> Shown:
    """MiniCPM-V 4.7: as MiniCPM-V 4.6, each image between tokens that tell where it is."""
    pixels, runs = one_row(number, random)
    return pixels, [[196, *run, 195] for run in runs]


def _packed_sides(number: int, random: torch.Generator) -> Shown:
    """Nemotron Omni: as Qwen2-VL without time, and grids of two sides."""
    pixels, runs = packed(number, random)
    return {"pixel_values": pixels["pixel_values"][:, :147], "image_grid_hw": pixels["image_grid_thw"][:, 1:]}, runs


NEWEST_SHOWN: dict[str, Callable[[int, torch.Generator], Shown]] = {
    "separated": _separated,
    "separated_lines": _separated_lines,
    "packed_newlines": _packed_newlines,
    "packed_squares": _packed_squares,
    "packed_sides": _packed_sides,
    "marked_row": _marked_row,
}
