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

__all__ = ["Scene", "SceneObject", "load", "path", "scene"]

_CHECKPOINTS = Path(__file__).parent / "checkpoints"


def path(family: str = "llava") -> Path:
    """The folder of a shipped checkpoint; any ``from_pretrained`` takes it.

    Args:
        family: "llava", "llava_next" or "instructblip".

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
        known = ", ".join(sorted(entry.name for entry in _CHECKPOINTS.glob("*/")))
        raise ValueError(f"family must be one of {known}, not {family!r}; choose one of them")
    return folder


def load(family: str = "llava", dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    r"""Loads a shipped model and its processor, on the CPU, ready to generate.

    Args:
        family: "llava", "llava_next" or "instructblip".
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
