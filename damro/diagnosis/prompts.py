"""DAMRO's second prompt and those of its controls, side by side for the same inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from damro.decoding.families.generic.prompt import TokenPrompt
from damro.decoding.inside import negative_prompt
from damro.decoding.prompts import Prompt, embedded, stack_rows
from damro.decoding.rules import Contrast
from damro.decoding.search import Search
from damro.diagnosis.settings import PROMPTS
from damro.eval.runs.first_token import first_logits
from damro.eval.runs.kept import OneLook
from damro.methods import Damro, LeastK, Method, NoImage, RandomK


class SecondPrompts:
    """The full prompt and all second ones, made of one run of the vision tower.

    Args:
        model: a supported LVLM.
        processor: its processor.
        inputs: what it returned for one image, under one question or several.
        top_k: how many patches stand in a prompt of patches.
        name: the image's, which random patches depend on.
        seed: likewise.
    """

    def __init__(
        self, model: PreTrainedModel, processor: Any, inputs: Mapping[str, Any], top_k: int, name: str, seed: int
    ) -> None:
        # Prompts do not depend on the strengths.
        methods: list[Method] = [
            Damro(alpha=1.0, beta=0.1, top_k=top_k),
            RandomK(alpha=1.0, beta=0.1, top_k=top_k, seed=seed),
            LeastK(alpha=1.0, beta=0.1, top_k=top_k),
            NoImage(alpha=1.0, beta=0.1),
        ]
        assert tuple(method.name for method in methods) == PROMPTS
        shared = len(inputs["input_ids"]) > 1
        scene = OneLook(shared, None, processor, seed=seed, images=(name,))
        self._model, self._shared = model, shared
        self.negative = [_negative(method.prepare(model, inputs, scene)) for method in methods]
        self.full: Prompt = scene.kept["full"]

    @torch.no_grad()
    def first_logits(self) -> tuple[Tensor, Tensor]:
        """Logits of what follows: of the full prompts `(R, V)`, and of the second ones `(N, R, V)`, float32."""
        full = first_logits(self._model, self.full, shared=self._shared)
        if any(isinstance(prompt, TokenPrompt) for prompt in self.negative):  # read as the model's own inputs
            read = [first_logits(self._model, prompt, shared=False) for prompt in self.negative]
        else:
            rows = stack_rows([embedded(prompt) for prompt in self.negative])
            read = list(first_logits(self._model, rows, shared=False).chunk(len(self.negative)))
        return full, torch.stack(read)


def _negative(contrast: Contrast | Prompt | Search) -> Prompt:
    assert isinstance(contrast, Contrast)  # all four methods contrast
    return negative_prompt(contrast)
