"""What a contrastive method is: a negative view of the prompt, and a rule that turns two logits into scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from damro.decoding.branches.prefix import encode_images
from damro.decoding.contrast import check_strengths, contrast_scores, is_number, plausible_tokens
from damro.decoding.errors import ParameterError
from damro.decoding.families import check_inputs, family_of
from damro.decoding.families.instructblip import query_features
from damro.decoding.prompts import VisualPrompt
from damro.methods.icd import DISTURBANCE, disturb_question, disturb_text, has_question
from damro.methods.vcd import add_diffusion_noise


class ScoreRule(Protocol):
    """How next-token scores come about from the logits of the two prompts."""

    def needed(self, full: Tensor, step: int) -> Tensor:
        """The negative logits that scores depend on.

        Where it says False, the rule must give the same scores for any finite negative logit; where it says so of a
        whole row, for None too. That is what lets a decoder put the negative pass off, or compute a part of the
        logits only. A rule that can never do without answers True everywhere.

        Args:
            full: `(R, V)`, float32 logits of the full prompt.
            step: how many tokens have been generated.

        Returns:
            `(R, V)`, boolean.
        """

    def __call__(self, full: Tensor, negative: Tensor | None, step: int) -> Tensor:
        """The scores of the next token.

        Args:
            full: `(R, V)`, float32 logits of the full prompt; not modified.
            negative: `(R, V)`, logits of the negative prompt, or None if none is needed.
            step: how many tokens have been generated.

        Returns:
            `(R, V)`, float32 log-probabilities; NaN in a row whose logits hold NaN.
        """


@dataclass(frozen=True)
class ContrastRule:
    """`log_softmax((1 + alpha) f - alpha n)` over the plausible tokens, the same at every step.

    Where one token is plausible the score is exactly 0 whatever n is, so the negative pass can be put off.

    Attributes:
        alpha: strength of the contrast, >= 0.
        beta: plausibility cutoff in (0, 1].

    Raises:
        ParameterError: if one is out of range.

    Example:
        >>> import torch
        >>> rule = ContrastRule(alpha=1.0, beta=0.1)
        >>> full = torch.tensor([[5.0, 0.0], [1.0, 1.0]])
        >>> rule.needed(full, step=0).tolist()
        [[False, False], [True, True]]
        >>> rule(full[:1], None, step=0).tolist()
        [[0.0, -inf]]
    """

    alpha: float
    beta: float

    def __post_init__(self) -> None:
        """Checks the parameters."""
        check_strengths(self.alpha, self.beta)

    def needed(self, full: Tensor, step: int) -> Tensor:
        """Plausible tokens, where there is more than one; none without a contrast."""
        if self.alpha == 0:
            return torch.zeros_like(full, dtype=torch.bool)
        return _unless_alone(plausible_tokens(full, self.beta))

    def __call__(self, full: Tensor, negative: Tensor | None, step: int) -> Tensor:
        """See :func:`damro.decoding.contrast.contrast_scores`."""
        return contrast_scores(full, negative, self.alpha, self.beta)


@dataclass(frozen=True)
class M3IDRule:
    """`log_softmax(lc + w_t (lc - lu))` where the model is unsure, with a weight that grows from token to token.

    lc and lu are the log-probabilities with and without the image, `w_t = (1 - g_t) / g_t` and
    `g_t = exp(-forgetting * t)`, t = 1 for the first token (M3ID, CVPR 2024, arXiv 2403.14003). Where the best token
    has a probability of `confidence` or more, lc is left as it is, so the pass without the image can be put off.

    M3ID's code was not released; 0.02 and 0.3 are the values that reimplementations of it state. Those that other
    papers compare with (AvisC's and what came of it) have a plausibility cutoff in place of the confidence:
    ``M3IDRule(confidence=1.0, beta=0.1)``.

    Attributes:
        forgetting: how fast the image is taken to be forgotten, >= 0; 0 switches the contrast off.
        confidence: probability of the best token from which on nothing is changed, in (0, 1].
        beta: plausibility cutoff in (0, 1]; None keeps every token.

    Raises:
        ParameterError: if one is out of range.

    Example:
        >>> import torch
        >>> rule = M3IDRule(confidence=0.9)
        >>> full = torch.tensor([[5.0, 0.0], [1.0, 1.0]])
        >>> rule.needed(full, step=0).tolist()
        [[False, False], [True, True]]
        >>> rule(full[1:], torch.tensor([[1.0, 9.0]]), step=99).exp().round(decimals=3).tolist()
        [[1.0, 0.0]]
    """

    forgetting: float = 0.02
    confidence: float = 0.3
    beta: float | None = None

    def __post_init__(self) -> None:
        """Checks the parameters."""
        if not (is_number(self.forgetting) and math.isfinite(self.forgetting) and self.forgetting >= 0):
            raise ParameterError(f"forgetting must be a finite number >= 0, got {self.forgetting!r}; 0.02 is usual")
        if not (is_number(self.confidence) and 0 < self.confidence <= 1):
            raise ParameterError(
                f"confidence must be in (0, 1], got {self.confidence!r}; 0.3 is usual, 1 contrasts at every token"
            )
        if self.beta is not None:
            check_strengths(0.0, self.beta)

    def needed(self, full: Tensor, step: int) -> Tensor:
        """All tokens where the model is unsure; with a cutoff the plausible ones, if there is more than one."""
        if self.forgetting == 0:
            return torch.zeros_like(full, dtype=torch.bool)
        unsure = full.log_softmax(dim=-1).amax(dim=-1, keepdim=True) < math.log(self.confidence)
        if self.beta is None:
            return unsure.expand_as(full)
        return unsure & _unless_alone(plausible_tokens(full, self.beta))

    def __call__(self, full: Tensor, negative: Tensor | None, step: int) -> Tensor:
        """See the equation above."""
        scores = conditioned = full.float().log_softmax(dim=-1)
        cut = torch.zeros_like(full, dtype=torch.bool) if self.beta is None else ~plausible_tokens(full, self.beta)
        if negative is not None:
            # Beyond e**30 a float32 sum holds nothing of lc any more, and later it would overflow.
            weight = math.expm1(min(self.forgetting * (step + 1), 30.0))
            # What is cut off takes no part; the normalisation of what is left adds the same to all of it.
            difference = conditioned - negative.float().masked_fill(cut, float("-inf")).log_softmax(dim=-1)
            mixed = conditioned + weight * difference
            scores = torch.where(self.needed(full, step).any(dim=-1, keepdim=True), mixed, conditioned)
        return scores.masked_fill(cut, float("-inf")).log_softmax(dim=-1)


def _unless_alone(plausible: Tensor) -> Tensor:
    """Plausible tokens `(R, V)` without those that are the only one of their row: theirs is score 0 in any case."""
    return plausible & (plausible.sum(dim=-1, keepdim=True) > 1)


@dataclass(frozen=True)
class Contrast:
    """Everything decoding needs of a method, for one batch of prompts.

    Attributes:
        full: the prompts as the model itself would read them.
        negative: what is subtracted, row by row.
        rule: how.
    """

    full: VisualPrompt
    negative: VisualPrompt
    rule: ScoreRule


@torch.no_grad()
def vcd_contrast(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    *,
    alpha: float = 1.0,
    beta: float = 0.1,
    noise_step: int = 500,
    seed: int = 0,
    shared_image: bool = False,
) -> Contrast:
    """Visual Contrastive Decoding: the image against itself under diffusion noise (CVPR 2024, arXiv 2311.16922).

    Defaults are those of the released scripts. They draw noise anew for every question; here the seed decides.

    Args:
        model: the LVLM.
        inputs: what its processor returned.
        alpha: strength of the contrast, >= 0.
        beta: plausibility cutoff in (0, 1].
        noise_step: of the diffusion process, from 0 to 999; see :func:`damro.methods.vcd.noise_levels`.
        seed: of the noise.
        shared_image: all prompts show one image, which is encoded once.

    Raises:
        ParameterError: a parameter out of range; InputsError or UnsupportedModelError: what cannot be read.
    """
    rule, family = ContrastRule(alpha, beta), family_of(model)
    check_inputs(model, inputs)
    pixels = {key: inputs[key] for key in family.PIXELS if inputs.get(key) is not None}
    noisy = {**inputs, **{key: add_diffusion_noise(value, noise_step, seed) for key, value in pixels.items()}}
    full = family.full_prompt(model, inputs, encode_images(model, inputs, shared=shared_image))
    negative = family.full_prompt(model, noisy, encode_images(model, noisy, shared=shared_image))
    return Contrast(full, negative, rule)


@torch.no_grad()
def icd_contrast(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    *,
    processor: Any,
    alpha: float = 1.0,
    beta: float = 0.1,
    disturbance: str = DISTURBANCE,
    question_only: bool = False,
    shared_image: bool = False,
) -> Contrast:
    """Instruction Contrastive Decoding: the instruction against itself behind a disturbing one (arXiv 2403.18715).

    The sentence is put wherever the model reads the instruction: in front of the language model's text, and of
    InstructBLIP's in the Q-Former, too. The authors' code (github.com/p1k0pan/ICD, blip2_vicuna_instruct.py) gives
    InstructBLIP's language model the same text in both prompts, and disturbs what the Q-Former reads alone; that is
    `question_only`.

    Args:
        model: the LVLM.
        inputs: what its processor returned.
        processor: the model's own; it tokenizes the disturbance.
        alpha: strength of the contrast, >= 0.
        beta: plausibility cutoff in (0, 1].
        disturbance: the sentence in front of the instruction.
        question_only: of a model whose Q-Former reads the instruction, too, disturb that one and not the language
            model's text, as the authors' code does. Other models have their text disturbed in either case.
        shared_image: all prompts show one image, which is encoded once.

    Raises:
        ParameterError: a parameter out of range, no tokenizer; InputsError or UnsupportedModelError: what cannot be
            read.
    """
    rule, family, asks = ContrastRule(alpha, beta), family_of(model), has_question(model)
    check_inputs(model, inputs)
    disturbed: Mapping[str, Any] = inputs
    if not (asks and question_only):
        disturbed = disturb_text(model, disturbed, processor, disturbance)
    if asks:
        disturbed = disturb_question(model, disturbed, processor, disturbance)
    encoding = encode_images(model, inputs, shared=shared_image)
    negative = family.full_prompt(model, disturbed, encoding)
    if asks:
        negative = negative.replace_image(query_features(model, disturbed, encoding.outputs.last_hidden_state))
    return Contrast(family.full_prompt(model, inputs, encoding), negative, rule)


@torch.no_grad()
def m3id_contrast(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    *,
    forgetting: float = 0.02,
    confidence: float = 0.3,
    beta: float | None = None,
    shared_image: bool = False,
) -> Contrast:
    """Multi-Modal Mutual-Information Decoding: the prompt against its text alone, more with every token.

    Args:
        model: the LVLM.
        inputs: what its processor returned.
        forgetting: see :class:`M3IDRule`.
        confidence: see :class:`M3IDRule`.
        beta: see :class:`M3IDRule`.
        shared_image: all prompts show one image, which is encoded once.

    Raises:
        ParameterError: a parameter out of range; InputsError or UnsupportedModelError: what cannot be read.
    """
    rule = M3IDRule(forgetting, confidence, beta)
    full = family_of(model).full_prompt(model, inputs, encode_images(model, inputs, shared=shared_image))
    return Contrast(full, full.drop_image(), rule)
