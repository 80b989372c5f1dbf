"""Contrastive decoding at the cost of plain decoding: both branches as rows of one batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from damro.decoding.altering import reading
from damro.decoding.branches.compiled import CompiledBranches
from damro.decoding.branches.encoder_decoder import EncodedBranches, returned_prompt
from damro.decoding.branches.fused import Branches, Prefill
from damro.decoding.branches.kv import roomy_cache
from damro.decoding.branches.prefix import Read, read_prompt
from damro.decoding.branches.readout import ReadoutBranch
from damro.decoding.branches.recurrent import RecurrentBranch
from damro.decoding.compat import CACHE, with_known_cache
from damro.decoding.errors import ParameterError, UnsupportedModelError
from damro.decoding.families import family_of, unwrap
from damro.decoding.families.base import encoder_outputs, is_encoder_decoder
from damro.decoding.families.generic.prompt import TokenPrompt
from damro.decoding.finite import FiniteScores
from damro.decoding.inside import check_compiled, check_model, check_settings, prompts_of, second_branch, works_inside
from damro.decoding.loop import BranchLoop, Continued, ContrastStep
from damro.decoding.processor import RuleProcessor
from damro.decoding.prompts import Prompt, VisualPrompt
from damro.decoding.rules import Contrast
from damro.decoding.search import Search, check_search, search_arguments
from damro.decoding.settings import (
    DRAFTING,
    OF_TOKENS,
    asks,
    check_call,
    check_cut,
    check_mask,
    check_prompt,
    check_prompt_lengths,
    end_tokens,
    own_loop_serves,
    own_processors,
    setting,
)

Strategy = Literal["auto", "fused", "lazy"]


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    contrast: Contrast | Prompt | Search,
    *,
    strategy: Strategy = "auto",
    shared_prefix: bool = False,
    compile: bool = False,  # noqa: A002  # the word for it in torch and transformers
    read: Read | None = None,
    **generate_kwargs: Any,
) -> Any:
    """Generates from prompts that are already embedded: no vision tower runs here.

    "fused" reads both prompts once and then runs both branches as rows of one batch, so that a token costs one
    pass over the weights. "lazy" runs stock ``generate`` with a processor that skips the negative pass where the
    rule can do without. Both give the same tokens, up to the rounding of sums that batch size changes.
    "auto" takes :func:`choose_strategy`'s choice. Beam search, assisted and prompt-lookup decoding, returned
    attentions or hidden states, stop strings, a loop or a cache of the caller's own are the stock loops' business: they
    are always "lazy", and so are language models whose attention does not suit several prompts in one batch, and
    methods that change or read the inside of the language model (:mod:`damro.decoding.altering`). A method that
    searches by itself (:mod:`damro.decoding.search`) does so in either case.

    Args:
        model: the LVLM.
        inputs: what its processor returned; only `input_ids` are used, which stand in front of what is returned (of an
            encoder-decoder it is a start token that does).
        contrast: the method's two prompts and rule; a prompt alone is decoded plainly; or its own search.
        strategy: "auto", "fused" or "lazy".
        shared_prefix: reads the columns that all prompts have in common once, for all of them; an encoder, which looks
            at the whole prompt from everywhere, reads each, and so do methods that work inside of the model. Implies
            "fused" otherwise.
        compile: runs the steps behind the prompts as a compiled graph, see
            :class:`damro.decoding.branches.compiled.CompiledBranches`. Implies "fused" otherwise.
        read: reads prompts where both branches are rows of one batch; a prompt alone, of several rows, is then decoded
            by the same loop. None takes :func:`damro.decoding.branches.prefix.read_prompt` for contrasts, and the stock
            loop for a prompt alone. Encoders read by themselves.
        **generate_kwargs: anything ``model.generate`` takes, a `generation_config` included. Own
            `logits_processor`s stand behind the contrast. `interpolate_pos_encoding` is of no further use: vision
            towers that can do so have interpolated where the image asks for it.

    Returns:
        What ``model.generate`` returns: `(R, P + T)` token ids, or a ``ModelOutput``. Without a cache when fused.

    Raises:
        ParameterError: if `strategy` is unknown or contradicts `shared_prefix` or `compile`, or if ``generate`` or a
            compiled step is asked for what is not to be had with these prompts, such as drafts of several tokens with
            a pruned one, or an answer that goes beyond learned positions.
        InputsError: if `inputs` hold no mask, and the prompts were made with another than that of this call; or if a
            prompt does not fit into the model's context, see :func:`damro.decoding.context.check_lengths`.
        UnsupportedModelError: if beams are to be searched with a language model that keeps states, or if its step
            cannot be compiled.
        NonFiniteScoresError: if the model produced NaN or infinity.
    """
    if strategy not in get_args(Strategy):
        raise ParameterError(f"strategy must be one of {', '.join(get_args(Strategy))}, got {strategy!r}")
    if shared_prefix and strategy == "lazy":
        raise ParameterError("strategy must be 'auto' or 'fused' with shared_prefix, got 'lazy'; leave one of them out")
    model = unwrap(model)
    generate_kwargs = with_known_cache(generate_kwargs)
    decoder: Any = family_of(model).decoder(model)
    if compile:
        check_compiled(decoder, contrast, strategy, generate_kwargs)
    contrasts = isinstance(contrast, Contrast)
    full = contrast.full if isinstance(contrast, Contrast | Search) else contrast
    if isinstance(contrast, Search):
        check_search(decoder, contrast, strategy, generate_kwargs)
        strategy, shared_prefix = "lazy", False
    elif works_inside(contrast):
        check_model(decoder, contrast)
        check_settings(decoder, contrast, strategy, generate_kwargs)
        strategy, shared_prefix = "lazy", False
    cut = _is_cut(decoder, full, inputs["input_ids"])
    if cut:
        check_cut(decoder, strategy, own_loop_serves(decoder, generate_kwargs))
        strategy = "fused"
    if strategy == "auto":
        strategy = "fused" if shared_prefix or compile else choose_strategy(full)
    if decoder is not model:
        generate_kwargs.pop("interpolate_pos_encoding", None)
    check_call(decoder, generate_kwargs, contrasts=contrasts)
    check_mask(model, inputs, generate_kwargs, full)
    check_prompt_lengths(decoder, prompts_of(contrast), generate_kwargs)
    serves, given = own_loop_serves(decoder, generate_kwargs), read is not None and not is_encoder_decoder(decoder)
    call = {**generate_kwargs, **_prompt_arguments(model, decoder, inputs["input_ids"], full, generate_kwargs)}
    prompt_ids = returned_prompt(model, inputs, setting(decoder, generate_kwargs, "decoder_start_token_id"))
    rule: LogitsProcessor | None = None
    if isinstance(contrast, Search):
        call |= search_arguments(contrast)
    elif serves and strategy == "fused" and (shared_prefix or compile or contrasts or cut or given):
        reader = partial(read or read_prompt, shared=shared_prefix)
        begin = _begin(prompts_of(contrast), reader, CompiledBranches if compile else Branches)
        call |= _loop_arguments(decoder, contrast, prompt_ids.shape[1], begin, call.get("streamer"))
        rule = call["custom_generate"].step
    else:
        if isinstance(contrast, Contrast):
            rule = _lazy_processor(model, decoder, prompt_ids, contrast, generate_kwargs)
        seen = setting(decoder, generate_kwargs, "return_dict_in_generate")
        if serves and not seen and not is_encoder_decoder(decoder):
            # The stock cache copies all it holds at every token; which one it is nobody gets to see here.
            call[CACHE] = roomy_cache()
    with reading(decoder, full), _looking(rule):
        return _run(decoder, call, rule)


def _looking(rule: LogitsProcessor | None) -> AbstractContextManager[None]:
    """What lets a rule see the passes of ``generate``, if it reads them."""
    branch = rule.branch if isinstance(rule, RuleProcessor) else None
    return branch.looking() if isinstance(branch, ReadoutBranch) else nullcontext()


def _run(decoder: Any, call: dict[str, Any], rule: LogitsProcessor | None) -> Any:
    """Calls ``generate``, with the contrast in front of the call's own processors, or with a look at plain scores.

    Raises:
        NonFiniteScoresError: see :func:`decode`.
    """
    finite = FiniteScores()
    call["logits_processor"] = [finite if rule is None else rule, *own_processors(call)]
    if rule is None:
        call["stopping_criteria"] = [*(call.get("stopping_criteria") or ()), finite.stop]
    output = decoder.generate(**call)
    finite.check()
    return output


def _loop_arguments(
    decoder: Any, contrast: Contrast | Prompt, prompt_length: int, begin: Callable[..., Continued], streamer: Any
) -> dict[str, Any]:
    """What has ``generate`` run the loop over the prompts of a method."""
    step: ContrastStep | None = None
    if isinstance(contrast, Contrast):
        step = ContrastStep(contrast.rule, prompt_length)
    if is_encoder_decoder(decoder):
        prompts: list[Any] = prompts_of(contrast)
        loop = BranchLoop(lambda model, start: EncodedBranches(model, prompts, start), step, streamer)
        # The loop runs the encoder over all prompts at once. Given any output of it, generate does not run it too.
        unread: Any = prompts[0].inputs_embeds
        return {"custom_generate": loop, "encoder_outputs": BaseModelOutput(last_hidden_state=unread)}
    return {"custom_generate": BranchLoop(begin, step, streamer)}


def _begin(
    prompts: list[Any], read: Callable[[Any, Prompt], Prefill], kind: type[Branches] | type[CompiledBranches]
) -> Callable[[Any, Tensor], Continued]:
    """What reads the prompts of branches and makes these."""

    def begin(model: Any, input_ids: Tensor) -> Continued:
        copies = len(input_ids) // len(prompts[0].attention_mask)
        return kind(model, [read(model, prompt) for prompt in prompts], copies)

    return begin


def choose_strategy(prompt: Prompt) -> Strategy:
    """The rule behind "auto": lazy for one row in float32 on a CPU, fused otherwise.

    Fused costs the same at every step, lazy a second pass at some. A second row is nearly free where a step is
    bound by reading the weights, which a CPU in float32 is not at one row. `benchmarks/RESULTS.md` has the
    measurement.
    """
    mask = prompt.attention_mask
    alone = mask.device.type == "cpu" and prompt.dtype == torch.float32 and len(mask) == 1
    return "lazy" if alone else "fused"


def _prompt_arguments(
    model: PreTrainedModel, decoder: Any, input_ids: Tensor, full: Prompt, generate_kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """What tells ``generate`` the prompt: its columns, and the tokens that stand in front of what it returns."""
    if _is_cut(decoder, full, input_ids):  # the loop reads the prompt itself; these stand in front of what it returns
        return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    if isinstance(full, TokenPrompt):
        return full.generate_inputs()
    assert isinstance(full, VisualPrompt)
    if is_encoder_decoder(decoder):
        check_prompt(decoder, generate_kwargs, full, pruned=False, tokens=False)
        return {"inputs_embeds": full.inputs_embeds, "attention_mask": full.attention_mask}
    arguments: dict[str, Any] = {"input_ids": input_ids, "attention_mask": full.attention_mask, **full.reading()}
    pruned = full.inputs_embeds.shape[1] != input_ids.shape[1]
    check_prompt(decoder, generate_kwargs, full, pruned=pruned, tokens=decoder is model)
    if pruned:
        arguments |= _limits_of_pruned(decoder, input_ids.shape[1], generate_kwargs)
    elif not _takes_columns(decoder) or (
        decoder is model and any(asks(decoder, generate_kwargs, name) for name in (*DRAFTING, *OF_TOKENS))
    ):
        # Given columns, the loops that check drafts do not feed those of their first round, and chunks of a prompt are
        # cut from tokens; given tokens and image features all is well. InstructBLIP, whose own generate gives columns,
        # cannot be helped.
        return arguments | encoder_outputs(model, input_ids, full, as_list=family_of(model).POOLED_AS_LIST)
    return arguments | {"inputs_embeds": full.inputs_embeds}


def _is_cut(decoder: Any, full: Prompt, input_ids: Tensor) -> bool:
    """Whether a prompt has another number of columns than of tokens, and ``generate`` cannot be given columns."""
    columns = full.attention_mask.shape[1]
    if is_encoder_decoder(decoder) or columns == input_ids.shape[1]:
        return False
    return isinstance(full, TokenPrompt) or not _takes_columns(decoder)


def _takes_columns(decoder: Any) -> bool:
    """Whether ``generate`` takes `inputs_embeds`, found out as it does itself."""
    return "inputs_embeds" in inspect.signature(decoder.prepare_inputs_for_generation).parameters


def _limits_of_pruned(decoder: Any, prompt_length: int, generate_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Settings for a prompt with fewer columns than `input_ids`: limits of length as numbers of new tokens.

    ``generate`` would take the columns from `max_length` and `min_length`, and then compare with the length of
    `input_ids`.
    """
    limits: dict[str, Any] = {}
    for total, new in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        length = setting(decoder, generate_kwargs, total)
        if length and setting(decoder, generate_kwargs, new) is None:
            limits |= {total: None, new: max(length - prompt_length, 0)}
    return limits


def _lazy_processor(
    model: PreTrainedModel, decoder: Any, prompt_ids: Tensor, contrast: Contrast, generate_kwargs: Mapping[str, Any]
) -> RuleProcessor:
    """The processor that runs the negative pass where it is needed."""
    start = setting(decoder, generate_kwargs, "decoder_start_token_id")
    branch = second_branch(model, contrast, start)
    beams = setting(decoder, generate_kwargs, "num_beams") or 1
    if isinstance(branch, RecurrentBranch) and beams > 1:
        raise UnsupportedModelError(
            "num_beams must be 1 with a language model that keeps states (linear attention, convolutions), which "
            f"cannot be taken back for a second prompt, got {beams}; sample or search greedily"
        )
    return RuleProcessor(branch, prompt_ids, contrast.rule, *end_tokens(decoder, generate_kwargs))
