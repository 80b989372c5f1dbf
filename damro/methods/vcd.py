"""The forward process of a diffusion model on pixels: how VCD makes an image hard to see."""

from __future__ import annotations

import math
from numbers import Integral

import torch
from torch import Tensor

from damro.decoding.errors import ParameterError

STEPS = 1000
_FIRST_BETA, _LAST_BETA, _STEEPNESS = 1e-5, 5e-3, 6.0


def noise_levels(step: int) -> tuple[float, float]:
    """How much of the image and how much noise there is after a step of the process.

    `x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e` with `a_t` the product of `1 - beta_s` over s = 0 .. t and betas that rise
    from 1e-5 to 5e-3 along a sigmoid between -6 and 6 (VCD's released `vcd_utils/vcd_add_noise.py`).

    Args:
        step: t, from 0 to 999.

    Returns:
        The factor of the image and the factor of the noise; their squares sum to one.

    Raises:
        ParameterError: if there is no such step.

    Example:
        >>> [round(level, 3) for level in noise_levels(500)]
        [0.863, 0.505]
    """
    if not isinstance(step, Integral) or isinstance(step, bool) or not 0 <= step < STEPS:
        raise ParameterError(
            f"noise_step must be a whole number from 0 to {STEPS - 1}, got {step!r}; 500 is what VCD was released with"
        )
    place = torch.linspace(-_STEEPNESS, _STEEPNESS, STEPS, dtype=torch.float64)[: int(step) + 1]
    betas = torch.sigmoid(place) * (_LAST_BETA - _FIRST_BETA) + _FIRST_BETA
    kept = float(torch.log1p(-betas).sum().exp())
    return math.sqrt(kept), math.sqrt(1 - kept)


def add_diffusion_noise(pixel_values: Tensor, step: int, seed: int) -> Tensor:
    """Noise of a diffusion step on processed pixels.

    Every image gets the same noise, drawn on the CPU, so that an image looks the same alone, in a batch, and on
    every device.

    Args:
        pixel_values: `(images, ...)`, what the processor returned; not modified.
        step: of the process, from 0 to 999.
        seed: of the noise.

    Returns:
        A tensor like `pixel_values`.

    Example:
        >>> import torch
        >>> noisy = add_diffusion_noise(torch.zeros(2, 3, 4, 4), step=500, seed=0)
        >>> torch.equal(noisy[0], noisy[1])
        True
    """
    of_image, of_noise = noise_levels(step)
    noise = torch.randn(pixel_values.shape[1:], generator=torch.Generator().manual_seed(seed))
    noisy = of_image * pixel_values.float() + of_noise * noise.to(pixel_values.device)
    return noisy.to(pixel_values.dtype)
