"""One image, one prompt, two answers: what greedy search said, what DAMRO said, and why they differ."""

from __future__ import annotations

import os
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from damro.decoding.branches.encoder_decoder import returned_prompt
from damro.decoding.context import check_context
from damro.errors import ParameterError
from damro.images import load_image
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

_PUNCTUATION = string.punctuation + string.whitespace + "“”‘’"

Judge = Callable[[str], Sequence[tuple[int, int, bool]]]
"""From an answer to what it names: first character, the one behind the last, and whether it is in the picture."""


@dataclass(frozen=True)
class ExplainedAnswer:
    """One answer, word by word.

    Attributes:
        method: "greedy" or "damro".
        text: what was said.
        words: W words and the tokens that spell them.
        differs: for each word, whether the other answer has another one in its place.
        in_picture: for each word, whether what it names is in the picture; None if it names nothing, or nobody knows.
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
    in_picture: tuple[bool | None, ...]
    maps: Tensor
    overlap: Tensor
    steps: ContrastInspection
    tokens: tuple[str, ...]
    candidates: tuple[tuple[str, ...], ...]


class GoneWord(NamedTuple):
    """A word of the greedy answer that DAMRO's does not have.

    Attributes:
        text: the word.
        step: the step of the greedy answer at which it begins.
        in_picture: whether what it names is in the picture; None if it names nothing, or nobody knows.
    """

    text: str
    step: int
    in_picture: bool | None


@dataclass(frozen=True)
class Explanation:
    """Everything the page shows; in a notebook it shows itself.

    Attributes:
        prompt: what was asked.
        model: the model's name.
        picture: the image as the vision tower saw it.
        vit: the map that ranks the patches, of the attention its `source` names, and those DAMRO decodes against.
        alpha: strength of the contrast.
        beta: its plausibility cutoff.
        greedy: the answer of greedy search.
        damro: the answer of greedy search with DAMRO.
    """

    prompt: str
    model: str
    picture: Image.Image
    vit: ViTInspection
    alpha: float
    beta: float
    greedy: ExplainedAnswer
    damro: ExplainedAnswer

    def gone(self) -> tuple[GoneWord, ...]:
        """The words of the greedy answer that are nowhere in DAMRO's, each once, in their order."""
        left = {bare(word.text) for word in self.damro.words} | {""}
        first: dict[str, GoneWord] = {}
        for word, there in zip(self.greedy.words, self.greedy.in_picture, strict=True):
            if bare(word.text) not in left:
                first.setdefault(bare(word.text), GoneWord(word.text.strip(_PUNCTUATION), word.tokens[0], there))
        return tuple(first.values())

    def to_html(self) -> str:
        """The page, which needs no other file and no network."""
        from damro.pages.explain_page import render_page

        return render_page(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the page."""
        target = Path(path)
        target.write_text(self.to_html(), encoding="utf-8")
        return target

    def _repr_html_(self) -> str:
        """The page in a frame, so that a notebook's style and the page's own leave each other alone."""
        page = escape(self.to_html(), quote=True)
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 46rem; border: 0" title="damro explain"></iframe>'


def explain(
    model: PreTrainedModel,
    processor: Any,
    image: Image.Image | str | os.PathLike[str],
    prompt: str,
    *,
    name: str | None = None,
    **options: Any,
) -> Explanation:
    """Answers a prompt with and without DAMRO, and explains every word of both.

    ::

        explanation = damro.explain(model, processor, "photo.jpg", "Describe this image.", alpha=0.5)
        explanation.save("page.html")  # in a notebook, explanation alone shows the page

    Args:
        model: a supported LVLM.
        processor: its processor.
        image: a picture, or a file's name.
        prompt: the question or instruction, without the chat template.
        name: the model's name, for the reader; None takes the end of the name it was loaded by.
        **options: see :func:`explain_answers`.

    Raises:
        ImageError: the image does not open.
        DecodingError: see :func:`explain_answers`.
    """
    picture = image if isinstance(image, Image.Image) else load_image(image)
    shown = name or str(model.name_or_path).rstrip("/").rsplit("/", 1)[-1] or model.config.model_type
    return explain_answers(model, processor, picture, prompt, name=shown, **options)


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
    judge: Judge | None = None,
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
        judge: tells what of an answer is in the picture; None if nobody knows.

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
    tokens = [_generate(case, max_new_tokens, processors) for processors in ([], [contrast])]
    words = [group_words(token_spans(processor.tokenizer, ids)) for ids in tokens]
    differs = find_differences(*([bare(word.text) for word in spelled] for spelled in words))
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
        greedy=replace(greedy, method="greedy", differs=differs[0], in_picture=find_truth(greedy.words, judge)),
        damro=replace(damro, method="damro", differs=differs[1], in_picture=find_truth(damro.words, judge)),
    )


def bare(word: str) -> str:
    """A word as it is compared: in lower case and without what stands around it.

    Example:
        >>> bare("Fork."), bare("(a"), bare(",")
        ('fork', 'a', '')
    """
    return word.strip(_PUNCTUATION).lower()


def find_truth(words: Sequence[Word], judge: Judge | None) -> tuple[bool | None, ...]:
    """For each word, whether what it names, or is a part of the name of, is in the picture.

    Example:
        >>> words = [Word("A", 0, 1, (0,)), Word("hot", 2, 5, (1,)), Word("dog.", 6, 10, (2,))]
        >>> find_truth(words, lambda text: [(2, 9, False)])
        (None, False, False)
    """
    named = [] if judge is None else judge(" ".join(word.text for word in words))
    found: list[bool | None] = []
    start = 0
    for word in words:
        end = start + len(word.text)
        found.append(next((there for first, last, there in named if first < end and last > start), None))
        start = end + 1
    return tuple(found)


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
        in_picture=(),
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
