"""Whether DAMRO can help a model, told in minutes.

What its outliers are, whether the language model follows them, what they know, and what room there is for a contrast.
Importing this package imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from damro.diagnosis.samples import AnnotatedImage, folder_images, scene_images
from damro.diagnosis.settings import Settings

if TYPE_CHECKING:
    from damro.diagnosis.diagnose import Diagnosis, diagnose

__all__ = ["AnnotatedImage", "Diagnosis", "Settings", "diagnose", "folder_images", "scene_images"]


def __getattr__(name: str) -> Any:
    """Loads what needs torch on first use (PEP 562)."""
    if name not in ("Diagnosis", "diagnose"):
        raise AttributeError(f"module 'damro.diagnosis' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("damro.diagnosis.diagnose"), name)
