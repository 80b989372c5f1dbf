"""Instruction Contrastive Decoding: the instruction against itself behind a disturbing sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from damro.decoding.errors import ParameterError
from damro.methods.base import SECOND, Cost, Method, Scene
from damro.parameters import Cutoff, Strength

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from damro.decoding.rules import Contrast

DISTURBANCE = "You are a confused objects detector to provide a fuzzy overview or impression of the image."
"""One of the five prefixes in the scripts of ICD's authors (github.com/p1k0pan/ICD), and the one others use."""

Form = Literal["released", "paper"]
Place = Literal["front", "instruction"]


@dataclass(frozen=True)
class ICD(Method):
    """The instruction against itself behind a disturbing one (ICD, Findings of ACL 2024).

    The sentence is put wherever the model reads the instruction: in front of the language model's text, and of
    InstructBLIP's in the Q-Former, too. The authors' code gives InstructBLIP's language model the same text in both
    prompts, and disturbs what the Q-Former reads alone; that is `question_only`. Needs the model's processor.

    There are two of everything. The released code has the scores `(1 + alpha) f - alpha n`, the paper prints
    `f - alpha n`. For LLaVA the released code makes the sentence the system message, in front of everything (and in
    the place of LLaVA's own, which prompts here do not have); the reimplementation that came with SID puts it between
    the image and the instruction. For InstructBLIP the released code runs both the sentence with the question and the
    sentence alone in the Q-Former; here it is always with the question.

    Attributes:
        alpha: strength of the contrast.
        beta: plausibility cutoff.
        disturbance: the sentence in front of the instruction.
        form: of the scores, as released or as in the paper, which gives the full prompt no more than its own weight.
        place: of the sentence in the language model's text, in front of all of it, or behind the last image and
            in front of the instruction; where images come first the same.
        question_only: of a model whose Q-Former reads the instruction, too, disturb that one and not the language
            model's text, as the authors' code does. Other models have their text disturbed in either case.
    """

    name: ClassVar = "icd"
    source: ClassVar = "ICD, arXiv 2403.18715; github.com/p1k0pan/ICD, blip2_vicuna_instruct.py"
    cost: ClassVar = Cost(passes=1, memory=SECOND)
    limits: ClassVar = ("a call without the model's processor",)
    code: ClassVar = "github.com/p1k0pan/ICD"

    alpha: Strength = 1.0
    beta: Cutoff = 0.1
    disturbance: str = DISTURBANCE
    question_only: bool = False
    form: Form = "released"
    place: Place = "front"

    def contrast(self, model: PreTrainedModel, inputs: Mapping[str, Any], scene: Scene) -> Contrast:
        """The full prompt, and the same image under the disturbed instruction."""
        from damro.decoding.families import family_of
        from damro.decoding.families.instructblip import query_features
        from damro.decoding.prompts import embedded
        from damro.decoding.rules import Contrast, ContrastRule, MixRule

        asks, processor = has_question(model), scene.processor
        run = scene.look(model, inputs)
        disturbed: Mapping[str, Any] = inputs
        if not (asks and self.question_only):
            disturbed = disturb_text(model, disturbed, processor, self.disturbance, self.place)
        if asks:
            disturbed = disturb_question(model, disturbed, processor, self.disturbance)
        negative = family_of(model).full_prompt(model, disturbed, run.encoding)
        if asks:
            features = query_features(model, disturbed, run.encoding.outputs.last_hidden_state)
            negative = embedded(negative).replace_image(features)
        released = self.form == "released"
        rule = ContrastRule(self.alpha, self.beta) if released else MixRule(1.0, -self.alpha, self.beta)
        return Contrast(scene.full_prompt(model, inputs, run), negative, rule)


def disturb_text(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    processor: Any,
    sentence: str = DISTURBANCE,
    place: Place = "front",
) -> dict[str, Any]:
    """Puts a sentence in front of what the language model reads, behind the token that begins a text.

    Image tokens that stand before the text stay there.

    Args:
        model: the LVLM.
        inputs: what its processor returned.
        processor: the model's own, or its tokenizer.
        sentence: what to put there.
        place: "instruction" puts it in front of what stands behind the last image token instead.

    Returns:
        A copy of `inputs` with longer `input_ids (B, L + n)` and `attention_mask`, and whatever else says of every
        token what it is.

    Raises:
        ParameterError: if the sentence is empty, or there is no tokenizer to read it.
    """
    from damro.decoding.families.base import attention_mask_of, image_columns
    from damro.decoding.families.generic.prompt import TYPES

    tokenizer: Any = getattr(processor, "tokenizer", processor)
    prefix = _tokens(tokenizer, sentence, "processor")
    ids: Tensor = inputs["input_ids"]
    mask = attention_mask_of(model, inputs).to(ids.device)
    image = image_columns(model, ids)
    text = mask.bool() & ~image
    if place == "instruction":
        text &= image.flip(-1).cumsum(dim=-1).flip(-1) == 0
        if not bool(text.any(dim=-1).all()):
            raise ParameterError(
                "place must be 'front' where nothing stands behind the image, got 'instruction'; leave it out"
            )
    places = _places(ids, text, tokenizer.bos_token_id)
    types = {
        name: _insert(inputs[name], places, inputs[name].new_zeros(len(prefix)))
        for name in TYPES
        if inputs.get(name) is not None
    }
    read = _insert(mask, places, mask.new_ones(len(prefix)))
    return {**inputs, **types, "input_ids": _insert(ids, places, prefix), "attention_mask": read}


def disturb_question(
    model: PreTrainedModel, inputs: Mapping[str, Any], processor: Any, sentence: str = DISTURBANCE
) -> dict[str, Any]:
    """Puts a sentence in front of what a Q-Former reads; see :func:`disturb_text`.

    Returns:
        A copy of `inputs` with longer `qformer_input_ids (B, S + n)` and `qformer_attention_mask`.

    Raises:
        ParameterError: as :func:`disturb_text`.
    """
    import torch

    tokenizer: Any = getattr(processor, "qformer_tokenizer", None)
    prefix = _tokens(tokenizer, sentence, "processor.qformer_tokenizer")
    ids: Tensor = inputs["qformer_input_ids"]
    mask = inputs.get("qformer_attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    places = _places(ids, mask.bool(), tokenizer.cls_token_id)
    read = _insert(mask, places, mask.new_ones(len(prefix)))
    return {**inputs, "qformer_input_ids": _insert(ids, places, prefix), "qformer_attention_mask": read}


def has_question(model: PreTrainedModel) -> bool:
    """Whether the model reads the instruction in a Q-Former, too."""
    from damro.decoding.families import family_of

    return "qformer_input_ids" in family_of(model).REQUIRED_INPUTS


def _tokens(tokenizer: Any, sentence: str, name: str) -> Tensor:
    import torch

    if not callable(tokenizer):
        raise ParameterError(
            f"{name} must be given to tokenize the disturbance, got {tokenizer!r}; pass processor=, the one that made "
            "the inputs"
        )
    ids = tokenizer(sentence, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ParameterError(f"disturbance must be a sentence of at least one token, got {sentence!r}")
    return torch.tensor(ids)


def _places(ids: Tensor, text: Tensor, begin: int | None) -> list[int]:
    """Row by row, the first column of `text (B, L)`, or the one behind it if that is `begin`."""
    return [
        place + int(begin is not None and int(ids[row, place]) == begin)
        for row, place in enumerate(text.long().argmax(dim=-1).tolist())
    ]


def _insert(table: Tensor, places: list[int], new: Tensor) -> Tensor:
    """A table `(B, L)` with `new (n,)` in front of a column of each row."""
    import torch

    new = new.to(table.device, table.dtype)
    rows = [torch.cat([row[:at], new, row[at:]]) for row, at in zip(table, places, strict=True)]
    return torch.stack(rows)
