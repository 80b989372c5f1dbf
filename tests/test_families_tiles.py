"""Of an image that a real processor cuts up, the tile that shows the whole of it is found."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import damro
from damro.decoding.families.generic.layout import images_of
from tests.chat_models import (
    aya_processor,
    cohere2_processor,
    granite_docling_processor,
    idefics3_processor,
    internvl_processor,
    lfm2_processor,
    ovis2_processor,
    smolvlm_processor,
)
from tests.tiles_by_hand import ByHand
from tests.zoo import zoo_model

PROCESSORS: dict[str, Callable[[], Any]] = {
    "internvl": internvl_processor,
    "smolvlm": smolvlm_processor,
    "idefics3": idefics3_processor,
    "aya_vision": aya_processor,
    "cohere2_vision": cohere2_processor,
    "lfm2_vl": lfm2_processor,
    "ovis2": ovis2_processor,
    "granite_docling": granite_docling_processor,
}
NEED_TORCHVISION = ("cohere2_vision", "lfm2_vl")
SIZES = ((60, 118), (112, 112), (56, 56))
"""Height and width: two images that are cut up, and a small one that is one tile to most."""


@pytest.fixture(params=PROCESSORS, scope="module")
def case(request: pytest.FixtureRequest) -> tuple[str, Any, Any]:
    """A model, and its processor; where that needs torchvision and there is none, what it would return, by hand."""
    name = request.param
    by_hand = name in NEED_TORCHVISION and find_spec("torchvision") is None
    return name, zoo_model(name), ByHand(name) if by_hand else PROCESSORS[name]()


def pictures() -> list[Image.Image]:
    """Images that are brighter to the right and redder to the bottom, so that no part looks like the whole."""
    found = []
    for number, (height, width) in enumerate(SIZES):
        rows, columns = np.mgrid[:height, :width]
        values = np.stack([255 * rows / height, 255 * columns / width, 60 * (number + 1) + 0 * rows], axis=-1)
        found.append(Image.fromarray(values.astype(np.uint8)))
    return found


def asked(processor: Any) -> Any:
    """Two images in the first prompt, with a word between them, and one in the second."""
    wide, square, small = ({"type": "image", "image": image} for image in pictures())
    talks = [
        [{"role": "user", "content": [wide, {"type": "text", "text": "dog"}, square]}],
        [{"role": "user", "content": [small, {"type": "text", "text": "What do you see ?"}]}],
    ]
    return processor.apply_chat_template(
        talks, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
        processor_kwargs={"padding": True},
    )  # fmt: skip


def tiles_of(processor: Any, inputs: Any) -> list[np.ndarray[Any, Any]]:
    """What the tower reads, tile by tile, as `(rows, columns, 3)` from 0 to 255."""
    pixels, means = inputs["pixel_values"].double(), processor.image_processor
    if "spatial_shapes" in inputs:  # (tiles, patches, 7 * 7 * 3), filled up
        tiles = [
            patches[: high * wide].view(high, wide, 7, 7, 3).transpose(1, 2).reshape(7 * high, 7 * wide, 3)
            for patches, (high, wide) in zip(pixels, inputs["spatial_shapes"].tolist(), strict=True)
        ]
    else:
        flat = pixels.flatten(0, -4)
        if pixels.ndim == 5:  # prompts side by side, filled up with tiles of which no pixel is read
            flat = flat[inputs["pixel_attention_mask"].reshape(len(flat), -1).any(-1)]
        tiles = list(flat.permute(0, 2, 3, 1))
    mean, std = torch.tensor(means.image_mean), torch.tensor(means.image_std)
    return [(255 * (tile * std + mean)).numpy() for tile in tiles]


def apart(tile: np.ndarray[Any, Any], image: Image.Image) -> float:
    """How far a tile is from an image that is shrunk to its size, on average."""
    shrunk = image.resize((tile.shape[1], tile.shape[0]), Image.Resampling.BICUBIC)
    return float(np.abs(tile - np.asarray(shrunk, dtype=float)).mean())


def test_the_base_tile_shows_the_whole_image(case: tuple[str, Any, Any]) -> None:
    _, model, processor = case
    inputs = asked(processor)
    tiles, found = tiles_of(processor, inputs), images_of(model, inputs)
    assert [image.row for image in found] == [0, 0, 1]
    distances = np.array([[apart(tile, image) for tile in tiles] for image in pictures()])
    assert [image.tile for image in found] == distances.argmin(axis=1).tolist()
    assert distances.min(axis=1).max() < 5 and len(tiles) > 2 * len(found)


def test_its_columns_are_those_of_its_tokens(case: tuple[str, Any, Any]) -> None:
    """Tiles stand in the order in which the tower reads them, from the first prompt to the last."""
    _, model, processor = case
    inputs = asked(processor)
    sizes = columns_of_tiles(model, inputs)
    for image in images_of(model, inputs):
        before = sum(sizes[: image.tile])
        in_rows_before = int((inputs["input_ids"][: image.row] == model.config.image_token_id).sum())
        assert image.first == before - in_rows_before
        assert image.columns == sizes[image.tile]


def columns_of_tiles(model: Any, inputs: Any) -> list[int]:
    """How many vectors the model makes of each tile."""
    if "spatial_shapes" in inputs:
        return [high * wide // 4 for high, wide in inputs["spatial_shapes"].tolist()]
    return [16] * (int((inputs["input_ids"] == model.config.image_token_id).sum()) // 16)


def test_the_conversation_is_answered(case: tuple[str, Any, Any]) -> None:
    _, model, processor = case
    inputs = asked(processor)
    greedy: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    ours = damro.generate(model, inputs, "damro:alpha=4,beta=0.01,top_k=3", **greedy)
    stock = model.generate(
        **inputs, logits_processor=damro.DAMROProcessor(model, inputs, alpha=4.0, beta=0.01, top_k=3), **greedy
    )
    assert torch.equal(ours, stock) and not torch.equal(ours, model.generate(**inputs, **greedy))
