"""Whether a prompt, its image columns counted, and an answer fit into what a model can read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from damro.decoding.errors import InputsError, ParameterError
from damro.decoding.families import family_of
from damro.decoding.families.base import attention_mask_of

_TABLES = ("embed_positions", "position_embeddings", "wpe")
_STRETCHED = ("linear", "dynamic")


def check_context(model: Any, inputs: Mapping[str, Any], max_new_tokens: int = 1) -> None:
    """Checks that the prompts a processor made fit into the language model's context; see :func:`check_lengths`.

    Args:
        model: the LVLM.
        inputs: what its processor returned; `input_ids` hold a token for every image column.
        max_new_tokens: the longest answer.

    Raises:
        InputsError: a prompt does not fit.
        ParameterError: the answer does not fit where it must.
    """
    if isinstance(inputs.get("input_ids"), Tensor):
        longest = int(attention_mask_of(model, inputs).sum(dim=-1).max())
        check_lengths(family_of(model).decoder(model), longest, max_new_tokens)


def check_lengths(decoder: Any, columns: int, max_new_tokens: int = 1) -> None:
    """Checks that columns of a prompt and what is to follow them fit into a language model's context.

    A prompt and one new token must fit. A longer answer may leave the context behind, as in stock ``generate``, which
    warns: rotary positions go on. Positions that are learned end with their table, where stock ``generate`` crashes;
    there the whole answer must fit.

    Args:
        decoder: the language model with its head.
        columns: of text and images.
        max_new_tokens: the longest answer.

    Raises:
        InputsError: the prompt does not fit.
        ParameterError: the answer does not fit where it must.
    """
    context = context_of(decoder)
    if context is None:
        return
    if columns >= context:
        raise InputsError(
            f"prompt must leave room for a new token in the model's context of {context} columns, got {columns} of "
            f"text and images, {columns + 1 - context} too many; shorten it"
        )
    room = context - columns
    if max_new_tokens > room and _has_table(decoder):
        raise ParameterError(
            f"max_new_tokens must be at most {room} behind a prompt of {columns} columns, since the model has learned "
            f"{context} positions and no more, got {max_new_tokens}; lower it or shorten the prompt"
        )


def context_of(decoder: Any) -> int | None:
    """The columns that a language model can read; None where its positions have no end (T5's distances).

    Rotary positions that are stretched ("linear", "dynamic", "yarn") reach as many times further as their factor says.
    """
    config = decoder.config.get_text_config(decoder=True)
    context = getattr(config, "max_position_embeddings", None)
    if not isinstance(context, int) or decoder.config.is_encoder_decoder:
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    kind, factor = rope.get("rope_type"), rope.get("factor") or 1.0
    if kind in _STRETCHED:
        return int(context * factor)
    if kind == "yarn":
        return max(context, int((rope.get("original_max_position_embeddings") or context) * factor))
    return context


def _has_table(decoder: Any) -> bool:
    """Whether positions of the language model are learned vectors in a table, as OPT's are."""
    return any(
        isinstance(part, nn.Embedding) and name.rpartition(".")[2] in _TABLES
        for name, part in decoder.get_decoder().named_modules()
    )
