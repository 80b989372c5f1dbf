"""Contrasts that change or read the inside of a language model: where they work, and what they rule out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from damro.decoding.branches.compiling import check_compiles
from damro.decoding.branches.encoder_decoder import negative_branch
from damro.decoding.branches.fused import why_alone
from damro.decoding.branches.kv import keeps_columns
from damro.decoding.branches.negative import Branch
from damro.decoding.branches.readout import Readout, ReadoutBranch
from damro.decoding.errors import ParameterError, UnsupportedModelError
from damro.decoding.families import family_of
from damro.decoding.families.base import is_encoder_decoder
from damro.decoding.prompts import Prompt
from damro.decoding.rules import Contrast
from damro.decoding.search import Search, check_searchable
from damro.decoding.settings import DRAFTING, asks, own_loop_serves, setting

_OF_WEIGHTS = ("output_attentions",)


def prompts_of(contrast: Contrast | Prompt | Search) -> list[Prompt]:
    """The prompts that are read: the full one, and a negative one if there is one."""
    if isinstance(contrast, Search):
        return [contrast.full]
    if not isinstance(contrast, Contrast):
        return [contrast]
    return [contrast.full] if reads_inside(contrast) else [contrast.full, negative_prompt(contrast)]


def reads_inside(contrast: Contrast | Prompt | Search) -> bool:
    """Whether the other logits are read in the full prompt's own pass."""
    return isinstance(contrast, Contrast) and isinstance(contrast.negative, Readout)


def negative_prompt(contrast: Contrast) -> Prompt:
    """The second prompt.

    Raises:
        UnsupportedModelError: if there is none.
    """
    if isinstance(contrast.negative, Readout):
        raise UnsupportedModelError(
            "method must have a second prompt for this, got one that reads the full prompt's own pass; decode with "
            "damro.generate"
        )
    return contrast.negative


def works_inside(contrast: Contrast | Prompt | Search) -> bool:
    """Whether a pass of the language model is changed, or looked into."""
    return reads_inside(contrast) or any(prompt.altered is not None for prompt in prompts_of(contrast))


def check_model(decoder: Any, contrast: Contrast | Prompt | Search) -> None:
    """Refuses models whose passes cannot be changed or looked into, where that is to be done.

    Args:
        decoder: the language model with its head.
        contrast: what is to be decoded.

    Raises:
        UnsupportedModelError: an encoder-decoder; a language model that keeps states, or whose attention cannot be
            given by name where that is changed or looked at.
    """
    if isinstance(contrast, Search):
        check_searchable(decoder)
    if not works_inside(contrast):
        return
    check_decoder(decoder)
    if changes_attention(contrast) and (why := why_alone(decoder)) is not None:
        raise UnsupportedModelError(
            f"language model must attend to all columns by a function that can be exchanged for its attention to be "
            f"changed, got {type(decoder.get_decoder()).__name__}: {why}; use a method that leaves the inside alone"
        )


def check_decoder(decoder: Any) -> None:
    """Refuses language models whose layers cannot be read or changed column by column.

    Args:
        decoder: the language model with its head.

    Raises:
        UnsupportedModelError: an encoder-decoder, or a language model that keeps states.
    """
    name = type(decoder.get_decoder()).__name__
    if is_encoder_decoder(decoder) or not keeps_columns(decoder):
        kind = "an encoder-decoder" if is_encoder_decoder(decoder) else "one that keeps states"
        raise UnsupportedModelError(
            "language model must read from left to right by attention in every layer for a method that works inside of "
            f"it, got {kind}, {name}; use a method that leaves the inside alone"
        )


def changes_attention(contrast: Contrast | Prompt | Search) -> bool:
    """Whether attention of the language model is changed or seen."""
    altered = (prompt.altered for prompt in prompts_of(contrast))
    return any(one is not None and one.of_attention for one in altered)


def check_settings(decoder: Any, contrast: Contrast | Prompt, strategy: str, call: Mapping[str, Any]) -> None:
    """Refuses settings with which passes cannot be changed or looked into.

    Args:
        decoder: the language model with its head.
        contrast: for which :func:`works_inside`.
        strategy: that was asked for.
        call: the keywords of the call.

    Raises:
        ParameterError: "fused", whose rows are all read alike; drafts of several tokens; attention that is to be
            returned where it is changed.
    """
    if strategy == "fused":
        raise ParameterError(
            "strategy must be 'auto' or 'lazy' with a method that works inside of the language model, got 'fused', "
            "whose rows are all read alike; leave it out"
        )
    for name in (*DRAFTING, *_OF_WEIGHTS * changes_attention(contrast)):
        if asks(decoder, call, name):
            raise ParameterError(
                f"{name} must be left out with a method that works inside of the language model, got "
                f"{setting(decoder, call, name)!r}; decode without it"
            )


def second_branch(model: PreTrainedModel, contrast: Contrast, start: int | list[int] | None = None) -> Branch:
    """What gives the other logits of every step, from a second prompt or from the full one's own pass."""
    if isinstance(contrast.negative, Readout):
        return ReadoutBranch(family_of(model).decoder(model), contrast.negative, contrast.full)
    return negative_branch(model, negative_prompt(contrast), start)


def check_compiled(decoder: Any, contrast: Contrast | Prompt | Search, strategy: str, call: Mapping[str, Any]) -> None:
    """Refuses what a compiled step does not serve.

    Args:
        decoder: the language model.
        contrast: what is to be decoded.
        strategy: that was asked for.
        call: the keywords of the call.

    Raises:
        ParameterError: the method looks into passes or searches by itself, or the call is another loop's business.
        UnsupportedModelError: the model's step cannot be compiled.
    """
    if isinstance(contrast, Search) or works_inside(contrast):
        raise ParameterError(
            "compile must be left out with a method that changes or reads the inside of a pass, or searches by itself, "
            "got one; decode without it"
        )
    check_compiles(decoder)
    if strategy == "lazy" or not own_loop_serves(decoder, call):
        raise ParameterError(
            "compile must stand with strategy 'auto' or 'fused', and decoding greedy or sampling, got strategy "
            f"{strategy!r} or beams, drafts, returned states or another loop; leave one of them out"
        )
