"""DAMRO on stock Hugging Face transformers.

``import damro`` costs next to nothing: torch and transformers are loaded when a name below is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from damro._version import __version__

if TYPE_CHECKING:
    from damro.attention import CLSAttention, cls_attention
    from damro.generation import generate
    from damro.outliers import Outliers, find_outliers
    from damro.presets import preset
    from damro.processor import DAMROProcessor, contrast_processor
    from damro.views import OutlierView, outlier_view

__all__ = [
    "CLSAttention",
    "DAMROProcessor",
    "OutlierView",
    "Outliers",
    "__version__",
    "cls_attention",
    "contrast_processor",
    "find_outliers",
    "generate",
    "outlier_view",
    "preset",
]

_HOME = {
    "CLSAttention": "damro.attention",
    "DAMROProcessor": "damro.processor",
    "OutlierView": "damro.views",
    "Outliers": "damro.outliers",
    "cls_attention": "damro.attention",
    "contrast_processor": "damro.processor",
    "find_outliers": "damro.outliers",
    "generate": "damro.generation",
    "outlier_view": "damro.views",
    "preset": "damro.presets",
}


def __getattr__(name: str) -> Any:
    """Loads a public name from its module on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'damro' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
