"""DAMRO on stock Hugging Face transformers.

``import damro`` costs next to nothing: torch and transformers are loaded when a name below is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from damro._version import __version__

if TYPE_CHECKING:
    from damro.decoding.branches.encoder_decoder import returned_prompt
    from damro.diagnosis.diagnose import Diagnosis, diagnose
    from damro.generation import generate
    from damro.images import load_image
    from damro.loading import load_model, prepare_inputs
    from damro.methods.patches import OutlierView, outlier_view
    from damro.methods.presets import preset
    from damro.pages.explain import Explanation, explain
    from damro.processor import DAMROProcessor, contrast_processor
    from damro.pruning import Pruning, prune
    from damro.vision.attention import CLSAttention, cls_attention, cls_attentions
    from damro.vision.features import PatchFeatures, patch_features
    from damro.vision.outliers import Outliers, find_outliers

__all__ = [
    "CLSAttention",
    "DAMROProcessor",
    "Diagnosis",
    "Explanation",
    "OutlierView",
    "Outliers",
    "PatchFeatures",
    "Pruning",
    "__version__",
    "cls_attention",
    "cls_attentions",
    "contrast_processor",
    "diagnose",
    "explain",
    "find_outliers",
    "generate",
    "load_image",
    "load_model",
    "outlier_view",
    "patch_features",
    "prepare_inputs",
    "preset",
    "prune",
    "returned_prompt",
]

_HOME = {
    "CLSAttention": "damro.vision.attention",
    "DAMROProcessor": "damro.processor",
    "Diagnosis": "damro.diagnosis.diagnose",
    "Explanation": "damro.pages.explain",
    "OutlierView": "damro.methods.patches",
    "Outliers": "damro.vision.outliers",
    "PatchFeatures": "damro.vision.features",
    "Pruning": "damro.pruning",
    "cls_attention": "damro.vision.attention",
    "cls_attentions": "damro.vision.attention",
    "contrast_processor": "damro.processor",
    "diagnose": "damro.diagnosis.diagnose",
    "explain": "damro.pages.explain",
    "find_outliers": "damro.vision.outliers",
    "generate": "damro.generation",
    "load_image": "damro.images",
    "load_model": "damro.loading",
    "outlier_view": "damro.methods.patches",
    "patch_features": "damro.vision.features",
    "prepare_inputs": "damro.inputs",
    "preset": "damro.methods.presets",
    "prune": "damro.pruning",
    "returned_prompt": "damro.decoding.branches.encoder_decoder",
}


def __getattr__(name: str) -> Any:
    """Loads a public name from its module on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'damro' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
