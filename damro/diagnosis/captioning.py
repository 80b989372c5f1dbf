"""One image's greedy caption, read again under every prompt: what each thinks of the objects that are named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from damro.decoding.branches.encoder_decoder import returned_prompt
from damro.decoding.rules import plausible_tokens
from damro.diagnosis.cached import Step, cache_step
from damro.diagnosis.prompts import SecondPrompts
from damro.eval.chair.benchmark import Chair
from damro.eval.chair.matchers import Matcher, Mention
from damro.eval.chair.vocabulary import Vocabulary
from damro.generation import generate
from damro.inspection import SpelledTokens, patch_overlap, token_spans
from damro.inspection.decoder import replay, single_prompt
from damro.inspection.layout import find_view
from damro.loading import prepare_inputs

_SHORTEST = 2
"""Letters of a piece that tells which word it begins."""
_LITTLE_WORDS = frozenset(
    "a an and are as at be by for from has have her his in into is it its of off on or out over she so that the their "
    "there they this to two up was while with".split()
)
"""Words that an object's word may begin with, as "for" does "fork", and that are whole where they stand."""


class NamedObject(NamedTuple):
    """A mention of an object in a caption.

    Attributes:
        mention: what was found, and where in the text.
        hallucinated: whether the image does not show it.
        step: logits where its first token was chosen, kept.
        kinds: `(c,)`, what each plausible token begins: 1 the word of an object that is there, -1 that of an absent
            one, 0 another word.
        log_probability: `(N,)`, of the word, all its tokens together, under N second prompts.
    """

    mention: Mention
    hallucinated: bool
    step: Step
    kinds: NDArray[np.int64]
    log_probability: NDArray[np.float64]


class Caption(NamedTuple):
    """One image's caption.

    Attributes:
        text: what greedy search says.
        named: the objects that it names.
        open_steps: `(T, B)`, whether two or more tokens were plausible at each of T steps, under B cutoffs.
        map: `(rows, columns)`, attention of the language model to the image, averaged over layers, heads and tokens;
            None where it cannot be looked at.
        overlap: share of the k patches that a token looks at most which are flagged, averaged over tokens.
        share: share of the attention to the image that flagged patches get, averaged over tokens.
    """

    text: str
    named: tuple[NamedObject, ...]
    open_steps: NDArray[np.bool_]
    map: Tensor | None
    overlap: float | None
    share: float | None


class Captioner:
    """Captions images and reads captions again.

    Args:
        model: a supported LVLM.
        processor: its processor.
        matcher: finds objects in captions.
        vocabulary: the words for objects.
        top_k: how many patches are flagged.
        betas: plausibility cutoffs that are tried.
        layers: of the language model, whose attention is kept; none for a model of which it cannot be.
        max_new_tokens: longest caption.
        seed: of random patches.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Any,
        matcher: Matcher,
        vocabulary: Vocabulary,
        *,
        top_k: int,
        betas: Sequence[float],
        layers: Sequence[int],
        max_new_tokens: int,
        seed: int,
    ) -> None:
        self._model, self._processor, self._matcher = model, processor, matcher
        self._words = ObjectWords(vocabulary)
        self._top_k, self._betas, self._layers = top_k, betas, layers
        self._max_new_tokens, self._seed = max_new_tokens, seed

    def caption(self, image: Image.Image, name: str, objects: frozenset[str], weights: Tensor) -> Caption:
        """Captions an image greedily, and reads the caption once under every prompt.

        Args:
            image: the image.
            name: its name, which random patches depend on.
            objects: what it shows.
            weights: `(patches,)`, what ranks its patches.

        Raises:
            UnsupportedModelError: answers of the language model cannot be read again (it keeps states).
        """
        model = self._model
        inputs = prepare_inputs(self._processor, [image], [Chair.prompt], model)
        # As the logits have it, whatever the checkpoint would do to them.
        plain: dict[str, Any] = {
            "do_sample": False,
            "num_beams": 1,
            "repetition_penalty": 1.0,
            "no_repeat_ngram_size": 0,
        }
        ids = generate(model, inputs, "greedy", max_new_tokens=self._max_new_tokens, **plain)
        tokens = ids[0, returned_prompt(model, inputs).shape[1] :]
        prompt, views = single_prompt(model, inputs)
        full = replay(model, prompt, tokens, self._layers)
        second = SecondPrompts(model, self._processor, inputs, self._top_k, name, self._seed)
        negative = torch.stack([replay(model, one, tokens).logits for one in second.negative])  # (N, T, V)
        spelled = token_spans(self._processor.tokenizer, tokens.cpu())
        attention: tuple[Tensor | None, float | None, float | None] = (None, None, None)
        if self._layers:
            maps = find_view(views).read(full.columns).mean(dim=0)  # (T, rows, columns)
            attention = (maps.mean(dim=0), *follow(maps.flatten(1), weights, self._top_k))
        return Caption(
            spelled.text,
            self._named(spelled, tokens.cpu(), objects, full.logits, negative),
            torch.stack([plausible_tokens(full.logits, beta).sum(dim=-1) > 1 for beta in self._betas], dim=-1).numpy(),
            *attention,
        )

    def _named(
        self, spelled: SpelledTokens, tokens: Tensor, objects: frozenset[str], full: Tensor, negative: Tensor
    ) -> tuple[NamedObject, ...]:
        named = []
        for mention in self._matcher.find(spelled.text):
            steps = [t for t, (first, last) in enumerate(spelled.spans) if first < mention.end and mention.start < last]
            scores = torch.log_softmax(negative[:, steps].double(), dim=-1)  # (N, tokens of the word, V)
            own = scores.gather(-1, tokens[steps].expand(len(scores), -1)[..., None])
            step = cache_step(full[steps[0]], negative[:, steps[0]], min(self._betas))
            kinds = self._kinds(tokens[: steps[0]].tolist(), step, objects)
            hallucinated = mention.name not in objects
            kinds[step.tokens == int(tokens[steps[0]])] = -1 if hallucinated else 1
            named.append(NamedObject(mention, hallucinated, step, kinds, own.sum(dim=(1, 2)).numpy()))
        return tuple(named)

    def _kinds(self, before: list[int], step: Step, objects: frozenset[str]) -> NDArray[np.int64]:
        """What each plausible token would begin behind what was written before."""
        tokenizer = self._processor.tokenizer
        longer = [[*before, int(token)] for token in step.tokens]
        start, *texts = tokenizer.batch_decode(
            [before, *longer], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return np.array([self._words.kind(text[len(start) :], start, objects) for text in texts])


class ObjectWords:
    """Tells which objects a piece of text may begin to name.

    Args:
        vocabulary: the words for objects.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._name_of = dict(vocabulary.name_of)
        for form, readings in vocabulary.forms.items():
            if readings.noun is not None and readings.noun in vocabulary.name_of:
                self._name_of.setdefault(form, vocabulary.name_of[readings.noun])

    def kind(self, piece: str, before: str, objects: frozenset[str]) -> int:
        """What a piece of text begins: 1 the word of an object that is there, -1 that of an absent one, 0 neither.

        A piece that is a word stands for it. A part of one stands for an object whose word begins so: one that is
        there, if there is one.

        Args:
            piece: what is written.
            before: what stands in front of it.
            objects: what is there.

        Example:
            >>> from damro.eval.chair.vocabulary import load_vocabulary
            >>> words = ObjectWords(load_vocabulary())
            >>> [words.kind(piece, "A", frozenset({"couch"})) for piece in (" cou", " dogs", " large", "ch", " for")]
            [1, -1, 0, 0, 0]
        """
        word = piece.strip().lower()
        glued = piece[:1].isalpha() and before[-1:].isalpha()
        if len(word) < _SHORTEST or glued or word in _LITTLE_WORDS:
            return 0
        if word in self._name_of:
            return 1 if self._name_of[word] in objects else -1
        begun = {name for form, name in self._name_of.items() if form.startswith(word)}
        return (1 if begun & objects else -1) if begun else 0


def follow(maps: Tensor, weights: Tensor, top_k: int) -> tuple[float, float]:
    """How far the language model's attention follows that which flags patches.

    Args:
        maps: `(T, patches)`, attention of each token to the image.
        weights: `(patches,)`, what flags the patches with most of it.
        top_k: k, how many are flagged.

    Returns:
        Share of the k patches that a token looks at most which are flagged, and share of its attention to the image
        that flagged patches get; both averaged over tokens.

    Example:
        >>> follow(torch.tensor([[0.1, 0.5, 0.2, 0.2]]), torch.tensor([0.4, 0.3, 0.2, 0.1]), 1)
        (0.0, 0.1...)
    """
    overlap = float(patch_overlap(weights, maps, [top_k])[:, 0].mean())
    flagged = weights.topk(top_k).indices
    return overlap, float((maps[:, flagged].sum(dim=-1) / maps.sum(dim=-1)).mean())
