"""RITUAL: the prompt and the same about a transformed picture, added up."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from damro.decoding.errors import ParameterError, UnsupportedModelError
from damro.methods.base import SECOND, Cost, Method, Scene, seed_of
from damro.parameters import Cutoff, Range, Seed

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor
    from transformers import PreTrainedModel

    from damro.decoding.rules import Contrast

KINDS = ("horizontal flip", "vertical flip", "rotation", "color jitter", "gaussian blur", "crop")
"""What may happen to a picture, each as likely as another."""
Weight = Annotated[float, Range(0, hint="3 is what RITUAL was released with, 0 does without the second prompt")]

_BLUR, _SIGMA, _SIDE, _TRIES = 13, (1.5, 2.0), 336, 10


@dataclass(frozen=True)
class Ritual(Method):
    """The logits of the prompt, and those about a randomly transformed picture added to them (RITUAL, 2024).

    `f + alpha p` over the plausible tokens. One of six transformations is drawn for every image: either flip, rotation
    by up to 180 degrees, jitter of colours, blur, or a crop of 8 to 100 % of it. Defaults are those of the released
    code. Needs the pictures themselves, which runs and ``damro answer`` have, beside the model's processor.

    Differences from the released code: what is drawn depends on the seed and the image's name alone, so that a run can
    be resumed.

    Attributes:
        alpha: weight of the logits about the transformed picture.
        beta: plausibility cutoff.
        seed: of the transformations; none takes the run's, else 0.
    """

    name: ClassVar = "ritual"
    source: ClassVar = "RITUAL, arXiv 2405.17821; github.com/sangminwoo/RITUAL, ritual_sample.py and pope_eval_llava.py"
    cost: ClassVar = Cost(passes=1, looks=1, memory=SECOND)
    limits: ClassVar = (
        "a call without the pictures or the model's processor",
        "models that cut pictures into tiles or read them at any size",
    )
    code: ClassVar = "github.com/sangminwoo/RITUAL"

    alpha: Weight = 3.0
    beta: Cutoff = 0.1
    seed: Seed | None = None

    def contrast(self, model: PreTrainedModel, inputs: Mapping[str, Any], scene: Scene) -> Contrast:
        """The full prompt, and the same about the transformed picture; the vision tower looks at both."""
        from damro.decoding.branches.prefix import encode_images
        from damro.decoding.families import family_of
        from damro.decoding.rules import Contrast, MixRule

        family = family_of(model)
        full = scene.full_prompt(model, inputs, scene.look(model, inputs))
        other = {**inputs, "pixel_values": self._pixels(model, inputs, scene)}
        encoding = encode_images(model, other, shared=scene.shared_image)
        return Contrast(full, family.full_prompt(model, other, encoding), MixRule(1.0, self.alpha, self.beta))

    def _pixels(self, model: PreTrainedModel, inputs: Mapping[str, Any], scene: Scene) -> Tensor:
        """What the processor makes of the transformed pictures."""
        pixels, reader = inputs.get("pixel_values"), getattr(scene.processor, "image_processor", None)
        if pixels is None or pixels.ndim != 4 or inputs.get("image_sizes") is not None:
            raise UnsupportedModelError(
                f"model must read every picture at one size and in one piece, got {model.config.model_type}, which "
                "does not; use a method that leaves pictures as they are"
            )
        if scene.pictures is None or reader is None:
            missing = "pictures" if scene.pictures is None else "processor"
            raise ParameterError(
                f"{missing} must be given to transform the images before the model's processor reads them, got None; "
                f"pass {missing}= to damro.generate"
            )
        names = scene.images or [str(number) for number in range(len(scene.pictures))]
        changed = [
            transformed(picture, random.Random(seed_of(self.seed or 0, name, "transformation")))
            for picture, name in zip(scene.pictures, names, strict=True)
        ]
        new: Tensor = reader(images=changed, return_tensors="pt")["pixel_values"].to(pixels.device, pixels.dtype)
        return new.repeat(len(pixels) // len(new), 1, 1, 1)


def transformed(picture: Image, dice: random.Random, kind: str | None = None) -> Image:
    """A picture after one transformation, as torchvision has them for PIL images with the released settings.

    Args:
        picture: in any mode.
        dice: draws the transformation and how far it goes.
        kind: one of :data:`KINDS`; None draws it.

    Example:
        >>> from PIL import Image
        >>> transformed(Image.new("RGB", (4, 2)), random.Random(0), "crop").size
        (336, 336)
    """
    from PIL.Image import Resampling, Transpose

    picture, kind = picture.convert("RGB"), kind or dice.choice(KINDS)
    if kind == "horizontal flip":
        return picture.transpose(Transpose.FLIP_LEFT_RIGHT)
    if kind == "vertical flip":
        return picture.transpose(Transpose.FLIP_TOP_BOTTOM)
    if kind == "rotation":
        return picture.rotate(dice.uniform(-180, 180), Resampling.NEAREST)
    if kind == "color jitter":
        return _jittered(picture, dice)
    if kind == "gaussian blur":
        return _blurred(picture, dice.uniform(*_SIGMA))
    left, top, width, height = _crop(picture.size, dice)
    return picture.crop((left, top, left + width, top + height)).resize((_SIDE, _SIDE), Resampling.BILINEAR)


def _jittered(picture: Image, dice: random.Random) -> Image:
    """Brightness, contrast and saturation by factors from 0 to 2, hue by up to half a turn, in any order."""
    from PIL import ImageEnhance

    for part in dice.sample(("Brightness", "Contrast", "Color", "hue"), 4):
        if part == "hue":
            picture = _turned(picture, dice.uniform(-0.5, 0.5))
        else:
            picture = getattr(ImageEnhance, part)(picture).enhance(dice.uniform(0, 2))
    return picture


def _turned(picture: Image, turn: float) -> Image:
    """Another hue: `turn` is the part of a whole turn."""
    from PIL import Image as images

    hue, saturation, value = picture.convert("HSV").split()
    hue = hue.point([(old + int(turn * 255)) % 256 for old in range(256)])
    return images.merge("HSV", (hue, saturation, value)).convert("RGB")


def _blurred(picture: Image, sigma: float) -> Image:
    """A Gaussian over 13 pixels each way, with the picture reflected at its borders."""
    import numpy as np
    from PIL import Image as images

    half = _BLUR // 2
    weights = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
    weights /= weights.sum()
    pixels = np.asarray(picture, dtype=np.float64)
    for axis in (0, 1):
        pad = [(half, half) if one == axis else (0, 0) for one in range(3)]
        mode: Any = "reflect" if pixels.shape[axis] > half else "edge"
        wide = np.pad(pixels, pad, mode=mode)
        parts = (np.take(wide, range(first, first + pixels.shape[axis]), axis) for first in range(_BLUR))
        pixels = sum(weight * part for weight, part in zip(weights, parts, strict=True))
    return images.fromarray(np.rint(pixels).clip(0, 255).astype(np.uint8))


def _crop(size: Sequence[int], dice: random.Random) -> tuple[int, int, int, int]:
    """Left, top, width and height of 8 to 100 % of it, its sides from 3 to 4 up to 4 to 3, drawn as by torchvision."""
    width, height = size
    for _ in range(_TRIES):
        area = width * height * dice.uniform(0.08, 1.0)
        ratio = math.exp(dice.uniform(math.log(3 / 4), math.log(4 / 3)))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            return dice.randint(0, width - wide), dice.randint(0, height - high), wide, high
    shape = min(max(width / height, 3 / 4), 4 / 3)
    wide, high = min(width, round(height * shape)), min(height, round(width / shape))
    return (width - wide) // 2, (height - high) // 2, wide, high
