"""Object HalBench as a benchmark: descriptions of 300 images of COCO 2014."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from damro.eval.benchmark import Benchmark, DataRequest, Group, Note, Records
from damro.eval.chair.coco import ImageId, image_key, name_few, normalize_objects, read_objects
from damro.eval.chair.matchers import load_matcher
from damro.eval.errors import AlignmentError, DataFormatError, EvalError
from damro.eval.judged.replies import Judgements, read_judgements
from damro.eval.judged.scoring import JudgedScoring, notes_of
from damro.eval.objhal.judging import ObjhalAnswer, read_objects_of
from damro.eval.objhal.questions import FILE, find_images, load_questions
from damro.eval.objhal.scoring import ReadAnswer, score_groups
from damro.eval.objhal.words import load_tagger, load_words
from damro.eval.records import digest_of_file
from damro.eval.resources import coco_objects_path
from damro.eval.samples import Dataset, Sample, check_samples

_PROMPT_KEYS, _TEXT_KEYS = ("prompt", "question"), ("text", "answer", "caption")


@dataclass(frozen=True)
class ObjhalScoring(JudgedScoring):
    """How objects are found in descriptions.

    Attributes:
        tagger: what tells nouns in the names that a judge extracts: nltk, or spacy for the official script's
            en_core_web_trf.
        matcher: nltk, builtin, or auto for nltk where its data is at hand.
    """

    tagger: Literal["nltk", "spacy"] = "nltk"
    matcher: Literal["auto", "nltk", "builtin"] = "auto"


@dataclass(frozen=True)
class Objhal(Benchmark):
    """Object HalBench: objects of detailed descriptions, extracted by a judge (Yu et al., CVPR 2024). Needs its file.

    Attributes:
        questions: the official file, obj_halbench_300_with_image.jsonl, which holds the images; none for that in the
            folder of images or beside it.
        objects: ground truth of the images instead of the shipped one of COCO 2014.
    """

    name: ClassVar = "objhal"
    source: ClassVar = "Object HalBench of RLHF-V, CVPR 2024, arXiv 2312.00849"
    prompt: ClassVar = "{question}"
    max_new_tokens: ClassVar = 1024
    scoring: ClassVar = ObjhalScoring
    rescored: ClassVar = ("objects",)
    recorded: ClassVar = ("answer", "image_id", "prompt")
    command: ClassVar = "damro.eval.objhal.command"

    questions: str | None = None
    objects: str | None = None

    @property
    def has_images(self) -> bool:
        """Whether the file of questions is given, which holds images."""
        return self.questions is not None

    def load(self, request: DataRequest) -> Dataset:
        """See :meth:`damro.eval.benchmark.Benchmark.load`."""
        path = self._file(request.images)
        questions = load_questions(path)[: request.limit]
        names, opener = find_images(questions, request.images)
        samples = [
            Sample(one.key, name, self.ask(request, one.question), {"image_id": one.key, "question": one.question})
            for one, name in zip(questions, names, strict=True)
        ]
        check_samples(samples)
        objects = Path(self.objects) if self.objects else coco_objects_path()
        data = {
            "questions": {"file": path.name, "sha256": digest_of_file(path)},
            "objects": {"file": objects.name, "sha256": digest_of_file(objects)},
        }
        truth = self.truth(request)
        return Dataset(samples, opener, data, {one.key: truth[one.key] for one in questions if one.key in truth})

    def truth(self, request: DataRequest) -> dict[str, list[str]]:
        """The objects of each image, by its key."""
        return {image_key(image): names for image, names in read_objects(self.objects).items()}

    def score(self, records: Records, scoring: ObjhalScoring) -> list[Group]:
        """The one group of all descriptions."""
        answers = [to_answer(fields, f"record {key!r}") for key, fields in records.items()]
        judgements = read_judgements(scoring.judgements) if scoring.judgements else None
        read, notes = read_answers(answers, scoring.truth, judgements, scoring)
        if self.objects is not None:
            notes.append(Note("objects", Path(self.objects).name))
        return score_groups(read, notes)

    def _file(self, images: Path | None) -> Path:
        if self.questions is not None:
            return Path(self.questions)
        for path in () if images is None else (images / FILE, images.parent / FILE):
            if path.is_file():
                return path
        raise EvalError(
            f"objhal needs {FILE}, got no --questions and none in the folder of --images or beside it: give that of "
            "repository RLHF-V/RLHF-V, folder eval/data, which holds the images too"
        )


def to_answer(fields: Mapping[str, Any], where: str) -> ObjhalAnswer:
    """Return an answer from a record of a run, or of RLHF-V's scripts: image_id, prompt and text.

    Raises:
        DataFormatError: The record lacks something; names where it stands.
    """
    image = fields.get("image_id")
    prompt, text = (next((fields[key] for key in keys if key in fields), None) for keys in (_PROMPT_KEYS, _TEXT_KEYS))
    if isinstance(image, bool) or not isinstance(image, int | str) or not isinstance(text, str):
        raise DataFormatError(
            f"{where}: must have 'image_id', 'prompt' and the description under 'text' or 'answer', got keys "
            f"{ascii(sorted(map(str, fields)))[:120]}"
        )
    if not isinstance(prompt, str):
        raise DataFormatError(f"{where}: must have what was asked as text under 'prompt', got {ascii(prompt)[:60]}")
    return ObjhalAnswer(image_key(image), prompt, text.replace("Assistant:", "").strip())


def read_answers(
    answers: Sequence[ObjhalAnswer],
    objects: Mapping[str, Collection[str]] | Mapping[ImageId, Collection[str]],
    judgements: Judgements | None,
    scoring: ObjhalScoring,
) -> tuple[list[ReadAnswer], list[Note]]:
    """Find the objects in answers, and say how.

    Args:
        answers: One an image.
        objects: Of the images, by name or synonym.
        judgements: None has this package's matcher read the descriptions, as the official script does with NLTK
            alone when it is run without a judge.
        scoring: Tagger and matcher.

    Raises:
        AlignmentError: An image has two answers, or no objects.
        EvalError: An answer has no judgement, or what reads it is not installed.
    """
    keys = [one.image for one in answers]
    double = [key for key, count in Counter(keys).items() if count > 1]
    if double:
        raise AlignmentError(f"answers must be one an image, got a further one for {name_few(double)}: give each once")
    truth = normalize_objects({image: names for image, names in objects.items()}, set(keys), load_words())
    unknown = [key for key in keys if key not in truth]
    if unknown:
        raise AlignmentError(
            f"answers must be of images of the ground truth, which lacks {name_few(unknown)}: give --objects with it"
        )
    found: Mapping[str, Sequence[str] | None]
    if judgements is None:
        matcher = load_matcher(scoring.matcher, load_words())
        found = {one.image: [mention.name for mention in matcher.find(one.text)] for one in answers}
        told = "read by this package in place of a judge: figures are not to be compared with published ones"
        notes = [Note("no judge", f"matcher {matcher.name}", told, doubtful=True)]
    else:
        found = read_objects_of(answers, judgements, load_tagger(scoring.tagger))
        notes = [*notes_of(judgements), Note("tagger", scoring.tagger)]
    return [ReadAnswer(one.image, one.text, found[one.image], truth[one.image]) for one in answers], notes
