"""POPE's questions about one image, answered by the first token under every prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from damro.diagnosis.cached import Step, cache_step
from damro.diagnosis.prompts import SecondPrompts
from damro.diagnosis.questions import Question
from damro.errors import UnsupportedModelError
from damro.eval.pope.rules import parse_answer, read_neutrally
from damro.loading import prepare_inputs


class Answer(NamedTuple):
    """What there is to know of one question.

    Attributes:
        question: what was asked.
        says_yes: how greedy search answers it, as POPE's rule reads its first token.
        clear: whether that token is a yes or a no to a neutral reader.
        yes: `(N,)`, log-probability of yes as the first token under N second prompts.
        step: logits, kept.
    """

    question: Question
    says_yes: bool
    clear: bool
    yes: NDArray[np.float64]
    step: Step


class YesReader:
    """Reads first tokens: as POPE's rule does what is answered, and as plain words what yes is.

    Args:
        tokenizer: the processor's.

    Raises:
        UnsupportedModelError: no token spells yes.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._says: dict[int, bool] = {}
        texts = tokenizer.batch_decode([[number] for number in range(len(tokenizer))], skip_special_tokens=True)
        self.tokens = [number for number, text in enumerate(texts) if text.strip().lower() == "yes"]
        if not self.tokens:
            raise UnsupportedModelError(
                "tokenizer must have a token that spells yes, to read its probability, got none in "
                f"{type(tokenizer).__name__}"
            )

    def says_yes(self, token: int) -> bool:
        """Whether POPE's rule takes an answer of this one token for a yes."""
        if token not in self._says:
            self._says[token] = parse_answer(self._text(token), "pope") == "yes"
        return self._says[token]

    def is_clear(self, token: int) -> bool:
        """Whether an answer of this one token is a yes or a no to a neutral reader."""
        return read_neutrally(self._text(token)) != "unknown"

    def _text(self, token: int) -> str:
        text: str = self._tokenizer.batch_decode([[token]], skip_special_tokens=True)[0]
        return text.strip()

    def log_probability(self, logits: Tensor) -> Tensor:
        """Log-probability of yes, in any spelling of one token: `(..., V)` to `(...)`."""
        return torch.log_softmax(logits, dim=-1)[..., self.tokens].logsumexp(dim=-1)


def ask(
    model: PreTrainedModel,
    processor: Any,
    image: Image.Image,
    name: str,
    questions: Sequence[Question],
    *,
    top_k: int,
    beta: float,
    seed: int,
    reader: YesReader,
) -> list[Answer]:
    """Asks about one image, every question once under every prompt.

    Args:
        model: a supported LVLM.
        processor: its processor.
        image: the image.
        name: the image's, which random patches depend on.
        questions: Q of them.
        top_k: how many patches stand in a second prompt.
        beta: the least plausibility cutoff that is tried later.
        seed: of random patches.
        reader: of the first tokens.
    """
    prompts = [question.prompt for question in questions]
    inputs = prepare_inputs(processor, [image] * len(prompts), prompts, model)
    full, negative = SecondPrompts(model, processor, inputs, top_k, name, seed).first_logits()
    yes = reader.log_probability(negative).double().cpu().numpy()  # (N, Q)
    chosen = full.argmax(dim=-1).tolist()
    return [
        Answer(
            question,
            reader.says_yes(chosen[row]),
            reader.is_clear(chosen[row]),
            yes[:, row],
            cache_step(full[row], negative[:, row], beta),
        )
        for row, question in enumerate(questions)
    ]
