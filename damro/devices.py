"""Whether torch has a device, asked before anything is loaded onto it."""

from __future__ import annotations

import torch

from damro.errors import ParameterError

SPREADS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Ways of accelerate to spread a model over all devices."""


def check_device(device: str) -> None:
    """Checks that a device is there.

    Raises:
        ParameterError: torch knows no such device, or this machine or this build of torch has none.
    """
    try:
        if torch.device(device).type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # of CUDA alone, any of them
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ParameterError(
            f"device must be one that this machine and its torch have ({', '.join(_present())}), got {device!r}: "
            f"{reason}; leave it out to take the first"
        ) from error


def _present() -> list[str]:
    """The devices there are, the default first."""
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return [*(["cuda"] if gpus else []), *gpus, "cpu", *(["mps"] if torch.backends.mps.is_available() else [])]
