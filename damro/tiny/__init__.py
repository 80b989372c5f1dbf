"""The embedded default: small trained vision language models and the rendered scenes they know.

Importing this package imports neither torch nor transformers; `load` does.

Example:
    >>> picture = scene("test", 0)
    >>> picture.image.size
    (96, 96)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from damro.tiny.scenes import Scene, SceneObject, scene

if TYPE_CHECKING:
    import torch

__all__ = ["Scene", "SceneObject", "checkpoint_of", "checkpoints", "load", "path", "scene"]

_CHECKPOINTS = Path(__file__).parent / "checkpoints"


def checkpoints() -> tuple[str, ...]:
    """The names of the shipped checkpoints, the default one first.

    Example:
        >>> checkpoints()[0]
        'llava'
    """
    return ("llava", *sorted(entry.name for entry in _CHECKPOINTS.glob("*/") if entry.name != "llava"))


def checkpoint_of(model: str) -> str | None:
    """The embedded checkpoint that a model's name means, there or not; None for a folder or a name on the Hub.

    Args:
        model: "tiny", which is "tiny:llava", or "tiny:NAME".

    Example:
        >>> checkpoint_of("tiny"), checkpoint_of("tiny:llava_next"), checkpoint_of("llava-hf/llava-1.5-7b-hf")
        ('llava', 'llava_next', None)
    """
    kind, colon, family = model.partition(":")
    if kind != "tiny":
        return None
    return family if colon else "llava"


def path(family: str = "llava") -> Path:
    """The folder of a shipped checkpoint; any ``from_pretrained`` takes it.

    Args:
        family: one of `checkpoints`.

    Returns:
        The folder.

    Raises:
        ValueError: there is no such checkpoint.

    Example:
        >>> path().name
        'llava'
    """
    folder = _CHECKPOINTS / family
    if not (folder / "config.json").exists():
        raise ValueError(f"family must be one of {', '.join(checkpoints())}, not {family!r}; choose one of them")
    return folder


def load(family: str = "llava", dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    r"""Loads a shipped model and its processor, on the CPU, ready to generate.

    Args:
        family: one of `checkpoints`.
        dtype: of the weights; float32 if not given (they are stored in float16).

    Returns:
        The model, in evaluation mode, and the processor.

    Raises:
        ValueError: there is no such checkpoint.

    Example:
        >>> model, processor = load()
        >>> prompt = "USER: <image>\nGenerate a short caption of this image. ASSISTANT:"
        >>> inputs = processor(images=scene("test", 0).image, text=prompt, return_tensors="pt")
        >>> caption = processor.decode(model.generate(**inputs)[0, inputs.input_ids.shape[1] :])
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = path(family)
    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype or torch.float32)
    processor = AutoProcessor.from_pretrained(folder)  # type: ignore[no-untyped-call]
    return model.eval(), processor
