"""A sentence put in front of the instruction: how ICD makes a model see less than there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from damro.decoding.errors import ParameterError
from damro.decoding.families import family_of
from damro.decoding.families.base import attention_mask_of, image_columns

DISTURBANCE = "You are a confused objects detector to provide a fuzzy overview or impression of the image."
"""One of the five prefixes in the scripts of ICD's authors (github.com/p1k0pan/ICD), and the one others use."""


def disturb_text(
    model: PreTrainedModel, inputs: Mapping[str, Any], processor: Any, sentence: str = DISTURBANCE
) -> dict[str, Any]:
    """Puts a sentence in front of what the language model reads, behind the token that begins a text.

    Image tokens that stand before the text stay there.

    Args:
        model: the LVLM.
        inputs: what its processor returned.
        processor: the model's own, or its tokenizer.
        sentence: what to put there.

    Returns:
        A copy of `inputs` with longer `input_ids (B, L + n)` and `attention_mask`.

    Raises:
        ParameterError: if the sentence is empty, or there is no tokenizer to read it.
    """
    tokenizer: Any = getattr(processor, "tokenizer", processor)
    prefix = _tokens(tokenizer, sentence, "processor")
    ids: Tensor = inputs["input_ids"]
    mask = attention_mask_of(model, inputs).to(ids.device)
    image = image_columns(model, ids)
    longer, read = _insert(ids, mask, mask.bool() & ~image, tokenizer.bos_token_id, prefix)
    return {**inputs, "input_ids": longer, "attention_mask": read}


def disturb_question(
    model: PreTrainedModel, inputs: Mapping[str, Any], processor: Any, sentence: str = DISTURBANCE
) -> dict[str, Any]:
    """Puts a sentence in front of what a Q-Former reads; see :func:`disturb_text`.

    Returns:
        A copy of `inputs` with longer `qformer_input_ids (B, S + n)` and `qformer_attention_mask`.

    Raises:
        ParameterError: as :func:`disturb_text`.
    """
    tokenizer: Any = getattr(processor, "qformer_tokenizer", None)
    prefix = _tokens(tokenizer, sentence, "processor.qformer_tokenizer")
    ids: Tensor = inputs["qformer_input_ids"]
    mask = inputs.get("qformer_attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    longer, read = _insert(ids, mask, mask.bool(), tokenizer.cls_token_id, prefix)
    return {**inputs, "qformer_input_ids": longer, "qformer_attention_mask": read}


def has_question(model: PreTrainedModel) -> bool:
    """Whether the model reads the instruction in a Q-Former, too."""
    return "qformer_input_ids" in family_of(model).REQUIRED_INPUTS


def _tokens(tokenizer: Any, sentence: str, name: str) -> Tensor:
    if not callable(tokenizer):
        raise ParameterError(
            f"{name} must be given to tokenize the disturbance, got {tokenizer!r}; pass processor=, the one that made "
            "the inputs"
        )
    ids = tokenizer(sentence, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ParameterError(f"disturbance must be a sentence of at least one token, got {sentence!r}")
    return torch.tensor(ids)


def _insert(ids: Tensor, mask: Tensor, text: Tensor, begin: int | None, prefix: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and mask with `prefix (n,)` in front of the first column of `text (B, L)`, or behind it if it is `begin`."""
    prefix, read = prefix.to(ids.device), mask.new_ones(len(prefix))
    new_ids, new_mask = [], []
    for row, place in enumerate(text.long().argmax(dim=-1).tolist()):
        at = place + int(begin is not None and int(ids[row, place]) == begin)
        new_ids.append(torch.cat([ids[row, :at], prefix, ids[row, at:]]))
        new_mask.append(torch.cat([mask[row, :at], read, mask[row, at:]]))
    return torch.stack(new_ids), torch.stack(new_mask)
