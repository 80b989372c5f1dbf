"""Every image-text model of the transformers at hand: how it is served, and what is known of it.

What stands here by hand is what is compared in the tests with tiny models of these types; the rest is found.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from damro.decoding.families import FAMILIES
from damro.decoding.families.generic.support import NO_PATCHES, why_not

Ranked = Literal["cls", "received"]

RANKED: dict[Ranked | None, str] = {"cls": "[CLS]", "received": "received", None: ""}
"""What tables call it."""


class Facts(NamedTuple):
    """What is known of a model type that is tested.

    Attributes:
        ranked: what ranks its patches: the attention of [CLS], or the attention they receive.
        alone: whether its prompts are continued one at a time ("lazy"), see
            :func:`damro.decoding.branches.fused.why_alone`.
    """

    ranked: Ranked
    alone: str = ""


_SLIDES = "some of its layers look back through a window"
_STATES = "it keeps states beside keys and values"

TESTED: dict[str, Facts] = {
    "internvl": Facts("cls"),
    "qwen2_vl": Facts("received"),
    "qwen2_5_vl": Facts("received"),
    "qwen3_vl": Facts("received"),
    "qwen3_vl_moe": Facts("received"),
    "qwen3_5": Facts("received", _STATES),
    "smolvlm": Facts("received"),
    "idefics3": Facts("received"),
    "gemma3": Facts("received", _SLIDES),
    "gemma4": Facts("received", _SLIDES),
    "mistral3": Facts("received"),
    "glm4v": Facts("received"),
    "glm46v": Facts("received"),
    "glm4v_moe": Facts("received"),
    "glm_ocr": Facts("received"),
    "aya_vision": Facts("received", _SLIDES),
    "cohere2_vision": Facts("received", _SLIDES),
    "deepseek_vl": Facts("received"),
    "ovis2": Facts("received"),
    "video_llama_3": Facts("received"),
    "lighton_ocr": Facts("received"),
    "exaone4_5": Facts("received", _SLIDES),
    "lfm2_vl": Facts("received", _STATES),
    "paddleocr_vl": Facts("received"),
    "kimi_k25": Facts("received", "it changes keys and values between its cache and its attention"),
    "qwen3_5_moe": Facts("received", _STATES),
    "qwen2_5_omni_thinker": Facts("received"),
    "qwen3_omni_moe_thinker": Facts("received"),
    "ernie4_5_vl_moe": Facts("received"),
    "glmga": Facts("received"),
    "shieldgemma2": Facts("received", _SLIDES),
    "granite_docling": Facts("received"),
    "qianfan_ocr": Facts("cls"),
    "hyperclovax_vision_v2": Facts("received"),
    "muse_glimmer": Facts("received", _SLIDES),
    "cosmos3_edge": Facts("received"),
    "cosmos3_omni": Facts("received"),
    "cohere_compass": Facts("received", _SLIDES),
    "glm5_next": Facts("received", _STATES),
    "dots3_note": Facts("received", _STATES),
    "muse_spark": Facts("received", _SLIDES),
    "qwen4_exp": Facts("received", _STATES),
    "mistral_large4": Facts("received", _STATES),
    "minimax_m3_vl": Facts("received"),
}
"""Model types without a module of their own whose tokens are those of a reference, on tiny random models."""


class Served(NamedTuple):
    """How a model type is served.

    Attributes:
        model_type: as in `config.model_type`.
        how: by a module of its own, as every model, or not.
        ranked: what ranks its patches; None if that is not known, or they cannot be ranked.
        tested: whether tokens are compared with a reference's in the tests.
        alone: why its prompts are continued one at a time; empty if they are not, or if that is not known.
        why: what does not work, and why; empty if all does, as far as is known.
    """

    model_type: str
    how: Literal["module", "generic", "refused"]
    ranked: Ranked | None
    tested: bool
    alone: str = ""
    why: str = ""

    @property
    def note(self) -> str:
        """What a reader should know."""
        if self.why or self.tested:
            return self.why or (f"one prompt at a time (lazy): {self.alone}" if self.alone else "")
        return "not tried; the model class has what it takes"


def survey() -> Iterator[Served]:
    """How each image-text model type of the transformers at hand is served, in alphabetical order.

    Model classes are imported, no model is made.
    """
    classes: dict[str, str] = dict(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    for name in sorted({*classes, *FAMILIES}):
        if name in FAMILIES:
            yield Served(name, "module", getattr(FAMILIES[name], "RANKED", "cls"), True)
        else:
            yield _without_module(name, getattr(transformers, classes[name], None))


def _without_module(name: str, kind: type[Any] | None) -> Served:
    refused = "cannot be imported here" if kind is None else why_not(kind)
    if refused is not None:
        return Served(
            name, "refused", None, False, why=refused or "has no get_image_features, of which image columns are made"
        )
    if name in NO_PATCHES:
        why = f"methods that choose patches do not work, as {NO_PATCHES[name]}"
        return Served(name, "generic", None, False, why=why)
    if name in TESTED:
        return Served(name, "generic", TESTED[name].ranked, True, TESTED[name].alone)
    return Served(name, "generic", None, False)
