"""One image, one prompt, two answers: what greedy search said, what DAMRO said, and why they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from damro.decoding.branches.encoder_decoder import returned_prompt
from damro.decoding.context import check_context
from damro.decoding.drawing import Sampling
from damro.errors import ParameterError
from damro.inspection import (
    ContrastInspection,
    ViTInspection,
    Word,
    group_words,
    inspect_contrast,
    inspect_decoder,
    inspect_vit,
    patch_overlap,
    seen_image,
    token_spans,
)
from damro.inspection.decoder import resolve_layers
from damro.loading import prepare_inputs
from damro.methods.damro import Variant
from damro.methods.presets import Task
from damro.processor import DAMROProcessor


@dataclass(frozen=True)
class ExplainedAnswer:
    """One answer, word by word.

    Attributes:
        method: "greedy" or "damro".
        text: what was said.
        words: W words and the tokens that spell them.
        differs: for each word, whether the other answer has another one in its place.
        maps: `(W, rows, columns)`, attention of each word to the image, averaged over heads, layers and tokens.
        overlap: `(W,)`, share of the patches each word looks at most that are outlier patches.
        steps: log-probabilities of every generated token, chosen and not.
        tokens: T spelled tokens.
        candidates: T x n spelled candidates of each step.
    """

    method: str
    text: str
    words: tuple[Word, ...]
    differs: tuple[bool, ...]
    maps: Tensor
    overlap: Tensor
    steps: ContrastInspection
    tokens: tuple[str, ...]
    candidates: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Explanation:
    """Everything the page shows.

    Attributes:
        prompt: what was asked.
        model: the model's name.
        picture: the image as the vision tower saw it.
        vit: the map that ranks the patches, of the attention its `source` names, and those DAMRO decodes against.
        alpha: strength of the contrast.
        beta: its plausibility cutoff.
        greedy: the answer of greedy search.
        damro: the answer of greedy search with DAMRO.
        sampling: how the tokens of both were drawn, if it was not greedy search.
    """

    prompt: str
    model: str
    picture: Image.Image
    vit: ViTInspection
    alpha: float
    beta: float
    greedy: ExplainedAnswer
    damro: ExplainedAnswer
    sampling: Sampling = Sampling()


def explain_answers(
    model: PreTrainedModel,
    processor: Any,
    image: Image.Image,
    prompt: str,
    *,
    name: str,
    alpha: float | None = None,
    beta: float | None = None,
    top_k: int | None = None,
    task: Task | None = None,
    variant: Variant = "reference",
    max_new_tokens: int = 128,
    candidates: int = 5,
    layers: Sequence[int] | None = None,
    sampling: Sampling = Sampling(),  # noqa: B008
) -> Explanation:
    """Answers a prompt with and without DAMRO and looks at every word of both.

    Args:
        model: a supported LVLM.
        processor: its processor.
        image: the image.
        prompt: the question or instruction, without the chat template.
        name: the model's name, for the reader.
        alpha: see :class:`damro.DAMROProcessor`, as the next four.
        beta: see there.
        top_k: see there.
        task: see there.
        variant: see there.
        max_new_tokens: the longest answer.
        candidates: how many of the likeliest tokens to keep of each step.
        layers: layers of the language model whose attention is averaged; None takes all.
        sampling: how the tokens of both answers are drawn, with the same draws; greedy search without.

    Raises:
        DecodingError: if a parameter, the inputs or the model is not usable. Whether the layers of the language model
            can be looked at is checked before anything is generated.
    """
    if max_new_tokens < 1:
        raise ParameterError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    inputs = prepare_inputs(processor, [image], [prompt], model)
    check_context(model, inputs, max_new_tokens)
    contrast = DAMROProcessor(model, inputs, alpha=alpha, beta=beta, top_k=top_k, task=task, variant=variant)
    looked_at = resolve_layers(model, layers)
    ranking, flagged = contrast.attention.layer, contrast.outliers.shape[1]
    vit = inspect_vit(model, inputs, layers=[ranking], layer=ranking, top_k=flagged)
    case = _Case(model, processor, inputs, contrast, vit)
    tokens = [_generate(case, max_new_tokens, [*one, *sampling.processors()]) for one in ([], [contrast])]
    words = [group_words(token_spans(processor.tokenizer, ids)) for ids in tokens]
    differs = find_differences([word.text for word in words[0]], [word.text for word in words[1]])
    greedy, damro = (
        _explain(case, ids, spelled, candidates, looked_at) for ids, spelled in zip(tokens, words, strict=True)
    )
    return Explanation(
        prompt=prompt,
        model=name,
        picture=seen_image(processor, inputs, model=model),
        vit=vit,
        alpha=contrast.alpha,
        beta=contrast.beta,
        greedy=replace(greedy, method="greedy", differs=differs[0]),
        damro=replace(damro, method="damro", differs=differs[1]),
        sampling=sampling,
    )


def find_differences(first: Sequence[str], second: Sequence[str]) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """For each word of two texts, whether it has no equal in the other text's alignment.

    Example:
        >>> find_differences(["a", "red", "cat"], ["a", "cat", "sits"])
        ((False, True, False), (False, False, True))
    """
    marks = [True] * len(first), [True] * len(second)
    for match in SequenceMatcher(a=first, b=second, autojunk=False).get_matching_blocks():
        marks[0][match.a : match.a + match.size] = [False] * match.size
        marks[1][match.b : match.b + match.size] = [False] * match.size
    return tuple(marks[0]), tuple(marks[1])


class _Case(NamedTuple):
    """What both answers have in common."""

    model: Any
    processor: Any
    inputs: Mapping[str, Any]
    contrast: DAMROProcessor
    vit: ViTInspection


def _generate(case: _Case, max_new_tokens: int, processors: list[Any]) -> Tensor:
    """The new tokens, `(T,)`."""
    ids = case.model.generate(
        **case.inputs, do_sample=False, num_beams=1, max_new_tokens=max_new_tokens, logits_processor=processors
    )
    new: Tensor = ids[0, returned_prompt(case.model, case.inputs).shape[1] :]
    return new


def _explain(
    case: _Case, tokens: Tensor, words: Sequence[Word], candidates: int, layers: Sequence[int]
) -> ExplainedAnswer:
    """Replays one answer. Its name and its differences come later."""
    by_token = inspect_decoder(case.model, case.inputs, tokens, layers).maps().mean(dim=0)  # (T, rows, columns)
    maps = by_token.new_empty(len(words), *by_token.shape[1:])
    for number, word in enumerate(words):
        maps[number] = by_token[list(word.tokens)].mean(dim=0)
    steps = inspect_contrast(case.model, case.inputs, tokens, case.contrast, candidates)
    flagged = case.vit.outliers.indices.shape[1]
    return ExplainedAnswer(
        method="",
        text=case.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip(),
        words=tuple(words),
        differs=(),
        maps=maps,
        overlap=patch_overlap(case.vit.weights[0], maps, [flagged])[:, 0],
        steps=steps,
        tokens=tuple(spell_token(case.processor.tokenizer, int(token)) for token in tokens),
        candidates=tuple(
            tuple(spell_token(case.processor.tokenizer, token) for token in row) for row in steps.candidates.tolist()
        ),
    )


def spell_token(tokenizer: Any, token: int) -> str:
    """A token as a reader wants to see it: its text, or its name if it has none (end of text, bytes)."""
    text: str = tokenizer.decode([token], skip_special_tokens=True)
    if text.strip() and "\ufffd" not in text:
        return text.strip()
    return str(tokenizer.convert_ids_to_tokens(token))
