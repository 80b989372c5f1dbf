"""What differs between model families: where the ViT is, and how its patches become prompt columns.

A family is a module, or an object, with the functions of :class:`Family`; ``FAMILIES`` maps ``config.model_type`` to
it. A new family is one new module and one line here, or an entry point of another package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from damro.decoding.errors import InputsError, UnsupportedModelError
from damro.decoding.families.base import (
    ColumnPatches,
    Encoding,
    Family,
    attention_mask_of,
    image_columns,
    is_encoder_decoder,
    unwrap,
    visual_tokens,
)
from damro.registry import Registry

FAMILIES: Registry[Family] = Registry(
    "damro.families",
    "family",
    UnsupportedModelError,
    {
        "llava": "damro.decoding.families.llava",
        "llava_next": "damro.decoding.families.llava_next",
        "llava_next_video": "damro.decoding.families.llava_next",
        "instructblip": "damro.decoding.families.instructblip",
        "instructblipvideo": "damro.decoding.families.instructblipvideo",
        "vipllava": "damro.decoding.families.vipllava",
        "video_llava": "damro.decoding.families.video_llava",
        "llava_onevision": "damro.decoding.families.llava_onevision",
        "blip-2": "damro.decoding.families.blip_2",
        "paligemma": "damro.decoding.families.paligemma",
    },
)
"""The families by `config.model_type`. One of another package comes by an entry point of this group."""

_VIDEO = "pixel_values_videos"

__all__ = ["FAMILIES", "ColumnPatches", "Encoding", "Family", "InsideOf", "check_inputs", "family_of", "unwrap"]


class InsideOf:
    """A module of functions of a model, for models that are wrapped: each gets the model that is inside.

    Args:
        functions: of a family, or others whose first argument is the model.
    """

    def __init__(self, functions: Any) -> None:
        self._functions = functions

    def __getattr__(self, name: str) -> Any:
        """The function of that name, which unwraps its model; what is no function is returned as it is."""
        value = getattr(self._functions, name)
        return (lambda model, *args, **kwargs: value(unwrap(model), *args, **kwargs)) if callable(value) else value


def family_of(model: PreTrainedModel) -> Family:
    """The family module of a model; its functions take the model itself and a `PeftModel` around it alike.

    Raises:
        UnsupportedModelError: if there is none, or the model has no language-model head; or an adapter around it acts
            outside of its layers.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    family = FAMILIES.get(str(model_type))
    if family is None or not getattr(family, "serves", bool)(unwrap(model)):
        family = _generic(unwrap(model), model_type)
    if not hasattr(model, "generate"):
        raise UnsupportedModelError(
            f"model must have a language-model head, got {type(model).__name__}; "
            "load the ...ForConditionalGeneration class"
        )
    wrapped: Any = InsideOf(family)
    return family if unwrap(model) is model else wrapped


def _generic(model: PreTrainedModel, model_type: str | None) -> Family:
    """The family of models without a module of their own.

    Raises:
        UnsupportedModelError: if it does not serve this one, and why.
    """
    from damro.decoding.families import generic
    from damro.decoding.families.generic.support import why_not

    reason = why_not(type(model))
    if reason is not None:
        raise UnsupportedModelError(
            f"model must be of a supported family ({', '.join(FAMILIES)}, or another image-text model of "
            f"transformers), got model_type {model_type!r}{reason and f', which {reason}'}"
        )
    return generic


def check_inputs(model: PreTrainedModel, inputs: Mapping[str, Any]) -> None:
    """Checks that `inputs` is what the model's processor returns for images and text.

    Text must be padded on the left, unless an encoder reads it.

    Raises:
        InputsError: naming what is missing or wrong.
        UnsupportedModelError: if there are videos, and the family reads images only.
    """
    if not isinstance(inputs, Mapping):
        raise InputsError(f"inputs must be the mapping a processor returned, got {type(inputs).__name__}")
    family = family_of(model)
    if inputs.get(_VIDEO) is not None and _VIDEO not in family.PIXELS:
        readers = ", ".join(name for name, other in FAMILIES.items() if _VIDEO in other.PIXELS)
        raise UnsupportedModelError(
            f"inputs must hold images and no videos unless the model is of {readers}, got {_VIDEO!r} for "
            f"{model.config.model_type}; pass frames as images"
        )
    for keys in (family.PIXELS, ("input_ids",)):
        if not any(isinstance(inputs.get(key), Tensor) for key in keys):
            raise InputsError(
                f"inputs must hold {' or '.join(map(repr, keys))} as a tensor, got the keys {sorted(inputs)}; "
                "call processor(images=..., text=..., return_tensors='pt')"
            )
    for key in family.REQUIRED_INPUTS:
        if inputs.get(key) is None:
            raise InputsError(f"inputs of {model.config.model_type} must hold {key!r}, got {sorted(inputs)}")
    ids = inputs["input_ids"]
    if ids.ndim != 2:
        raise InputsError(f"input_ids must be (prompts, tokens), got shape {tuple(ids.shape)}")
    mask = attention_mask_of(model, inputs)
    if mask.shape != ids.shape:
        raise InputsError(
            f"attention_mask must have the shape of input_ids {tuple(ids.shape)}, got {tuple(mask.shape)}"
        )
    if not is_encoder_decoder(family.decoder(model)) and not bool(mask[:, -1].all()):
        raise InputsError(
            "inputs must be padded on the left, got padding at the end of a row; "
            "set processor.tokenizer.padding_side = 'left'"
        )
    without = (~image_columns(model, ids).any(dim=-1)).nonzero().flatten().tolist()
    if without:
        tokens = " and ".join(f"{kind} token is {token}" for kind, token in visual_tokens(model).items())
        other = f"; or take the processor of this very model, whose {tokens}"
        raise InputsError(
            f"every prompt must hold an image token, got none in rows {without[:5]} ({len(without)} in all); "
            "put the processor's image token into the text, or leave text-only prompts out of the batch"
            f"{other if len(without) == len(ids) else ''}"
        )
    _check_tables(model, inputs, family.PIXELS)


def _check_tables(model: PreTrainedModel, inputs: Mapping[str, Any], pixels: Sequence[str]) -> None:
    """Refuses what goes beyond learned positions: images that are not CLIP's size, a long text for a Q-Former.

    Families whose ViT interpolates its positions have no CLIP.
    """
    vision: Any = getattr(model.config, "vision_config", None)
    if getattr(vision, "model_type", None) == "clip_vision_model":
        side = vision.image_size
        for key in pixels:
            value = inputs.get(key)
            if isinstance(value, Tensor) and tuple(value.shape[-2:]) != (side, side):
                raise InputsError(
                    f"{key} must be of the vision tower's size {side}x{side}, got {tuple(value.shape)}; take the "
                    "processor of this very model"
                )
    context = getattr(getattr(model.config, "qformer_config", None), "max_position_embeddings", None)
    text = inputs.get("qformer_input_ids")
    if context is not None and isinstance(text, Tensor) and text.shape[-1] > context:
        raise InputsError(
            f"prompt must fit into the {context} positions of the Q-Former, got {text.shape[-1]} tokens; shorten it"
        )
