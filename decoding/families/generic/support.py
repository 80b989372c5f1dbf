"""Which models need no module of their own, and why others cannot be served."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from damro.decoding.compat import older_than
from damro.decoding.errors import UnsupportedModelError

SINCE = "5.20"
"""The first transformers whose models take image features that are computed already."""

_OTHERWISE = {
    "apertus1p5": "makes words of a codebook of its images, and has no vision tower whose patches they are",
    "diffusion_gemma": "writes by diffusion, not token by token",
    "fuyu": "has no vision tower: patches themselves are its image columns",
    "gemma4_unified": "has no vision tower: patches themselves are its image columns",
    "granite4_vision": "adds its image columns in deeper layers alone",
    "janus": "has a generate() of its own, which drops logits processors",
    "llama4": "makes its image columns only where its language model reads them",
    "mllama": "looks at images by cross-attention: there are no image columns to leave out",
}
"""Image-text models that do not do as others do."""

NO_PATCHES = {
    "aria": "its image columns are queries, not patches",
    "deepseek_ocr2": "its image columns are queries, not patches",
    "deepseek_vl_hybrid": "its image columns join what two vision towers see",
    "fast_vlm": "its vision tower is a convolutional network",
    "gemma3n": "its vision tower is a convolutional network",
    "got_ocr2": "its vision tower attends in a way of its own",
    "hunyuan_vl": "its image columns hold line ends beside patches",
    "hy_v4_vl": "its image columns hold line ends beside patches",
    "idefics2": "its image columns are queries, not patches",
    "inkling2": "its processor counts an image in columns, not in patches",
    "inkling2_loop": "its processor counts an image in columns, not in patches",
    "inkling_mm_model": "its vision tower does not attend: each column is seen by itself",
    "lfm3_vl": "its vision tower ends in a convolution",
    "minicpm_ocr": "its vision tower merges patches between its layers",
    "minicpmv4_6": "its vision tower merges patches between its layers",
    "minicpmv4_7": "its vision tower merges patches between its layers",
    "molmo2": "its image columns are pooled over patches as its processor says",
    "nemotron_h_omni": "summary tokens stand between the patches of its images",
    "perception_lm": "its vision tower is one of timm, whose attention transformers does not see",
    "pp_chart2table": "its vision tower attends in a way of its own",
    "step3p7": "its image columns join several views of an image",
    "unlimited_ocr": "its image columns join what two vision towers see, with line ends",
}
"""Model types whose patches cannot be ranked, and why. Methods that choose none (vcd, icd, m3id) serve them."""


def check_patches(model: Any) -> None:
    """Checks that a model's image columns are patches that can be ranked, as far as is known.

    Raises:
        UnsupportedModelError: if it is known that they are not, and why.
    """
    reason = NO_PATCHES.get(model.config.model_type)
    if reason is not None:
        raise UnsupportedModelError(
            f"method must be one that chooses no patches (vcd, icd, m3id, no-image) for {model.config.model_type}, got "
            f"one that does: {reason}"
        )


def why_not(kind: type[Any]) -> str | None:
    """Why a class of models cannot be served without a module of its own; None if it can.

    Args:
        kind: such as `Qwen3VLForConditionalGeneration`.

    Returns:
        What the model lacks or does, as in "a model which ..."; empty for what is no image-text model at all.
    """
    config = getattr(kind, "config_class", None)
    if config is None or not hasattr(kind, "forward"):
        return ""
    otherwise = _OTHERWISE.get(str(getattr(config, "model_type", "")))
    if otherwise is not None or not _encodes_images(kind):
        return otherwise or ""
    if older_than(SINCE):
        return f"needs transformers {SINCE} or newer; pip install 'transformers>={SINCE}'"
    if not hasattr(kind, "generate"):
        return "has no language-model head; load the ...ForConditionalGeneration class"
    if "mm_encoder_outputs" not in inspect.signature(kind.forward).parameters:
        return "takes no image features that are computed already (mm_encoder_outputs)"
    if not (hasattr(config, "image_token_id") or "image_token_id" in getattr(config, "attribute_map", {})):
        return "has no token that stands for image columns (image_token_id)"
    return None


def _encodes_images(kind: type[Any]) -> bool:
    """Whether the class, or the model inside of it, has `get_image_features`."""
    home = vars(sys.modules[kind.__module__]).values()
    return hasattr(kind, "get_image_features") or any(
        inspect.isclass(one) and one.__module__ == kind.__module__ and "get_image_features" in vars(one) for one in home
    )
