"""Visual Contrastive Decoding: the image against itself, made hard to see."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from damro.decoding.errors import ParameterError
from damro.methods.base import SECOND, Cost, Method, Scene
from damro.parameters import Cutoff, Range, Seed, Strength, check_value

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from damro.decoding.rules import Contrast

STEPS = 1000
_FIRST_BETA, _LAST_BETA, _STEEPNESS = 1e-5, 5e-3, 6.0
NoiseStep = Annotated[int, Range(0, STEPS - 1, hint="500 is what VCD was released with")]
Rate = Annotated[float, Range(0, 1, hint="0.1 is the paper's, none takes the schedule that VCD was released with")]


@dataclass(frozen=True)
class VCD(Method):
    """The image against itself under diffusion noise (VCD, CVPR 2024, eq. 3).

    Defaults are those of the released scripts. They draw noise anew for every question; here the seed decides. The
    paper describes another process than the code has: there every step adds the same share of noise, of 0.1 (as
    remembered from its text), after which nothing is left of the image at 500 steps; that is `rate=0.1`. The code's
    shares rise from 0.00001 to 0.005.

    Attributes:
        alpha: strength of the contrast.
        beta: plausibility cutoff.
        noise_step: how far the image has gone in a diffusion process of 1000 steps; see :func:`noise_levels`.
        rate: the share of noise that every step adds in the paper's process; none takes the released one.
        seed: of the noise; none takes the run's, else 0.
    """

    name: ClassVar = "vcd"
    source: ClassVar = "VCD, CVPR 2024, arXiv 2311.16922, eq. 3; github.com/DAMO-NLP-SG/VCD"
    cost: ClassVar = Cost(passes=1, looks=1, memory=SECOND)
    code: ClassVar = "github.com/DAMO-NLP-SG/VCD"

    alpha: Strength = 1.0
    beta: Cutoff = 0.1
    noise_step: NoiseStep = 500
    seed: Seed | None = None
    rate: Rate | None = None

    def contrast(self, model: PreTrainedModel, inputs: Mapping[str, Any], scene: Scene) -> Contrast:
        """The full prompt, and the same about the noisy image; the vision tower looks at both."""
        from damro.decoding.branches.prefix import encode_images
        from damro.decoding.families import family_of
        from damro.decoding.rules import Contrast, ContrastRule

        family = family_of(model)
        full = scene.full_prompt(model, inputs, scene.look(model, inputs))
        noisy: dict[str, Any] = dict(inputs)
        for key in family.PIXELS:
            if inputs.get(key) is not None:
                noisy[key] = noisy_pixels(model, inputs, key, self.noise_step, self.seed or 0, self.rate)
        encoding = encode_images(model, noisy, shared=scene.shared_image)
        return Contrast(full, family.full_prompt(model, noisy, encoding), ContrastRule(self.alpha, self.beta))


def noisy_pixels(
    model: PreTrainedModel, inputs: Mapping[str, Any], key: str, step: int, seed: int, rate: float | None = None
) -> Tensor:
    """Pixels under diffusion noise, in whatever form the model's processor returned them.

    Args:
        model: the LVLM.
        inputs: what its processor returned.
        key: name of the pixels.
        step: of the process, from 0 to 999.
        seed: of the noise.
        rate: see :func:`noise_levels`.

    Returns:
        A tensor like `inputs[key]`. Tiles of nothing but zeros, by which models tell that they are none, stay so. Where
        patches of all images stand in one row, `(patches, channels * frames * height * width)`, each image gets the
        noise of one of its shape, and both frames of a still image the same.
    """
    import torch

    pixels: Tensor = inputs[key]
    if pixels.ndim == 2 and inputs.get("image_grid_thw") is not None:
        frames = getattr(model.config.vision_config, "temporal_patch_size", None) or 1
        side = model.config.vision_config.patch_size
        frames = frames if pixels.shape[1] % (frames * side**2) == 0 else 1
        images = []
        for image in torch.split(pixels, inputs["image_grid_thw"].prod(dim=-1).tolist()):
            still = image.view(len(image), -1, frames, side**2).movedim(2, 0)  # (frames, patches, channels, pixels)
            images.append(add_diffusion_noise(still, step, seed, rate).movedim(0, 2).reshape(image.shape))
        return torch.cat(images)
    noisy = add_diffusion_noise(pixels, step, seed, rate)
    if pixels.ndim == 5:
        noisy = noisy.masked_fill((pixels == 0).flatten(2).all(dim=-1)[:, :, None, None, None], 0)
    return noisy


def noise_levels(step: int, rate: float | None = None) -> tuple[float, float]:
    """How much of the image and how much noise there is after a step of the process.

    `x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e` with `a_t` the product of `1 - beta_s` over s = 0 .. t and betas that rise
    from 1e-5 to 5e-3 along a sigmoid between -6 and 6 (VCD's released `vcd_utils/vcd_add_noise.py`). In the paper's
    process beta is the same in each of t steps.

    Args:
        step: t, from 0 to 999.
        rate: that beta; None takes the released ones.

    Returns:
        The factor of the image and the factor of the noise; their squares sum to one.

    Raises:
        ParameterError: if there is no such step.

    Example:
        >>> [round(level, 3) for level in noise_levels(500)]
        [0.863, 0.505]
        >>> [round(level, 3) for level in noise_levels(2, rate=0.36)]
        [0.64, 0.768]
    """
    import torch

    check_value("noise_step", step, NoiseStep, ParameterError)
    if rate is not None:
        left = (1 - rate) ** step
        return math.sqrt(left), math.sqrt(1 - left)
    place = torch.linspace(-_STEEPNESS, _STEEPNESS, STEPS, dtype=torch.float64)[: int(step) + 1]
    betas = torch.sigmoid(place) * (_LAST_BETA - _FIRST_BETA) + _FIRST_BETA
    kept = float(torch.log1p(-betas).sum().exp())
    return math.sqrt(kept), math.sqrt(1 - kept)


def add_diffusion_noise(pixel_values: Tensor, step: int, seed: int, rate: float | None = None) -> Tensor:
    """Noise of a diffusion step on processed pixels.

    Every image gets the same noise, drawn on the CPU, so that an image looks the same alone, in a batch, and on
    every device.

    Args:
        pixel_values: `(images, ...)`, what the processor returned; not modified.
        step: of the process, from 0 to 999.
        seed: of the noise.
        rate: see :func:`noise_levels`.

    Returns:
        A tensor like `pixel_values`.

    Example:
        >>> import torch
        >>> noisy = add_diffusion_noise(torch.zeros(2, 3, 4, 4), step=500, seed=0)
        >>> torch.equal(noisy[0], noisy[1])
        True
    """
    import torch

    of_image, of_noise = noise_levels(step, rate)
    noise = torch.randn(pixel_values.shape[1:], generator=torch.Generator().manual_seed(seed))
    noisy = of_image * pixel_values.float() + of_noise * noise.to(pixel_values.device)
    return noisy.to(pixel_values.dtype)
