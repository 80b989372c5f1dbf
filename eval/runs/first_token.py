"""One-word answers of many methods at once: a question is read once, and every method starts from the same logits.

Where an answer is one token, methods differ in a few sums over logits: plain decoding, all contrasts and all samplings
share the full prompt, and the contrasts share the vision tower's run. Answers are those of
`damro.eval.runs.engine.Engine` with ``max_new_tokens=1``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from damro.decoding.branches.encoder_decoder import negative_branch
from damro.decoding.branches.fused import prefill
from damro.decoding.branches.prefix import encode_shared, prefill_shared
from damro.decoding.families import family_of
from damro.decoding.families.base import is_encoder_decoder
from damro.decoding.prompts import VisualPrompt, stack_rows
from damro.decoding.rules import ContrastRule
from damro.eval.errors import EvalError
from damro.eval.methods import OTHERS
from damro.eval.runs.drawing import SeededSampling, seed_of
from damro.eval.runs.engine import Engine
from damro.eval.runs.loop import Answered
from damro.eval.samples import Sample
from damro.loading import prepare_inputs
from damro.methods.patches import rule_for
from damro.vision.attention import family_heads, read_attention, record_cls


@torch.no_grad()
def answer_in_one_token(engines: Mapping[str, Engine], samples: Sequence[Sample]) -> dict[str, list[Answered]]:
    """Answer questions about one image by every method.

    Args:
        engines: By the name of the method; all of one model. Not VCD, ICD or M3ID, whose rules or prompts are others.
        samples: All about one image. A question that stands several times is read once.

    Returns:
        By method, the answers in the order of the samples.

    Raises:
        EvalError: A method is none of plain decoding, DAMRO and its controls, or is pruned or corrected.
    """
    others = [name for name, engine in engines.items() if engine.method.contrast in OTHERS]
    if others:
        raise EvalError(f"engines must be of DAMRO, its controls or no contrast, got {others[0]!r}: use Engine.answer")
    changed = [name for name, engine in engines.items() if engine.pruning or engine.strengths.variant]
    if changed:
        raise EvalError(f"engines must keep all tokens and do as released, {changed[0]!r} does not: use Engine.answer")
    any_engine = next(iter(engines.values()))
    prompts = list(dict.fromkeys(sample.prompt for sample in samples))
    place = torch.tensor([prompts.index(sample.prompt) for sample in samples])
    image = any_engine.open_image(samples[0].image)
    inputs = prepare_inputs(any_engine.processor, [image] * len(prompts), prompts, any_engine.model)
    reader = _Reader(engines, inputs, samples[0].image)
    answers = {}
    for name, engine in engines.items():
        scores = reader.scores(engine)[place]
        if engine.method.temperature:
            seeds = [seed_of(engine.seed, sample.sample_id, "tokens") for sample in samples]
            scores = SeededSampling(seeds, engine.method.temperature, engine.top_p)(place[:, None], scores)
        texts = engine.processor.batch_decode(scores.argmax(dim=-1, keepdim=True), skip_special_tokens=True)
        patches = reader.patches.get(engine.method.contrast or "")
        answers[name] = [Answered(text.strip(), None if patches is None else [patches]) for text in texts]
    return answers


class _Reader:
    """The logits behind one image's questions: the full prompts read once, the negative ones where they matter."""

    def __init__(self, engines: Mapping[str, Engine], inputs: Any, image: str) -> None:
        self._model: Any = next(iter(engines.values())).model
        self._family = family_of(self._model)
        layer = self._family.feature_layer(self._model, reference=True)
        with record_cls(self._family.vision_tower(self._model, inputs), [layer]) as recorded:
            self._encoding = encode_shared(self._model, inputs)
        weights = read_attention(recorded[layer], self._encoding, layer, family_heads(self._family)).weights
        self._inputs, self._rows = inputs, len(inputs["input_ids"])
        self._full = self._family.full_prompt(self._model, inputs, self._encoding)
        self._logits = _first_logits(self._model, self._full, shared=True)
        self.patches: dict[str, list[int]] = {}
        views: dict[str, VisualPrompt] = {}
        for engine in engines.values():
            contrast = engine.method.contrast
            if contrast is not None and contrast not in views:
                views[contrast] = self._view(engine, contrast, weights, image)
        # Where the full prompt leaves one plausible token, no contrast can change it.
        rules = [self._rule(engine) for engine in engines.values() if engine.method.contrast is not None]
        self._open = torch.zeros(self._rows, dtype=torch.bool, device=self._logits.device)
        for rule in rules:
            self._open |= rule.needed(self._logits, 0).any(dim=-1)
        self._negative: dict[str, Tensor] = {}
        if views and bool(self._open.any()):
            rows = stack_rows([_rows_of(view, self._open) for view in views.values()])
            stacked = _first_logits(self._model, rows, shared=False)
            self._negative = dict(zip(views, stacked.chunk(len(views)), strict=True))

    def scores(self, engine: Engine) -> Tensor:
        """`(questions, V)`, log-probabilities of the first token under a method."""
        if engine.method.contrast is None:
            return torch.log_softmax(self._logits, dim=-1)
        rule, scores = self._rule(engine), torch.empty_like(self._logits)
        scores[~self._open] = rule(self._logits[~self._open], None, 0)
        if self._negative:
            scores[self._open] = rule(self._logits[self._open], self._negative[engine.method.contrast], 0)
        return scores

    def _rule(self, engine: Engine) -> ContrastRule:
        return rule_for(self._model, engine.strengths.alpha, engine.strengths.beta, None)

    def _view(self, engine: Engine, contrast: str, weights: Tensor, image: str) -> VisualPrompt:
        if contrast == "no-image":
            return self._full.drop_image()
        chosen = engine.choose(weights, [f"{image}#{tile}" for tile in range(len(weights))])
        self.patches[contrast] = chosen[0].tolist()
        shift = int(self._model.config.model_type == "instructblip")
        patches = chosen.repeat(self._rows, 1) - shift  # see damro.methods.patches.outlier_view
        return self._family.prompt_of_patches(self._model, self._inputs, self._encoding, patches)


def _first_logits(model: Any, prompt: VisualPrompt, *, shared: bool) -> Tensor:
    """`(R, V)`, float32, of what follows each prompt; `shared` if the prompts begin alike."""
    decoder = family_of(model).decoder(model)
    if is_encoder_decoder(decoder):
        nothing = torch.empty(len(prompt.attention_mask), 0, dtype=torch.long, device=prompt.attention_mask.device)
        return negative_branch(model, prompt).logits(nothing).float()
    return (prefill_shared if shared else prefill)(decoder, prompt).logits.float()


def _rows_of(prompt: VisualPrompt, chosen: Tensor) -> VisualPrompt:
    return VisualPrompt(
        prompt.inputs_embeds[chosen], prompt.attention_mask[chosen], prompt.image_mask[chosen], prompt.bidirectional
    )
