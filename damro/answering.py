"""Answers to a batch of chats, told bit by bit while they are written; every answer ends by its own rules."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria

from damro.decoding.branches.encoder_decoder import returned_prompt
from damro.decoding.context import check_context
from damro.decoding.drawing import SeededSampling
from damro.decoding.families import family_of
from damro.decoding.families.base import is_encoder_decoder
from damro.decoding.finite import FiniteScores
from damro.decoding.generate import decode
from damro.decoding.settings import end_tokens
from damro.errors import ParameterError, UnsupportedModelError
from damro.inputs import Chat, prepare_chats
from damro.methods import Recipe, Scene

Reason = Literal["stop", "length", "cancelled"]
_UNFINISHED = "\ufffd"  # what a decoder writes for a letter some of whose bytes are still to come


class Answer:
    """One answer, while it is written and after.

    Args:
        max_new_tokens: where it ends at the latest.
        stop: texts before which it ends.
        seed: of its sampling, which depends on nothing else.
        tell: is called with every new piece of text, in the thread that generates; pieces never hold the beginning of a
            stop text that may yet come whole.

    Attributes:
        tokens: all that were generated, an end token included.
        text: what they spell, cut before a stop text.
        reason: why it ended: an end token or a stop text ("stop"), its length, or :meth:`cancel`; None before.
    """

    def __init__(
        self,
        max_new_tokens: int,
        *,
        stop: Sequence[str] = (),
        seed: int = 0,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.max_new_tokens = max_new_tokens
        self.seed = seed
        self.tokens: list[int] = []
        self.text = ""
        self.reason: Reason | None = None
        self._stop = tuple(stop)
        self._tell = tell
        self._told = 0
        self._spelled = [0, 0]  # tokens before the second have been spelled; they are read anew from the first
        self._cancelled = False

    def cancel(self) -> None:
        """Has the answer end at its next token; from any thread."""
        self._cancelled = True

    def add(self, token: int, spell: Callable[[list[int]], str], ends: Sequence[int]) -> bool:
        """Takes in a token; of one that has ended, none.

        Args:
            token: the next one.
            spell: from tokens to text, without special ones.
            ends: the tokens that end an answer.

        Returns:
            Whether the answer has ended.
        """
        if self.reason is not None:
            return True
        self.tokens.append(token)
        ended = token in ends
        self._extend(self._spell_more(spell, last=ended or len(self.tokens) >= self.max_new_tokens))
        if self.reason is None and ended:
            self._end("stop")
        elif self.reason is None and len(self.tokens) >= self.max_new_tokens:
            self._end("length")
        elif self.reason is None and self._cancelled:
            self._end("cancelled")
        return self.reason is not None

    def _spell_more(self, spell: Callable[[list[int]], str], *, last: bool) -> str:
        """The text that has come with the latest tokens.

        They are spelled with those before them: spaces, and letters of several bytes, depend on both.
        """
        first, read = self._spelled
        before, after = spell(self.tokens[first:read]), spell(self.tokens[first:])
        if not last and (after.endswith(_UNFINISHED) or len(after) <= len(before)):
            return ""
        self._spelled = [read, len(self.tokens)]
        return after[len(before) :]

    def _extend(self, piece: str) -> None:
        """Adds text, up to a stop text if one has come whole, and tells what can be told."""
        searched = max(0, len(self.text) - max(map(len, self._stop), default=0))
        self.text += piece
        found = [place for one in self._stop if (place := self.text.find(one, searched)) >= 0]
        if found:
            self.text = self.text[: min(found)]
            self._end("stop")
        else:
            self._tell_until(len(self.text) - self._held())

    def _held(self) -> int:
        """How many characters at the end may be the beginning of a stop text."""
        lengths = [size for one in self._stop for size in range(1, len(one)) if self.text.endswith(one[:size])]
        return max(lengths, default=0)

    def _end(self, reason: Reason) -> None:
        self.reason = reason
        self._tell_until(len(self.text))

    def _tell_until(self, place: int) -> None:
        if self._tell is not None and place > self._told:
            self._tell(self.text[self._told : place])
        self._told = max(self._told, place)


class _Watch(StoppingCriteria):
    """Hands every answer its tokens, and ends rows whose answer has ended."""

    def __init__(self, answers: Sequence[Answer], spell: Callable[[list[int]], str], ends: Sequence[int]) -> None:
        self._answers, self._spell, self._ends = answers, spell, ends

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Any:
        tokens = input_ids[:, -1].tolist()
        ended = [
            answer.add(token, self._spell, self._ends) for answer, token in zip(self._answers, tokens, strict=True)
        ]
        return torch.tensor(ended, device=input_ids.device)


@torch.no_grad()
def answer_chats(
    model: PreTrainedModel,
    processor: Any,
    chats: Sequence[Chat],
    recipe: Recipe,
    answers: Sequence[Answer],
    *,
    top_p: float = 1.0,
    seed: int = 0,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> list[int]:
    """Writes the answers to a batch of chats; chats without an image are answered plainly, there being no contrast.

    Greedy answers are those of :func:`damro.generate`, "random-k" apart. What is drawn depends on an answer's own seed,
    and on the seed and the image, never on what else is in the batch.

    Args:
        model: a supported LVLM.
        processor: its processor.
        chats: `B` of them, all with images or all without.
        recipe: the method, and the temperature to sample at.
        answers: `B` of them, new; they are filled.
        top_p: nucleus of sampling.
        seed: of what a method draws.
        settings: further ones of ``generate``, by name, such as `num_beams`.

    Returns:
        `B` lengths of the prompts in columns.

    Raises:
        InputsError: a chat that the model cannot read.
        ParameterError: a setting that ``generate`` does not know, beams that are to be sampled, or a parameter that
            does not suit this model.
        UnsupportedModelError: the method, or a chat without an image, with this model.
        NonFiniteScoresError: the model produced NaN or infinity.
    """
    config = search_config(model, processor, max(answer.max_new_tokens for answer in answers), **settings)
    if recipe.temperature and recipe.method.searches:
        raise ParameterError(
            f"temperature must be 0 with a method that searches by itself, got {recipe.temperature:g} with "
            f"{recipe.method.name!r}; leave it out"
        )
    if recipe.temperature and config.num_beams > 1:
        raise ParameterError(f"num_beams must be 1 where tokens are sampled, got {config.num_beams}; leave it out")
    inputs = prepare_chats(processor, chats, model)
    decoder: Any = family_of(model).decoder(model)
    ends = end_tokens(decoder, {"generation_config": config})[0]
    options: dict[str, Any] = {"generation_config": config, "logits_processor": [], "stopping_criteria": []}
    if recipe.temperature:
        seeds = [answer.seed for answer in answers]
        options["logits_processor"].append(SeededSampling(seeds, recipe.temperature, top_p))

    def spell(tokens: list[int]) -> str:
        text: str = processor.tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    own = recipe.method.searches and bool(chats[0].images)
    searched = own or config.num_beams > 1  # beams change places: which tokens are an answer's is known at the end
    if not searched:
        options["stopping_criteria"].append(_Watch(answers, spell, ends))
    if chats[0].images:
        pictures = [image for chat in chats for image in chat.images]
        names = tuple(map(_name_of, pictures))
        scene = Scene(processor=processor, seed=seed, images=names, pictures=pictures)
        contrast = recipe.method.prepare(model, inputs, scene)
        ids = decode(model, inputs, contrast, **options)
    else:
        ids = _continue_text(model, inputs, options)
    if searched:
        for answer, row in zip(answers, ids[:, returned_prompt(model, inputs).shape[1] :].tolist(), strict=True):
            any(answer.add(token, spell, ends) for token in row)
    return [int(length) for length in inputs["attention_mask"].sum(dim=-1)]


def search_config(model: PreTrainedModel, processor: Any, max_new_tokens: int, **settings: Any) -> GenerationConfig:
    """How ``generate`` searches, whatever the checkpoint would like: greedily, since sampling is `SeededSampling`'s.

    Args:
        model: whose own settings count beside these.
        processor: its processor.
        max_new_tokens: longest answer.
        **settings: further ones, by name.

    Raises:
        ParameterError: one that ``generate`` does not know.
    """
    config = copy.deepcopy(model.generation_config)
    plain = dict.fromkeys(("temperature", "top_p", "top_k", "max_length"))
    unknown = config.update(  # type: ignore[no-untyped-call]
        **{"do_sample": False, "num_beams": 1, **plain, "max_new_tokens": max_new_tokens, **settings}
    )
    if unknown:
        raise ParameterError(f"settings must be those of generate, got {', '.join(unknown)}; leave them out")
    if config.pad_token_id is None:
        config.pad_token_id = processor.tokenizer.pad_token_id
    return config


def _name_of(image: Image.Image) -> str:
    """A name that depends on the picture alone: draws of methods are by name."""
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


def _continue_text(model: PreTrainedModel, inputs: Mapping[str, Any], options: dict[str, Any]) -> Tensor:
    """Plain decoding of prompts without an image."""
    decoder: Any = family_of(model).decoder(model)
    if decoder is not model or is_encoder_decoder(decoder):
        raise UnsupportedModelError(
            f"images must be at least one for {model.config.model_type}, whose prompt begins with them, got a text "
            "alone; add an image"
        )
    check_context(model, inputs, options["generation_config"].max_new_tokens)
    generator: Any = model  # torch leaves the attributes of a module untyped
    finite = FiniteScores()
    options["logits_processor"].insert(0, finite)
    options["stopping_criteria"].append(finite.stop)
    ids: Tensor = generator.generate(**inputs, **options)
    finite.check()
    return ids
