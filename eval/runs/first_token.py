"""One-word answers of many methods at once: a question is read once, and every method starts from the same logits.

Where an answer is one token, methods differ in a few sums over logits: plain decoding, all contrasts and all samplings
share the full prompt, and the contrasts share the vision tower's run. Answers are those of
`damro.eval.runs.engine.Engine` with ``max_new_tokens=1``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from damro.decoding.altering import reading
from damro.decoding.branches.encoder_decoder import negative_branch
from damro.decoding.branches.prefix import read_prompt
from damro.decoding.branches.readout import ReadoutBranch
from damro.decoding.drawing import SeededSampling
from damro.decoding.families import family_of
from damro.decoding.families.base import is_encoder_decoder
from damro.decoding.families.generic.prompt import TokenPrompt
from damro.decoding.inside import negative_prompt, prompts_of, second_branch, works_inside
from damro.decoding.prompts import Prompt, VisualPrompt, embedded, stack_rows
from damro.decoding.rules import Contrast
from damro.decoding.search import Search
from damro.eval.errors import EvalError
from damro.eval.runs.engine import Engine
from damro.eval.runs.kept import Kept
from damro.eval.runs.loop import Answered
from damro.eval.samples import Sample, image_of
from damro.loading import prepare_inputs
from damro.methods import Method
from damro.methods.base import seed_of
from damro.methods.damro import Damro
from damro.methods.patches import PatchContrast


@torch.no_grad()
def answer_in_one_token(engines: Mapping[str, Engine], samples: Sequence[Sample]) -> dict[str, list[Answered]]:
    """Answer questions about one image by every method.

    Args:
        engines: By the name of the method; all of one model, pruned alike.
        samples: All about one image. A question that stands several times is read once.

    Returns:
        By method, the answers in the order of the samples.

    Raises:
        EvalError: The engines are not pruned alike.
    """
    any_engine = next(iter(engines.values()))
    for name, engine in engines.items():
        if engine.pruning != any_engine.pruning:
            raise EvalError(f"engines must be pruned alike to share a prompt, {name!r} is not: use Engine.answer")
    prompts = list(dict.fromkeys(sample.prompt for sample in samples))
    place = torch.tensor([prompts.index(sample.prompt) for sample in samples])
    image = any_engine.open_image(image_of(samples[0]))
    inputs = prepare_inputs(any_engine.processor, [image] * len(prompts), prompts, any_engine.model)
    reader = FirstToken([engine.recipe.method for engine in engines.values()], any_engine, inputs, image_of(samples[0]))
    answers = {}
    for name, engine in engines.items():
        method, temperature = engine.recipe
        scores = reader.scores(method)[place]
        if temperature:
            seeds = [seed_of(engine.seed, sample.sample_id, "tokens") for sample in samples]
            scores = SeededSampling(seeds, temperature, engine.top_p)(place[:, None], scores)
        texts = engine.processor.batch_decode(scores.argmax(dim=-1, keepdim=True), skip_special_tokens=True)
        found = reader.patches(method)
        answers[name] = [
            Answered(text.strip(), found[row] if found is not None else None)
            for text, row in zip(texts, place.tolist(), strict=True)
        ]
    return answers


class FirstToken:
    """The logits behind one image's questions: the full prompts read once, the negative ones where they matter.

    Args:
        methods: Whose scores will be asked for.
        engine: With the model, and how prompts are pruned.
        inputs: The processor's, of the image with each question.
        image: Its name.
        kept: What is kept of these questions for other methods; None if there are none.
    """

    def __init__(
        self, methods: Sequence[Method], engine: Engine, inputs: Any, image: str, kept: Kept | None = None
    ) -> None:
        for method in methods:
            check_steps(method)
        model = engine.model
        held = kept or Kept()
        scene = engine.scene((image,), shared=True, kept=held)
        # Those that rank patches come first: the run that is recorded serves all.
        ordered = sorted(dict.fromkeys(methods), key=lambda method: not isinstance(method, Damro))
        found = {method: method.contrast(model, inputs, scene) for method in ordered}
        # Methods that change the full prompt, or how it is read, read their own.
        self._alone = {
            method: _own_scores(model, one)
            for method, one in found.items()
            if works_inside(one) or not held.holds(prompts_of(one)[0])
        }
        found = {method: one for method, one in found.items() if method not in self._alone}
        self._contrasts = {method: one for method, one in found.items() if isinstance(one, Contrast)}
        if not found:
            return
        self._logits = held.once("logits", lambda: first_logits(model, held.looks["full"], shared=True))
        # Where the full prompt leaves one plausible token, no contrast can change it.
        self._open = torch.zeros(len(self._logits), dtype=torch.bool, device=self._logits.device)
        for contrast in self._contrasts.values():
            self._open |= contrast.rule.needed(self._logits, 0).any(dim=-1)
        self._negative: dict[Method, Tensor] = {}
        if not (self._contrasts and bool(self._open.any())):
            return
        negatives = [negative_prompt(contrast) for contrast in self._contrasts.values()]
        if any(isinstance(prompt, TokenPrompt) for prompt in negatives):  # read as the model's own inputs
            read = [first_logits(model, prompt, shared=False)[self._open] for prompt in negatives]
        else:
            rows = stack_rows([_rows_of(embedded(prompt), self._open) for prompt in negatives])
            read = list(first_logits(model, rows, shared=False).chunk(len(negatives)))
        self._negative = dict(zip(self._contrasts, read, strict=True))

    def scores(self, method: Method) -> Tensor:
        """`(questions, V)`, log-probabilities of the first token under a method."""
        if method in self._alone:
            return self._alone[method]
        if method not in self._contrasts:
            return torch.log_softmax(self._logits, dim=-1)
        rule, scores = self._contrasts[method].rule, torch.empty_like(self._logits)
        scores[~self._open] = rule(self._logits[~self._open], None, 0)
        if self._negative:
            scores[self._open] = rule(self._logits[self._open], self._negative[method], 0)
        return scores

    def patches(self, method: Method) -> list[list[list[int]]] | None:
        """By question, the patches that a method chose; None if it chooses none."""
        contrast = self._contrasts.get(method)
        return contrast.by_row() if isinstance(contrast, PatchContrast) else None


def check_steps(method: Method) -> None:
    """Refuse a method that gives no scores of a first token.

    Raises:
        EvalError: It searches by itself.
    """
    if method.searches:
        raise EvalError(
            f"method must give scores of a single token where answers are read from logits, got {method.name!r}, which "
            "searches by itself: use another, or have answers written"
        )


def _own_scores(model: Any, found: Contrast | Prompt | Search) -> Tensor:
    """`(questions, V)`, log-probabilities of the first token under a method that shares nothing with others."""
    if not isinstance(found, Contrast):
        return torch.log_softmax(first_logits(model, prompts_of(found)[0], shared=True), dim=-1)
    branch = second_branch(model, found)
    with branch.looking() if isinstance(branch, ReadoutBranch) else nullcontext():
        full = first_logits(model, found.full, shared=True)
        if not bool(found.rule.needed(full, 0).any()):
            return found.rule(full, None, 0)
        nothing = torch.empty(len(full), 0, dtype=torch.long, device=full.device)
        return found.rule(full, branch.logits(nothing).float(), 0)


def first_logits(model: Any, prompt: Prompt, *, shared: bool) -> Tensor:
    """Read prompts, and return the logits of what follows.

    Args:
        model: The LVLM.
        prompt: R rows.
        shared: Whether they begin alike; what they begin with is then read once.

    Returns:
        ``(R, V)``, float32.
    """
    decoder = family_of(model).decoder(model)
    if is_encoder_decoder(decoder):
        nothing = torch.empty(len(prompt.attention_mask), 0, dtype=torch.long, device=prompt.attention_mask.device)
        return negative_branch(model, prompt).logits(nothing).float()
    if isinstance(prompt, TokenPrompt):  # language models that keep states have caches of their own
        with reading(decoder, prompt):
            output: Any = decoder(**prompt.first_inputs(), use_cache=False, logits_to_keep=1)
        logits: Tensor = output.logits[:, -1].float()
        return logits
    return read_prompt(decoder, prompt, shared=shared).logits.float()


def _rows_of(prompt: VisualPrompt, chosen: Tensor) -> VisualPrompt:
    return VisualPrompt(
        prompt.inputs_embeds[chosen], prompt.attention_mask[chosen], prompt.image_mask[chosen], prompt.bidirectional
    )
