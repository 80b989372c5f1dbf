"""Reads images one by one: all that a diagnosis is made of. Which parts a model does not allow is told by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from PIL import Image
from transformers import PreTrainedModel

from damro.decoding.families import family_of
from damro.diagnosis.asking import Answer, YesReader, ask
from damro.diagnosis.captioning import Caption, Captioner
from damro.diagnosis.looking import PROMPT, Look, look_at
from damro.diagnosis.questions import Question, questions_of
from damro.diagnosis.samples import AnnotatedImage
from damro.diagnosis.settings import Settings
from damro.errors import InputsError, UnsupportedModelError
from damro.eval.chair.matchers import load_matcher
from damro.eval.chair.vocabulary import Vocabulary, load_vocabulary
from damro.eval.errors import EvalError
from damro.images import ImageError
from damro.inspection import seen_image
from damro.inspection.decoder import resolve_layers
from damro.loading import prepare_inputs

Progress = Callable[[int, int], None]
"""Called with images done, and of how many."""


class Reading(NamedTuple):
    """What one image gives.

    Attributes:
        name: the image's.
        look: what the vision tower makes of it.
        answers: to the questions about it; empty where none is asked.
        caption: None where captions cannot be read again.
    """

    name: str
    look: Look
    answers: Sequence[Answer]
    caption: Caption | None


@dataclass
class Reader:
    """Reads images with one model.

    Attributes:
        model: a supported LVLM.
        processor: its processor.
        settings: how.
        vocabulary: the words for objects; None takes COCO's.
        top_k: how many patches are flagged.
        missing: what cannot be told of this model or these images, and why.
        matcher: the name of what finds objects in captions.
    """

    model: PreTrainedModel
    processor: Any
    settings: Settings
    vocabulary: Vocabulary | None = None
    top_k: int = field(init=False)
    missing: dict[str, str] = field(init=False, default_factory=dict)
    matcher: str = field(init=False)

    def __post_init__(self) -> None:
        """Finds out what the model allows.

        Raises:
            UnsupportedModelError: the family.
            ParameterError: there is no such layer of the language model.
        """
        family_of(self.model)
        self.top_k = self.settings.patches_for(self.model.config.model_type)
        words = self.vocabulary or load_vocabulary()
        matcher = load_matcher(self.settings.matcher, words)
        self.matcher = matcher.name
        layers: Sequence[int] = ()
        try:
            layers = resolve_layers(self.model, self.settings.layers or None)
        except UnsupportedModelError as error:
            self.missing["following"] = str(error)
        self._captioner = Captioner(
            self.model,
            self.processor,
            matcher,
            words,
            top_k=self.top_k,
            betas=self.settings.beta,
            layers=layers,
            max_new_tokens=self.settings.max_new_tokens,
            seed=self.settings.seed,
        )
        self._reader: YesReader | None = None
        try:
            self._reader = YesReader(self.processor.tokenizer)
        except UnsupportedModelError as error:
            self.missing["questions"] = str(error)

    def read(
        self, images: Sequence[AnnotatedImage], progress: Progress | None = None
    ) -> tuple[list[Reading], dict[str, str]]:
        """Reads all images.

        Args:
            images: with names of their own.
            progress: told after each.

        Returns:
            What each gives, and why those that are not among them are left out.

        Raises:
            ImageError, InputsError: not one image could be read; the first one's reason.
        """
        questions = self._questions(images)
        readings: list[Reading] = []
        left_out: dict[str, str] = {}
        first: Exception | None = None
        for number, image in enumerate(images):
            if progress is not None:
                progress(number, len(images))
            try:
                readings.append(self._read_one(image, questions.get(image.name, ())))
            except (ImageError, InputsError, OSError) as error:  # of this image; others say more of the model
                left_out[image.name] = str(error)
                first = first or error
        if progress is not None:
            progress(len(images), len(images))
        if not readings:
            raise first or InputsError("samples must be at least one image, got none")
        return readings, left_out

    def says_yes(self, token: int) -> bool:
        """Whether POPE's rule takes an answer of this one token for a yes."""
        assert self._reader is not None  # where there are answers, there is one
        return self._reader.says_yes(token)

    def picture(self, image: AnnotatedImage) -> Image.Image:
        """An image as the vision tower saw it."""
        inputs = prepare_inputs(self.processor, [image.open_image()], [PROMPT], self.model)
        return seen_image(self.processor, inputs, model=self.model)

    def _questions(self, images: Sequence[AnnotatedImage]) -> Mapping[str, Sequence[Question]]:
        if self._reader is None:
            return {}
        try:
            return questions_of(images, self.settings.seed)
        except EvalError as error:
            self.missing["questions"] = str(error)
            return {}

    def _read_one(self, image: AnnotatedImage, questions: Sequence[Question]) -> Reading:
        picture = image.open_image()
        mask = None if image.open_mask is None else image.open_mask()
        look = look_at(self.model, self.processor, picture, self.top_k, self.settings.layer, mask)
        answers: Sequence[Answer] = ()
        if questions:
            assert self._reader is not None  # else nothing is asked
            answers = ask(
                self.model,
                self.processor,
                picture,
                image.name,
                questions,
                top_k=self.top_k,
                beta=min(self.settings.beta),
                seed=self.settings.seed,
                reader=self._reader,
            )
        return Reading(image.name, look, answers, self._caption(picture, image, look))

    def _caption(self, picture: Image.Image, image: AnnotatedImage, look: Look) -> Caption | None:
        if "captions" in self.missing:
            return None
        try:
            return self._captioner.caption(picture, image.name, image.objects, look.weights)
        except UnsupportedModelError as error:  # so it is with every image
            self.missing["captions"] = str(error)
            return None


def check_images(images: Sequence[AnnotatedImage]) -> None:
    """Refuses images that no diagnosis could be made of.

    Raises:
        InputsError: there are fewer than two, or two have one name.
    """
    if len(images) < 2:
        raise InputsError(f"samples must be at least two images, got {len(images)}; a few hundred tell more")
    if len({image.name for image in images}) < len(images):
        raise InputsError("samples must have names of their own, got one twice; what is drawn at random depends on it")
