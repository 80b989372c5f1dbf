"""A method: the image against itself at a few pixels a side."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch.nn.functional import interpolate

from damro.decoding.branches.prefix import encode_images
from damro.decoding.families import family_of
from damro.decoding.rules import Contrast, ContrastRule
from damro.methods import Method, Scene
from damro.parameters import Cutoff, Range, Strength


@dataclass(frozen=True)
class Blur(Method):
    """The image against itself, averaged to a few pixels a side and enlarged again.

    Attributes:
        alpha: strength of the contrast.
        beta: plausibility cutoff.
        side: pixels a side that are left.
    """

    name: ClassVar = "blur"
    source: ClassVar = "an example"

    alpha: Strength = 1.0
    beta: Cutoff = 0.1
    side: Annotated[int, Range(1)] = 8

    def contrast(self, model: Any, inputs: Mapping[str, Any], scene: Scene) -> Contrast:
        """The full prompt, and the same about the blurred image."""
        full = scene.full_prompt(model, inputs, scene.look(model, inputs))
        pixels = inputs["pixel_values"]  # (images, 3, H, W), of LLaVA-NeXT (images, tiles, 3, H, W)
        tiles = pixels.float().flatten(0, -4)
        small = interpolate(tiles, size=(self.side, self.side), mode="area")
        blurred = interpolate(small, size=tiles.shape[-2:], mode="bilinear").view_as(pixels).to(pixels.dtype)
        blind = {**inputs, "pixel_values": blurred}
        encoding = encode_images(model, blind, shared=scene.shared_image)
        negative = family_of(model).full_prompt(model, blind, encoding)
        return Contrast(full, negative, ContrastRule(self.alpha, self.beta))
