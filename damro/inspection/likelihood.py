"""How likely a method finds a given answer."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel

from damro.decoding.families import family_of
from damro.decoding.families.base import is_encoder_decoder
from damro.decoding.inside import negative_prompt, prompts_of
from damro.decoding.rules import Contrast
from damro.errors import InputsError, ParameterError
from damro.inputs import Chat, prepare_chats
from damro.inspection.decoder import replay
from damro.inspection.plain import Plain
from damro.methods import Method, Scene

_NO_CUTOFF = sys.float_info.min
"""A plausibility cutoff that keeps every token within 708 nats of the best."""


@dataclass(frozen=True)
class AnswerLikelihood(Plain):
    """The scores of an answer's tokens under a method.

    Attributes:
        log_probs: `(T,)`, natural logarithms.
        best: `(T,)`, whether each token is the one that greedy search would have chosen in its place.
    """

    log_probs: Tensor
    best: Tensor


@torch.no_grad()
def answer_likelihood(
    model: PreTrainedModel, inputs: Mapping[str, Any], tokens: Tensor, method: Method, scene: Scene
) -> AnswerLikelihood:
    """Scores given tokens in one pass over each prompt of a method.

    The contrast is taken over the whole vocabulary: the plausibility cutoff, which keeps search from absurd tokens,
    would leave most answers that one can think of no probability, and then there is no telling them apart. Whether a
    token is the best is told with the cutoff.

    Args:
        model: a supported LVLM.
        inputs: what its processor returned for one prompt; with an image, or without, which is scored plainly.
        tokens: `(T,)`, the answer's.
        method: the method.
        scene: what it is shown.

    Raises:
        InputsError: there is no token, or more than one prompt.
        ParameterError: a method that searches by itself.
    """
    if inputs.get("pixel_values") is None:
        return _of(_text_logits(model, inputs, tokens).log_softmax(dim=-1), None, tokens)
    if method.searches:
        raise ParameterError(
            f"method must give scores of single tokens for a given answer to be scored, got {method.name!r}, which "
            "searches by itself; use another"
        )
    contrast = method.prepare(model, inputs, scene)
    if not isinstance(contrast, Contrast):
        return _of(replay(model, prompts_of(contrast)[0], tokens).logits.log_softmax(dim=-1), None, tokens)
    full, negative = (replay(model, prompt, tokens).logits for prompt in (contrast.full, negative_prompt(contrast)))
    rule: Any = contrast.rule
    whole = replace(rule, beta=_NO_CUTOFF) if getattr(rule, "beta", None) is not None else rule
    scores, searched = (
        torch.cat([one(full[t, None], negative[t, None], t) for t in range(len(tokens))]) for one in (whole, rule)
    )
    return _of(scores, searched, tokens)


def prepare_answer(model: PreTrainedModel, processor: Any, chat: Chat, text: str) -> tuple[BatchFeature, Tensor]:
    """What :func:`answer_likelihood` takes for an answer to a chat.

    Args:
        model: the model.
        processor: its processor.
        chat: the question.
        text: the answer.

    Returns:
        The inputs of the question, and the answer's tokens `(T,)`, up to the end that the chat template writes, or an
        encoder-decoder.

    Raises:
        InputsError: the chat template does not write an answer behind its question.
    """
    inputs = prepare_chats(processor, [chat], model)
    if is_encoder_decoder(family_of(model).decoder(model)):
        return inputs, torch.tensor(processor.tokenizer(text).input_ids, device=model.device)
    answer = {"role": "assistant", "content": [{"type": "text", "text": text}]}
    whole = prepare_chats(processor, [chat._replace(messages=(*chat.messages, answer))], model, answered=True)
    length = inputs["input_ids"].shape[1]
    if not torch.equal(whole["input_ids"][:, :length], inputs["input_ids"]):
        raise InputsError(
            f"chat template must write an answer behind what it writes of the question, that of "
            f"{type(processor).__name__} does not; correct it"
        )
    tokens: Tensor = whole["input_ids"][0, length:]
    return inputs, tokens


def _of(scores: Tensor, searched: Tensor | None, tokens: Tensor) -> AnswerLikelihood:
    chosen = tokens.cpu()[:, None]
    best = (scores if searched is None else searched).argmax(dim=-1) == chosen[:, 0]
    return AnswerLikelihood(scores.gather(1, chosen)[:, 0], best)


def _text_logits(model: PreTrainedModel, inputs: Mapping[str, Any], tokens: Tensor) -> Tensor:
    """`(T, V)`: the logits of every token of an answer behind a prompt without an image."""
    generator: Any = model
    ids = torch.cat([inputs["input_ids"], tokens[None].to(inputs["input_ids"].device)], dim=-1)
    logits: Tensor = generator(input_ids=ids, logits_to_keep=len(tokens) + 1).logits
    return logits[0, :-1].float().cpu()
