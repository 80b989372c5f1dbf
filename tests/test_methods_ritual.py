"""RITUAL: its transformations against torchvision and arithmetic, its scores against their equation."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from PIL import Image

import damro
from damro.decoding.errors import ParameterError, UnsupportedModelError
from damro.decoding.generate import decode
from damro.methods import Ritual, Scene
from damro.methods.base import seed_of
from damro.methods.ritual import KINDS, transformed
from tests.golden_cases import inputs_of, model_of
from tests.golden_models import make_processor
from tests.llava_models import llava_inputs
from tests.test_methods_others import logits_of, own_logits


def picture(width: int = 40, height: int = 30) -> Image.Image:
    noise = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


def pixels_of(image: Image.Image) -> torch.Tensor:
    return torch.tensor(list(image.convert("RGB").tobytes())).view(image.height, image.width, 3)


def scaled(image: Image.Image, box: tuple[int, int, int, int]) -> torch.Tensor:
    return pixels_of(image.crop(box).resize((336, 336), Image.Resampling.BILINEAR))


class Scripted(random.Random):
    """Dice that fall as they are told."""

    def __init__(self, *values: float, order: tuple[int, ...] = (0, 1, 2, 3)) -> None:
        self._values, self._order = list(values), order

    def uniform(self, a: float, b: float) -> float:
        value = self._values.pop(0)
        assert a <= value <= b
        return value

    def sample(self, population: Any, k: int, **_: Any) -> list[Any]:
        return [population[place] for place in self._order[:k]]

    def randint(self, a: int, b: int) -> int:
        return int(self.uniform(a, b))


def test_flips_and_rotation() -> None:
    image = picture()
    pixels = pixels_of(image)
    assert torch.equal(pixels_of(transformed(image, Scripted(), "horizontal flip")), pixels.flip(1))
    assert torch.equal(pixels_of(transformed(image, Scripted(), "vertical flip")), pixels.flip(0))
    assert torch.equal(pixels_of(transformed(image, Scripted(180.0), "rotation")), pixels.flip(0, 1))
    turned = pixels_of(transformed(picture(30, 30), Scripted(45.0), "rotation"))
    assert turned.shape == (30, 30, 3)
    assert turned[0, 0].tolist() == [0, 0, 0]  # what was outside is black


def test_colours_by_hand() -> None:
    image = Image.new("RGB", (1, 1), (200, 100, 50))
    darker = transformed(image, Scripted(0.5, 1.0, 1.0, 0.0), "color jitter")
    assert darker.getpixel((0, 0)) == pytest.approx((100, 50, 25), abs=3)
    grey = transformed(image, Scripted(1.0, 1.0, 0.0, 0.0), "color jitter").getpixel((0, 0))
    assert grey == pytest.approx((124, 124, 124), abs=3)  # 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    opposite = transformed(image, Scripted(1.0, 1.0, 1.0, 0.5), "color jitter").getpixel((0, 0))
    assert opposite == pytest.approx((50, 150, 200), abs=5)


def test_blur_by_hand() -> None:
    """One white pixel becomes the Gaussian's square; what is even stays."""
    image = Image.new("RGB", (31, 31))
    image.putpixel((15, 15), (255, 255, 255))
    found = pixels_of(transformed(image, Scripted(1.5), "gaussian blur"))[..., 0]
    weights = torch.tensor([math.exp(-0.5 * (at / 1.5) ** 2) for at in range(-6, 7)])
    weights /= weights.sum()
    assert torch.equal(found[9:22, 9:22], (255 * weights.outer(weights)).round().long())
    assert int(found.sum()) == int(found[9:22, 9:22].sum())
    even = Image.new("RGB", (20, 9), (9, 8, 7))
    assert torch.equal(pixels_of(transformed(even, Scripted(2.0), "gaussian blur")), pixels_of(even))


def test_crop_by_hand() -> None:
    image = picture(100, 50)
    cropped = transformed(image, Scripted(0.5, 0.0, 7.0, 0.0), "crop")  # 2500 pixels, as wide as high
    assert torch.equal(
        pixels_of(cropped), pixels_of(image.crop((7, 0, 57, 50)).resize((336, 336), Image.Resampling.BILINEAR))
    )
    narrow = picture(100, 8)  # ten parts of all of it, none fits: the middle, 4 to 3
    falls = [1.0, 0.0] * 10
    cropped = transformed(narrow, Scripted(*falls), "crop")
    assert torch.equal(
        pixels_of(cropped), pixels_of(narrow.crop((44, 0, 55, 8)).resize((336, 336), Image.Resampling.BILINEAR))
    )


def test_all_kinds_are_drawn_alike() -> None:
    counts = dict.fromkeys(KINDS, 0)
    for seed in range(600):
        counts[random.Random(seed_of(seed, "a", "transformation")).choice(KINDS)] += 1
    assert min(counts.values()) > 60


@pytest.mark.parametrize("kind", ["horizontal flip", "vertical flip", "rotation", "gaussian blur"])
def test_transformations_are_torchvision_s(kind: str) -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2.functional", reason="torchvision is not installed")
    image, value = picture(), 1.7
    expected = {
        "horizontal flip": lambda: v2.horizontal_flip(image),
        "vertical flip": lambda: v2.vertical_flip(image),
        "rotation": lambda: v2.rotate(image, 1.7),
        "gaussian blur": lambda: v2.gaussian_blur(image, [13, 13], [1.7, 1.7]),
    }[kind]()
    found = pixels_of(transformed(image, Scripted(value), kind))
    assert (found - pixels_of(expected)).abs().max() <= 1


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "instructblip"])
def test_scores_are_the_sum_of_both(family: str) -> None:
    model, processor, image = model_of(family), make_processor(family), picture()
    inputs = inputs_of(f"{family}_img0")
    inputs["pixel_values"] = processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]
    contrast: Any = Ritual(seed=3).prepare(model, inputs, Scene(processor=processor, images=["a"], pictures=[image]))
    full, other = logits_of(contrast, model)
    changed = transformed(image, random.Random(seed_of(3, "a", "transformation")))
    pixels = processor.image_processor(images=[changed], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(full, own_logits(model, inputs), atol=1e-4, rtol=0)
    torch.testing.assert_close(other, own_logits(model, {**inputs, "pixel_values": pixels}), atol=1e-4, rtol=0)
    expected = (full + 3 * other).masked_fill(full < full.amax(-1, keepdim=True) + math.log(0.1), -math.inf)
    torch.testing.assert_close(contrast.rule(full, other, 0), expected.log_softmax(-1))


def test_what_is_refused() -> None:
    model, inputs, processor = model_of("llava"), inputs_of("llava_img0"), make_processor("llava")
    with pytest.raises(ParameterError, match="pictures must be given to transform .* pass pictures="):
        damro.generate(model, inputs, "ritual", processor=processor, max_new_tokens=1)
    with pytest.raises(ParameterError, match="processor must be given to transform"):
        damro.generate(model, inputs, "ritual", pictures=[picture()], max_new_tokens=1)
    tiles = inputs_of("llava_next_img0")
    with pytest.raises(UnsupportedModelError, match="one size and in one piece, got llava_next"):
        damro.generate(model_of("llava_next"), tiles, "ritual", pictures=[picture()], max_new_tokens=1)


def with_pictures(inputs: Any, pictures: list[Image.Image]) -> Any:
    """Inputs about other pictures."""
    reader = make_processor("llava").image_processor
    return {**inputs, "pixel_values": reader(images=pictures, return_tensors="pt")["pixel_values"]}


def test_a_padded_batch_is_its_rows_alone_and_beams_and_samples_run() -> None:
    """Two prompts of different length, each about a picture of its own, whose draws go by its name."""
    model, processor = model_of("llava"), make_processor("llava")
    pictures, names = [picture(), picture(50, 60)], ["a", "b"]
    inputs = with_pictures(llava_inputs(rows=2), pictures)
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    for more in ({}, {"num_beams": 2}):
        together = _decoded(model, inputs, Scene(processor=processor, images=names, pictures=pictures), options | more)
        for row in (0, 1):
            alone = {key: value[row : row + 1] for key, value in inputs.items()}
            scene = Scene(processor=processor, images=names[row : row + 1], pictures=pictures[row : row + 1])
            assert torch.equal(_decoded(model, alone, scene, options | more)[0], together[row])
    sampled = damro.generate(
        model, inputs, "ritual", processor=processor, pictures=pictures, **options | {"do_sample": True},
        num_return_sequences=2,
    )  # fmt: skip
    assert len(sampled) == 4
    kept = damro.generate(model, inputs, "ritual", processor=processor, pictures=pictures, keep_tokens=5, **options)
    assert kept.shape == together.shape


def _decoded(model: Any, inputs: Any, scene: Scene, options: dict[str, Any]) -> torch.Tensor:
    ids: torch.Tensor = decode(model, inputs, Ritual().prepare(model, inputs, scene), **options)
    return ids
