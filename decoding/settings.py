"""What a call of ``generate`` asks for, read as ``generate`` reads it, and what cannot be had here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from damro.decoding.branches.fused import can_branch, why_alone
from damro.decoding.compat import older_than
from damro.decoding.context import check_lengths
from damro.decoding.errors import InputsError, ParameterError, UnsupportedModelError
from damro.decoding.families import family_of
from damro.decoding.families.base import inferred_mask, is_encoder_decoder
from damro.decoding.processor import RuleProcessor
from damro.decoding.prompts import Prompt

DRAFTING = ("assistant_model", "assistant_early_exit", "prompt_lookup_num_tokens", "use_mtp")
"""Settings that ask for a loop which checks several drafted tokens at once."""

OF_TOKENS = ("encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "prefill_chunk_size")
"""Settings that ``generate`` follows only where it is given the tokens of the prompt and not its columns."""

STOCK_ONLY = (
    *DRAFTING,
    *OF_TOKENS,
    "cache",
    "cache_implementation",
    "constraints",
    "custom_generate",
    "dola_layers",
    "force_words_ids",
    "output_attentions",
    "output_hidden_states",
    "past_key_values",
    "penalty_alpha",
    "stop_strings",
    "synced_gpus",
)
"""Settings that ask for another loop than plain search, or for something that only the stock loop heeds or returns."""

_NEUTRAL = {"encoder_no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1.0}
"""Values that ask for nothing, of settings where that is not None or False."""

_OF_INPUTS = (
    "attention_mask",
    "decoder_attention_mask",
    "decoder_inputs_embeds",
    "decoder_position_ids",
    "encoder_outputs",
    "image_sizes",
    "input_ids",
    "inputs",
    "inputs_embeds",
    "mm_encoder_outputs",
    "pixel_values",
    "pixel_values_images",
    "pixel_values_videos",
    "position_ids",
    "qformer_attention_mask",
    "qformer_input_ids",
    "token_type_ids",
)
"""What says which prompts to read. They have been read by the time that ``generate`` is called."""


def setting(decoder: Any, call: Mapping[str, Any], name: str) -> Any:
    """A setting by the precedence of ``generate``: keyword, None too; then the config passed, then the model's own.

    Args:
        decoder: the language model whose ``generate`` is called.
        call: the keywords of the call, `generation_config` among them.
        name: of the setting.
    """
    if name in call:
        return call[name]
    passed = getattr(call.get("generation_config"), name, None)
    return getattr(decoder.generation_config, name, None) if passed is None else passed


def asks(decoder: Any, call: Mapping[str, Any], name: str) -> bool:
    """Whether a setting asks for anything; see :func:`setting`. An empty cache does."""
    value = setting(decoder, call, name)
    return value is not None and value is not False and not (name in _NEUTRAL and value == _NEUTRAL[name])


def end_tokens(decoder: Any, call: Mapping[str, Any]) -> tuple[list[int], int | None]:
    """The tokens that end a row, and what ``generate`` fills it up with; see :func:`setting`."""
    ends, pad = (as_list(setting(decoder, call, name)) for name in ("eos_token_id", "pad_token_id"))
    return ends, next(iter([*pad, *ends]), None)


def as_list(token_ids: int | list[int] | Tensor | None) -> list[int]:
    """The end tokens of a generation config, which may be none, one or several.

    Example:
        >>> as_list(None), as_list(2), as_list([2, 7])
        ([], [2], [2, 7])
    """
    numbers: list[int] = [] if token_ids is None else torch.as_tensor(token_ids).flatten().tolist()
    return numbers


def with_mask(model: Any, inputs: Mapping[str, Any], call: Mapping[str, Any]) -> Mapping[str, Any]:
    """Inputs with the attention mask that ``generate`` would infer in this call, if they have none.

    Args:
        model: the LVLM.
        inputs: what its processor returned.
        call: the keywords of the call, whose `pad_token_id` and `eos_token_id` count.

    Returns:
        The same inputs, or a copy with a mask.
    """
    decoder: Any = family_of(model).decoder(model)
    if inputs.get("attention_mask") is not None or not isinstance(inputs.get("input_ids"), Tensor):
        return inputs
    # A model within another is given columns by it, with a mask of ones where there was none.
    if decoder.config is not model.config:
        return inputs
    pad, ends = (as_list(setting(decoder, call, name)) for name in ("pad_token_id", "eos_token_id"))
    return {**inputs, "attention_mask": inferred_mask(inputs["input_ids"], next(iter(pad), None), ends)}


def check_padding(model: Any, inputs: Mapping[str, Any]) -> None:
    """Checks that a logits processor, which sees nothing of the call it serves, knows what is padding in it.

    Raises:
        InputsError: if there is no mask, the model's own padding token tells nothing, and prompts begin differently, as
            padded ones do; a call that names a padding token would then infer another mask.
    """
    mask = with_mask(model, inputs, {}).get("attention_mask") if isinstance(inputs, Mapping) else None
    if mask is None or inputs.get("attention_mask") is not None or not bool(mask.all()):
        return
    first = inputs["input_ids"][:, 0]
    if not bool((first == first[0]).all()):
        raise InputsError(
            "inputs must hold attention_mask for prompts that begin differently, of which none holds the model's own "
            f"pad_token_id, got none and the first tokens {first[:5].tolist()}; pass the mask that the model's "
            "processor returns, ones where nothing is padding"
        )


def own_loop_serves(decoder: Any, call: Mapping[str, Any]) -> bool:
    """Whether the call is greedy search or sampling with nothing that only the stock loops offer."""
    beams = setting(decoder, call, "num_beams") or 1
    cached = setting(decoder, call, "use_cache") is not False
    asked = any(asks(decoder, call, name) for name in STOCK_ONLY)
    return not asked and beams == 1 and cached and (is_encoder_decoder(decoder) or can_branch(decoder))


def own_processors(call: Mapping[str, Any]) -> list[Any]:
    """The call's own logits processors; one that stands outside of a list is a list of one."""
    given = call.get("logits_processor")
    if given is None:
        return []
    return [given] if isinstance(given, LogitsProcessor) and not isinstance(given, list) else list(given)


def check_call(decoder: Any, call: Mapping[str, Any], *, contrasts: bool) -> None:
    """Refuses what a call asks for and would not get.

    Args:
        decoder: the language model.
        call: the keywords of the call.
        contrasts: whether scores are contrasted in this call.

    Raises:
        ParameterError: naming the setting.
    """
    for name in _OF_INPUTS:
        if call.get(name) is not None:
            raise ParameterError(
                f"{name} must stand in inputs, which prompts are made of, got it beside them; "
                f"pass {{**inputs, {name!r}: ...}}"
            )
    for name, why in (("token_healing", "changes the prompt"), ("is_assistant", "is for models that draft")):
        if asks(decoder, call, name):
            raise ParameterError(f"{name} must be left out, as it {why}, got {setting(decoder, call, name)!r}")
    if setting(decoder, call, "cache_implementation") == "paged":
        raise ParameterError(
            "cache_implementation must not be 'paged', with which generate sees neither images nor processors, got "
            "'paged'; leave it out"
        )
    if contrasts and any(isinstance(own, RuleProcessor) for own in own_processors(call)):
        raise ParameterError(
            "logits_processor must not hold a contrast beside that of the method, got a DAMROProcessor or one of its "
            "kind; leave it out, or pass it to model.generate or with method='greedy'"
        )


def check_prompt(decoder: Any, call: Mapping[str, Any], full: Prompt, *, pruned: bool, tokens: bool) -> None:
    """Refuses settings that the prompt does not bear.

    Args:
        decoder: the language model.
        call: the keywords of the call.
        full: the prompt that sees the image.
        pruned: whether it has fewer columns than tokens.
        tokens: whether ``generate`` can be given the tokens of this model's prompts.

    Raises:
        ParameterError: naming the setting.
    """
    # The first round's drafts would be read as part of a prompt that is read in both directions; so would the rest of
    # the prompt not be, behind a chunk. Loops that check drafts crop the cache to the length of the tokens.
    if full.bidirectional:
        _refuse(decoder, call, (*DRAFTING, "prefill_chunk_size"), "not causal", "decode without it")
    if pruned:
        _refuse(decoder, call, (*DRAFTING, *OF_TOKENS), "pruned", "keep all tokens, or decode without it")
    if tokens and older_than("5.23"):
        why = "of images, which transformers before 5.23 leaves out of chunks"
        _refuse(decoder, call, ("prefill_chunk_size",), why, "decode without it, or pip install 'transformers>=5.23'")
    if not tokens:
        _refuse(decoder, call, OF_TOKENS, "given as columns, as this model's language model is", "decode without it")


def check_cut(decoder: Any, strategy: str = "auto", serves: bool = True) -> None:
    """Refuses the stock loop for a prompt with other image columns than tokens, which it cannot be given.

    It takes such a prompt as columns, which not all models can be given there, and would number those of Qwen-VL anew;
    damro's own loop reads it with the places that its columns had.

    Args:
        decoder: the language model.
        strategy: that was asked for.
        serves: whether damro's own loop can run this call, see :func:`own_loop_serves`.

    Raises:
        UnsupportedModelError: the model's own attention cannot be run in that loop.
        ParameterError: another loop is asked for.
    """
    if (why := why_alone(decoder)) is not None:
        raise UnsupportedModelError(
            f"model must be one whose prompts can be read with fewer image columns, got {decoder.config.model_type}: "
            f"{why}; use a method that leaves no image column out"
        )
    if strategy == "lazy" or not serves:
        raise ParameterError(
            "strategy must be 'auto' or 'fused', and decoding greedy or sampling, where image columns of "
            f"{decoder.config.model_type} are left out, got strategy {strategy!r} or beams, drafts or another loop; "
            "leave that out, or use a method that leaves no image column out"
        )


def _refuse(decoder: Any, call: Mapping[str, Any], names: tuple[str, ...], prompt: str, remedy: str) -> None:
    for name in names:
        if asks(decoder, call, name):
            raise ParameterError(
                f"{name} must be left out where the prompt is {prompt}, got {setting(decoder, call, name)!r}; {remedy}"
            )


def check_mask(model: Any, inputs: Mapping[str, Any], call: Mapping[str, Any], full: Prompt) -> None:
    """Checks that the prompts were made with the mask of this call, which matters where `inputs` hold none.

    Raises:
        InputsError: if they read padding as text, or text as padding.
    """
    mask = with_mask(model, inputs, call).get("attention_mask")
    if mask is None or mask.shape != full.attention_mask.shape:
        return
    if not torch.equal(mask.to(full.attention_mask.device).bool(), full.attention_mask.bool()):
        decoder: Any = family_of(model).decoder(model)
        pad, ends = (setting(decoder, call, name) for name in ("pad_token_id", "eos_token_id"))
        raise InputsError(
            "inputs must hold attention_mask where pad_token_id and eos_token_id of the call tell padding otherwise "
            f"than those of the model, got none with pad_token_id {pad} and eos_token_id {ends}; pass the mask that "
            "the model's processor returns"
        )


def check_prompt_lengths(decoder: Any, prompts: Sequence[Prompt], call: Mapping[str, Any]) -> None:
    """Refuses prompts, and answers behind them, for which the model has no room.

    Args:
        decoder: the language model.
        prompts: those that are read.
        call: the keywords of the call.

    Raises:
        InputsError: a prompt does not fit.
        ParameterError: the answer does not fit where it must.
    """
    columns = max(int(prompt.attention_mask.sum(dim=-1).max()) for prompt in prompts)
    new, total = (setting(decoder, call, name) for name in ("max_new_tokens", "max_length"))
    check_lengths(decoder, columns, (total or 0) - columns if new is None else new)
