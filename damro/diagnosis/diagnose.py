"""Whether DAMRO can help a model: four measurements and a verdict, from one look at each of a few hundred images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from damro.diagnosis.asking import Answer
from damro.diagnosis.cached import is_open
from damro.diagnosis.changes import changed_answers, changed_words
from damro.diagnosis.following import FollowingFindings, measure_following
from damro.diagnosis.headroom import Array, HeadRoom, measure_room
from damro.diagnosis.knowledge import CaptionKnowledge, QuestionKnowledge, measure_captions, measure_questions
from damro.diagnosis.outliers import OutlierFindings, measure_outliers
from damro.diagnosis.reading import Progress, Reader, Reading, check_images
from damro.diagnosis.samples import AnnotatedImage
from damro.diagnosis.settings import Settings
from damro.diagnosis.verdict import Claim, Judgement, Verdict, caption_claims, judge, question_claims
from damro.eval.chair.vocabulary import Vocabulary
from damro.inspection.plain import jsonable

_EXAMPLES = 4


@dataclass(frozen=True)
class Example:
    """One image for the page.

    Attributes:
        name: the image's.
        picture: as the vision tower saw it.
        weights: `(rows, columns)`, the attention that flags patches.
        flagged: row and column of each flagged patch, in descending attention.
        map: `(rows, columns)`, the language model's attention while it captions; None where it cannot be looked at.
        caption: what it says; None where captions cannot be read again.
        hallucinated: where in the caption absent objects are named: first character, and the one behind the last.
        objects: what the image shows.
    """

    name: str
    picture: Image.Image
    weights: Tensor
    flagged: tuple[tuple[int, int], ...]
    map: Tensor | None
    caption: str | None
    hallucinated: tuple[tuple[int, int], ...]
    objects: tuple[str, ...]


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        family: the model's `config.model_type`.
        settings: how it was looked at.
        matcher: what found objects in captions.
        images: how many were read.
        left_out: images that were not, and why.
        unclear: answers to questions that begin with neither a yes nor a no.
        missing: parts that could not be measured, and why: "background", "following", "questions", "captions".
        outliers: see :class:`damro.diagnosis.outliers.OutlierFindings`.
        following: see :class:`damro.diagnosis.following.FollowingFindings`.
        questions: see :class:`damro.diagnosis.knowledge.QuestionKnowledge`.
        captions: see :class:`damro.diagnosis.knowledge.CaptionKnowledge`.
        question_room: see :class:`damro.diagnosis.headroom.HeadRoom`, of answers to questions; exact.
        caption_room: the same of objects named in captions, step by step behind what greedy search wrote
            (teacher-forced).
        judgement: the verdict, and what it follows from.
        examples: images for the page.
    """

    family: str
    settings: Settings
    matcher: str
    images: int
    left_out: Mapping[str, str]
    unclear: int
    missing: Mapping[str, str]
    outliers: OutlierFindings
    following: FollowingFindings | None
    questions: QuestionKnowledge | None
    captions: CaptionKnowledge | None
    question_room: HeadRoom | None
    caption_room: HeadRoom | None
    judgement: Judgement
    examples: tuple[Example, ...]

    @property
    def verdict(self) -> Verdict:
        """One of three."""
        return self.judgement.verdict

    def to_json(self) -> dict[str, Any]:
        """All numbers as plain values, an end that is not finite as None; no pictures."""
        told = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("examples", "judgement")}
        claims = {
            task: [{**claim._asdict(), "holds": claim.holds} for claim in of_task]
            for task, of_task in self.judgement.claims.items()
        }
        found: dict[str, Any] = jsonable(
            {"verdict": self.verdict, "tasks": self.judgement.tasks, "claims": claims, **told}
        )
        return found


def diagnose(
    model: PreTrainedModel,
    processor: Any,
    samples: Sequence[AnnotatedImage],
    settings: Settings | None = None,
    *,
    vocabulary: Vocabulary | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Looks at each image once and tells whether DAMRO can help this model.

    ::

        from damro.diagnosis import folder_images

        found = damro.diagnose(model, processor, folder_images("val2014", "instances_val2014.json"))
        found.verdict, found.to_json()

    Args:
        model: a supported LVLM.
        processor: its processor.
        samples: a few hundred images and what they show, see :func:`damro.diagnosis.folder_images` and
            :func:`damro.diagnosis.scene_images`.
        settings: how; None takes :class:`damro.diagnosis.Settings` as it is.
        vocabulary: what objects are called in captions; None takes COCO's names.
        progress: called with images done, and of how many.

    Raises:
        UnsupportedModelError: the family.
        ParameterError: there are no such layers or not so many patches.
        InputsError: fewer than two images, or two of one name.
    """
    check_images(samples)
    settings = settings or Settings()
    reader = Reader(model, processor, settings, vocabulary)
    readings, left_out = reader.read(samples, progress)
    outliers = measure_outliers([reading.look for reading in readings])
    if outliers.background is None:
        reader.missing["background"] = "where objects are is not known of any image; COCO's instances tell"
    claims: dict[str, Sequence[Claim]] = {}
    questions, question_room = _of_questions(readings, reader)
    captions, caption_room = _of_captions(readings, reader)
    if questions is not None and question_room is not None:
        claims["questions"] = question_claims(questions, question_room, sum(bool(one.answers) for one in readings))
    if captions is not None and caption_room is not None:
        claims["captions"] = caption_claims(captions, caption_room, len(readings))
    following = _of_following(readings)
    if following is None:
        reader.missing.setdefault("following", "there is no caption to be read again")
    return Diagnosis(
        family=str(model.config.model_type),
        settings=settings,
        matcher=reader.matcher,
        images=len(readings),
        left_out=left_out,
        unclear=sum(not answer.clear for one in readings for answer in one.answers),
        missing=reader.missing,
        outliers=outliers,
        following=following,
        questions=questions,
        captions=captions,
        question_room=question_room,
        caption_room=caption_room,
        judgement=judge(claims),
        examples=_examples(readings, samples, reader),
    )


def _of_following(readings: Sequence[Reading]) -> FollowingFindings | None:
    seen = [
        (one.caption.overlap, one.caption.share, one.look.chance)
        for one in readings
        if one.caption is not None and one.caption.overlap is not None and one.caption.share is not None
    ]
    return measure_following(*zip(*seen, strict=True)) if seen else None


def _of_questions(
    readings: Sequence[Reading], reader: Reader
) -> tuple[QuestionKnowledge, HeadRoom] | tuple[None, None]:
    asked = [one.answers for one in readings if one.answers]
    if len(asked) < 2:
        reader.missing.setdefault("questions", f"at least two images must be asked about, got {len(asked)}")
        return None, None

    def scores(kind: str) -> list[list[Array]]:
        return [[answer.yes for answer in of_image if _kind(answer) == kind] for of_image in asked]

    known = measure_questions({kind: scores(kind) for kind in ("present", "hallucinated", "denied")})
    alphas, betas, seed = reader.settings.alpha, reader.settings.beta, reader.settings.seed
    counts = changed_answers(asked, alphas, betas, reader.says_yes)
    steps = [np.array([is_open(answer.step, betas) for answer in of_image], dtype=float) for of_image in asked]
    return known, measure_room(counts, steps, alphas, betas, seed)


def _kind(answer: Answer) -> str:
    if answer.question.present:
        return "present"
    return "hallucinated" if answer.says_yes else "denied"


def _of_captions(readings: Sequence[Reading], reader: Reader) -> tuple[CaptionKnowledge, HeadRoom] | tuple[None, None]:
    captions = [one.caption for one in readings if one.caption is not None]
    if len(captions) < 2:
        reader.missing.setdefault("captions", f"at least two images must be captioned, got {len(captions)}")
        return None, None

    def scores(hallucinated: bool) -> list[list[Array]]:
        return [
            [word.log_probability for word in caption.named if word.hallucinated == hallucinated]
            for caption in captions
        ]

    known = measure_captions({"true": scores(False), "hallucinated": scores(True)})
    steps = [caption.open_steps.astype(float) for caption in captions]
    alphas, betas, seed = reader.settings.alpha, reader.settings.beta, reader.settings.seed
    counts = changed_words([caption.named for caption in captions], alphas, betas)
    return known, measure_room(counts, steps, alphas, betas, seed)


def _examples(readings: Sequence[Reading], samples: Sequence[AnnotatedImage], reader: Reader) -> tuple[Example, ...]:
    """The first images whose captions name absent objects, and others if there are too few."""
    by_name = {image.name: image for image in samples}

    def is_plain(reading: Reading) -> bool:
        return reading.caption is None or not any(word.hallucinated for word in reading.caption.named)

    return tuple(
        _example(reading, by_name[reading.name], reader) for reading in sorted(readings, key=is_plain)[:_EXAMPLES]
    )


def _example(reading: Reading, image: AnnotatedImage, reader: Reader) -> Example:
    look, caption = reading.look, reading.caption
    named = () if caption is None else tuple(word.mention for word in caption.named if word.hallucinated)
    return Example(
        name=image.name,
        picture=reader.picture(image),
        weights=look.weights.view(*look.grid),
        flagged=tuple(divmod(int(patch), look.grid[1]) for patch in look.flagged),
        map=None if caption is None else caption.map,
        caption=None if caption is None else caption.text,
        hallucinated=tuple((mention.start, mention.end) for mention in named),
        objects=tuple(sorted(image.objects)),
    )
