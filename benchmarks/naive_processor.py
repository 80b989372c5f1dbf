"""Contrastive decoding as one usually writes it: a second pass at every token, and a second vision run.

The yardstick of ``damro bench``. It is right, and it is what there was to use before; it is not part of the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, PreTrainedModel

from damro.decoding.compat import CACHE
from damro.decoding.families import family_of
from damro.decoding.inside import negative_prompt
from damro.decoding.prompts import embedded
from damro.decoding.rules import contrast_scores
from damro.methods.patches import outlier_view


class NaiveProcessor(LogitsProcessor):
    """DAMRO with an own cache and one more forward at each step; greedy search and sampling only.

    The vision tower runs here, and once more in ``generate``.

    Args:
        model: the LVLM.
        inputs: what its processor returned.
        **options: alpha, beta, top_k and so on.
    """

    def __init__(self, model: PreTrainedModel, inputs: Mapping[str, Any], **options: Any) -> None:
        view = outlier_view(model, inputs, **options)
        self._rule: Any = view.contrast.rule
        self._prompt = embedded(negative_prompt(view.contrast))
        self._decoder: Any = family_of(model).decoder(model)
        self._cache = DynamicCache()
        self._mask = self._prompt.attention_mask

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Runs the negative pass and contrasts, `(B, V)`."""
        if self._cache.get_seq_length() == 0:
            fed = {"inputs_embeds": self._prompt.inputs_embeds, "position_ids": self._prompt.position_ids}
        else:
            fed = {"input_ids": input_ids[:, -1:], "position_ids": self._mask.sum(dim=-1, keepdim=True)}
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(input_ids), 1)], dim=-1)
        output = self._decoder(
            **fed, attention_mask=self._mask, use_cache=True, logits_to_keep=1, **{CACHE: self._cache}
        )
        return contrast_scores(scores, output.logits[:, -1], self._rule.alpha, self._rule.beta)
