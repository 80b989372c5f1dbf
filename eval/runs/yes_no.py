"""P(yes) in place of an answer: what a method's next-token scores say of yes and no, without a word being generated.

The scores are those that the method would draw the first token from. P(yes) is the share of the tokens that spell yes
among those that spell yes or no. Where a method leaves neither among its plausible tokens there is no P(yes).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from damro.eval.errors import EvalError
from damro.eval.runs.engine import Engine
from damro.eval.runs.first_token import FirstToken, check_steps
from damro.eval.runs.loop import Answered
from damro.eval.samples import Sample, image_of
from damro.loading import prepare_inputs

_MARKS = "\u2581\u0120 "  # how tokenizers write that a space stands before a token
_WORDS = ("yes", "no")


@dataclass
class YesNoEngine(Engine):
    """Reads P(yes) of samples; see the module.

    An answer is "Yes" where P(yes) is at least a half, "No" where it is less, and empty where there is none.

    Raises:
        EvalError: The tokenizer has no token that spells yes, or none that spells no; a method that searches by itself.
    """

    tokens: tuple[Tensor, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        """Find the tokens."""
        super().__post_init__()
        check_steps(self.recipe.method)
        yes, no = (word_tokens(self.processor.tokenizer, word) for word in _WORDS)
        self.tokens = torch.tensor(yes, device=self.model.device), torch.tensor(no, device=self.model.device)

    def _answer_together(self, batch: Sequence[Sample], images: dict[str, Image.Image]) -> dict[str, Answered]:
        """Read a batch image by image, since questions about one share its encoding."""
        answers = {}
        for _, neighbours in groupby(batch, key=attrgetter("image")):
            answers.update(self._read(list(neighbours), images))
        return answers

    @torch.no_grad()
    def _read(self, samples: Sequence[Sample], images: Mapping[str, Image.Image]) -> dict[str, Answered]:
        prompts = list(dict.fromkeys(sample.prompt for sample in samples))
        name, image = image_of(samples[0]), images[samples[0].sample_id]
        kept = self.keeping(samples)
        inputs = kept.once(
            "inputs", lambda: prepare_inputs(self.processor, [image] * len(prompts), prompts, self.model)
        )
        method = self.recipe.method
        reader = FirstToken([method], self, inputs, name, kept)
        shares = dict(zip(prompts, yes_shares(reader.scores(method), *self.tokens), strict=True))
        found = reader.patches(method)
        answers = {}
        for sample in samples:
            share = shares[sample.prompt]
            text = "" if share is None else "Yes" if share >= 0.5 else "No"
            patches = None if found is None else found[prompts.index(sample.prompt)]
            answers[sample.sample_id] = Answered(text, patches, p_yes=share)
        return answers


def word_tokens(tokenizer: Any, word: str) -> list[int]:
    """Return the tokens that spell a word, in any case, with or without a space before it.

    Raises:
        EvalError: There is none.
    """
    found = sorted(number for token, number in tokenizer.get_vocab().items() if token.strip(_MARKS).lower() == word)
    if not found:
        raise EvalError(
            f"--read logits must come with a model that has a token for {word!r}, this tokenizer has none: leave it out"
        )
    return found


def yes_shares(scores: Tensor, yes: Tensor, no: Tensor) -> list[float | None]:
    """Return P(yes) of each row.

    Args:
        scores: `(R, V)`, log-probabilities of the next token.
        yes: The tokens that spell yes.
        no: Those that spell no.

    Returns:
        None where no token of either has a probability.

    Example:
        >>> scores = torch.log(torch.tensor([[0.3, 0.1, 0.6], [0.0, 0.0, 1.0]], dtype=torch.float64))
        >>> yes_shares(scores, torch.tensor([0]), torch.tensor([1]))
        [0.75, None]
    """
    words = torch.stack([scores[:, yes].double().logsumexp(-1), scores[:, no].double().logsumexp(-1)], dim=-1)
    shares = words.softmax(dim=-1)[:, 0].tolist()  # of two infinities it is NaN
    return [None if share != share else round(share, 12) for share in shares]
