"""PaliGemma: SigLIP, which has no [CLS], and a Gemma that reads its prompt in both directions.

Image and question see all of each other; only what is generated is causal. PaliGemma numbers its columns from 1. Its
positions are rotary, of which attention sees differences alone, so that prompts numbered from 0 are read the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from damro.decoding.compat import check_version
from damro.decoding.errors import InputsError, UnsupportedModelError
from damro.decoding.families import llava
from damro.decoding.families.base import LVLM, Encoding, embed_prompt
from damro.decoding.families.llava import PIXELS, column_patches, patch_columns, vision_tower
from damro.decoding.prompts import VisualPrompt

__all__ = [
    "DEFAULT_HEADS",
    "PIXELS",
    "POOLED_AS_LIST",
    "RANKED",
    "REQUIRED_INPUTS",
    "column_patches",
    "decoder",
    "encode",
    "feature_layer",
    "full_prompt",
    "prompt_of_patches",
    "vision_tower",
]

# Without them the model itself reads some prompts in both directions and others from left to right.
REQUIRED_INPUTS: tuple[str, ...] = ("token_type_ids",)
DEFAULT_HEADS = "mean"
RANKED = "received"
POOLED_AS_LIST = False


def decoder(model: LVLM) -> nn.Module:
    """The model itself: given `inputs_embeds` alone it is its language model and head.

    Raises:
        UnsupportedModelError: under flash attention, which takes no mask but causal or none: tokens that are fed
            several at a time would see those behind them. With PaliGemma 2 in a transformers that does not cap its
            logits.
    """
    if getattr(model.config.get_text_config(), "final_logit_softcapping", None) is not None:
        check_version("5.23", "PaliGemma 2", "leave out the soft cap of its logits")
    attention = model.config.get_text_config()._attn_implementation
    if "flash" in attention:
        raise UnsupportedModelError(
            f"model must not use flash attention with {model.config.model_type}, whose prompt is not causal, got "
            f"{attention!r}; load it with attn_implementation='sdpa', or 'eager' where its scores are soft-capped"
        )
    return llava.decoder(model)


def feature_layer(model: LVLM, *, reference: bool) -> int:
    """The last layer, which gives the features; there is no released code for PaliGemma to differ from."""
    return int(model.config.vision_config.num_hidden_layers) - 1


def encode(model: LVLM, inputs: Mapping[str, Any]) -> Encoding:
    """Runs SigLIP and the projector once.

    Raises:
        InputsError: if a prompt ends in a suffix, which the model is trained with and does not continue.
    """
    if bool(inputs["token_type_ids"].any()):
        raise InputsError(
            "token_type_ids must be 0 in every column of a prompt that is to be continued, got others; "
            "leave suffix= out of the call to the processor"
        )
    return llava.encode(model, inputs)


def full_prompt(model: LVLM, inputs: Mapping[str, Any], encoding: Encoding) -> VisualPrompt:
    """The prompt the model reads, every column with all others in view."""
    return replace(embed_prompt(model, inputs, encoding), bidirectional=True)


def prompt_of_patches(model: LVLM, inputs: Mapping[str, Any], encoding: Encoding, patches: Tensor) -> VisualPrompt:
    """Keeps the columns of some patches of each image; what is left is read in both directions, too."""
    prompt = full_prompt(model, inputs, encoding)
    return prompt.keep(patch_columns(encoding, patches, len(prompt.image_mask)))
