"""What the tests of encoder-decoders share: calls by either way, and logits without a cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import damro
from damro.decoding.prompts import VisualPrompt
from damro.decoding.rules import contrast_scores
from damro.methods.patches import outlier_view
from tests.family_models import Inputs
from tests.told import generate

STRENGTHS: dict[str, Any] = {"alpha": 1.0, "beta": 0.1, "top_k": 3}
GREEDY: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}


def stock(model: Any, inputs: Inputs, seed: int = 0, own: Any = None, **options: Any) -> Any:
    processor = own or damro.DAMROProcessor(model, inputs, **STRENGTHS)
    torch.manual_seed(seed)
    return model.generate(**inputs, logits_processor=processor, **options)


def fast(model: Any, inputs: Inputs, strategy: Any = "fused", seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return generate(model, inputs, strategy=strategy, **STRENGTHS, **options)


def uncached(model: Any, prompt: VisualPrompt, history: Tensor) -> Tensor:
    """`(R, V)`: logits behind each history, by the language model's own forward pass over everything."""
    copies = len(history) // len(prompt.attention_mask)
    started = torch.cat([torch.zeros(len(history), 1, dtype=torch.long), history], dim=-1)
    with torch.no_grad():
        output = model.language_model(
            inputs_embeds=prompt.inputs_embeds.repeat_interleave(copies, dim=0),
            attention_mask=prompt.attention_mask.repeat_interleave(copies, dim=0),
            decoder_input_ids=started,
            use_cache=False,
        )
    logits: Tensor = output.logits[:, -1]
    return logits


class Uncached:
    """A negative branch that computes everything anew."""

    def __init__(self, model: Any, prompt: VisualPrompt) -> None:
        self._model, self._prompt = model, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        negative = uncached(self._model, self._prompt, input_ids[:, 1:])
        return contrast_scores(scores, negative, STRENGTHS["alpha"], STRENGTHS["beta"])


def negative_of(model: Any, inputs: Inputs) -> VisualPrompt:
    return outlier_view(model, inputs, **STRENGTHS).contrast.negative
