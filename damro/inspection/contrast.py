"""Token by token: what the full and the negative prompt thought, and which word the contrast took out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from damro.decoding.processor import RuleProcessor
from damro.errors import ParameterError
from damro.inspection.decoder import replay, single_prompt
from damro.inspection.plain import Plain


@dataclass(frozen=True)
class ContrastInspection(Plain):
    """Natural-logarithm probabilities of each step, before temperature and other logits processors.

    Attributes:
        tokens: `(T,)`, the generated tokens.
        full: `(T,)`, log-probability of each under the full prompt.
        negative: `(T,)`, the same under the negative prompt.
        contrast: `(T,)`, the same after contrast; -inf for a token that is not plausible.
        candidates: `(T, n)`, the most likely tokens under the full prompt, best first.
        candidate_full: `(T, n)`, their log-probabilities under the full prompt.
        candidate_negative: `(T, n)`, the same under the negative prompt.
        candidate_contrast: `(T, n)`, the same after contrast.
        vetoed: `(T, n)`, True for candidates that were taken out: more likely than the chosen token under the full
            prompt, less likely after contrast.
    """

    tokens: Tensor
    full: Tensor
    negative: Tensor
    contrast: Tensor
    candidates: Tensor
    candidate_full: Tensor
    candidate_negative: Tensor
    candidate_contrast: Tensor
    vetoed: Tensor


@torch.no_grad()
def inspect_contrast(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    tokens: Tensor,
    processor: RuleProcessor,
    candidates: int = 8,
) -> ContrastInspection:
    """Replays generated tokens under both prompts, one pass each.

    The tokens may come from any method: for greedy output this tells where the contrast would have said
    otherwise.

    Args:
        model: a supported LVLM.
        inputs: what its processor returned for one prompt; those the logits processor was made for.
        tokens: `(T,)`, what was generated; no padding.
        processor: a :class:`damro.DAMROProcessor` or another contrast.
        candidates: n, how many of the most likely tokens to keep of each step.

    Raises:
        InputsError: see :func:`inspect_decoder`.
        ParameterError: if `candidates` is not in 1 .. vocabulary.
    """
    prompt, _ = single_prompt(model, inputs)
    full = replay(model, prompt, tokens).logits
    negative = replay(model, processor.branch.prompt, tokens).logits
    if not 1 <= candidates <= full.shape[-1]:
        raise ParameterError(f"candidates must be from 1 to the {full.shape[-1]} tokens, got {candidates}")
    steps = [processor.rule(full[t, None], negative[t, None], t) for t in range(len(tokens))]
    return compare_steps(tokens.cpu(), full, negative, torch.cat(steps), candidates)


def compare_steps(
    tokens: Tensor,
    full: Tensor,
    negative: Tensor,
    contrast: Tensor,
    candidates: int,
) -> ContrastInspection:
    """Picks chosen, most likely and vetoed tokens out of the scores of all steps.

    Args:
        tokens: `(T,)`.
        full: `(T, V)`, logits of the full prompt.
        negative: `(T, V)`, logits of the negative prompt.
        contrast: `(T, V)`, log-probabilities after contrast.
        candidates: how many tokens to keep.

    Example:
        >>> import torch
        >>> from damro.decoding.rules import contrast_scores
        >>> full, negative = torch.tensor([[0.5, 0.4, 0.1]]).log(), torch.tensor([[0.8, 0.1, 0.1]]).log()
        >>> contrast = contrast_scores(full, negative, alpha=1.0, beta=0.5)
        >>> step = compare_steps(torch.tensor([1]), full, negative, contrast, 2)
        >>> step.candidates.tolist(), step.vetoed.tolist()
        ([[0, 1]], [[True, False]])
    """
    full, negative = torch.log_softmax(full, dim=-1), torch.log_softmax(negative, dim=-1)
    best = full.argsort(dim=-1, descending=True, stable=True)[:, :candidates]
    chosen = tokens[:, None]
    taken = (full.gather(1, best) > full.gather(1, chosen)) & (contrast.gather(1, best) < contrast.gather(1, chosen))
    return ContrastInspection(
        tokens=tokens,
        full=full.gather(1, chosen)[:, 0],
        negative=negative.gather(1, chosen)[:, 0],
        contrast=contrast.gather(1, chosen)[:, 0],
        candidates=best,
        candidate_full=full.gather(1, best),
        candidate_negative=negative.gather(1, best),
        candidate_contrast=contrast.gather(1, best),
        vetoed=taken,
    )
