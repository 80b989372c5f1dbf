"""What a run asks a model: the samples of a benchmark, where their images come from, and what the truth is."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from damro.eval.chair.coco import image_key, read_objects
from damro.eval.errors import DataFormatError, EvalError
from damro.eval.mme.questions import load_questions as load_mme_questions
from damro.eval.pope import Question, build, load_questions
from damro.eval.pope.questions import to_question
from damro.eval.records import read_text
from damro.eval.resources import POPE_SPLITS, coco_objects_path, pope_questions_path
from damro.eval.runs.request import RunRequest, digest_of_file

if TYPE_CHECKING:
    from PIL import Image

PROMPTS = {
    "pope": "{question} Please answer this question with one word.",
    "chair": "Generate a short caption of this image.",
    "mme": "{question}",
}
"""The prompts of the paper's runs; MME's questions say themselves how to answer."""
MAX_NEW_TOKENS = {"pope": 64, "chair": 1024, "mme": 64}
CHAIR_IMAGES = 500
_DEFAULT_SPLITS = ("coco/random", "coco/popular", "coco/adversarial")
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")


class Sample(NamedTuple):
    """One prompt about one image.

    Attributes:
        sample_id: Unique in its run.
        image: The image's name in its source, with "/" between folders.
        prompt: What the model is asked.
        fields: What the record shall also hold: split, question_id, label, image_id, ...
    """

    sample_id: str
    image: str
    prompt: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Dataset:
    """The samples of a run.

    Attributes:
        samples: In the order in which they are asked; samples of one image stand together.
        open_image: From an image's name to the image.
        data: Where questions and truth come from, with checksums, for ``run.json``.
        truth: CHAIR: the objects of each image. Empty otherwise.
    """

    samples: list[Sample]
    open_image: Callable[[str], Image.Image]
    data: dict[str, Any]
    truth: dict[str, list[str]] = field(default_factory=dict)


def load_dataset(request: RunRequest) -> Dataset:
    """Return the samples of a request; opens no image yet.

    Raises:
        EvalError: A file is malformed, a split unknown, the images folder missing, or a path leaves it.
    """
    loader = {"pope": _pope, "chair": _chair, "mme": _mme}[request.benchmark]
    dataset = loader(request)
    for sample in dataset.samples:
        check_inside(sample.image)
    if not dataset.samples:
        raise EvalError("a run must have at least one sample, got none: check --split, --limit and the files given")
    if len({sample.sample_id for sample in dataset.samples}) < len(dataset.samples):
        raise DataFormatError("samples must have ids of their own, got one twice: give every question its question_id")
    return dataset


def check_inside(name: str) -> None:
    """Refuse an image's name that would leave the images folder.

    Raises:
        EvalError: It is absolute, names a drive, or steps up.

    Example:
        >>> check_inside("val2014/COCO_val2014_000000000042.jpg")
        >>> check_inside("a/../../secret.jpg")
        Traceback (most recent call last):
        damro.eval.errors.EvalError: image must stay inside the images folder, got 'a/../../secret.jpg'
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if not name or path.is_absolute() or ".." in path.parts or ":" in path.parts[0] or "\0" in name:
        raise EvalError(f"image must stay inside the images folder, got {name!r}")


def folder_opener(folder: Path) -> Callable[[str], Image.Image]:
    """Return what opens the images of a folder.

    Raises:
        EvalError: There is no such folder.
    """
    if not folder.is_dir():
        raise EvalError(f"--images must be a folder, got {str(folder)!r}: give the folder that holds the images")
    root = folder.resolve()

    def open_image(name: str) -> Image.Image:
        from damro.loading import load_image

        check_inside(name)
        path = (root / name).resolve()  # a link may leave the folder where the name does not
        if not path.is_relative_to(root):
            raise EvalError(f"image must stay inside the images folder, got a link that leaves it: {name!r}")
        return load_image(path)

    return open_image


def prompt_for(request: RunRequest, question: str = "") -> str:
    """Return the prompt of a question under a request's template."""
    return (request.prompt or PROMPTS[request.benchmark]).replace("{question}", question)


def _pope(request: RunRequest) -> Dataset:
    if request.model == "tiny" and request.images is None:
        return _pope_scenes(request)
    opener = folder_opener(_images_folder(request))
    if request.questions:
        files = [(Path(request.questions).name, Path(request.questions))]
    else:
        files = [(split, pope_questions_path(split)) for split in request.splits or _DEFAULT_SPLITS]
    questions = [(split, question) for split, path in files for question in load_questions(path)[: request.limit]]
    data = {"questions": {split: {"file": path.name, "sha256": digest_of_file(path)} for split, path in files}}
    return Dataset(_pope_samples(request, questions), opener, data)


def _pope_samples(request: RunRequest, questions: Iterable[tuple[str, Question]]) -> list[Sample]:
    """One sample a question; the questions of an image next to each other, images by first appearance."""
    by_image: dict[str, list[Sample]] = {}
    for place, (split, question) in enumerate(questions, start=1):
        identifier = question.question_id or str(place)
        fields = {
            "split": split,
            "question_id": identifier,
            "question": question.text,
            "label": question.label,
        }
        sample = Sample(f"{split}/{identifier}", question.image, prompt_for(request, question.text), fields)
        by_image.setdefault(question.image, []).append(sample)
    return [sample for samples in by_image.values() for sample in samples]


def _pope_scenes(request: RunRequest) -> Dataset:
    objects = scene_objects(request.scenes)
    eligible = sum(len(names) >= 3 for names in objects.values())
    questions = []
    for name in request.splits or ("random", "popular", "adversarial"):
        split = name.rpartition("/")[2]
        records = build(objects, split, images=eligible, per_image=3, seed=request.seed)[: request.limit]
        questions += [(f"tiny/{split}", to_question(one, f"question {one['question_id']}")) for one in records]
    data = {"questions": {"builder": "damro.eval.pope.build", "scenes": request.scenes, "sha256": _digest(objects)}}
    return Dataset(_pope_samples(request, questions), open_scene, data)


def _chair(request: RunRequest) -> Dataset:
    if request.model == "tiny" and request.images is None:
        truth = scene_objects(request.scenes)
        source = {"objects": {"source": "damro.tiny.scenes", "sha256": _digest(truth)}}
        images = {str(number): name for number, name in enumerate(truth)}
        objects_of = {key: truth[name] for key, name in images.items()}
        return Dataset(_captions(request, images), open_scene, source, objects_of)
    folder = _images_folder(request)
    opener = folder_opener(folder)
    objects_file = Path(request.objects) if request.objects else coco_objects_path()
    objects = {image_key(image): names for image, names in read_objects(objects_file).items()}
    images = _choose_images(request, folder, objects)
    data: dict[str, Any] = {
        "objects": {"file": objects_file.name, "sha256": digest_of_file(objects_file)},
        "images": {"n": len(images), "sha256": _digest(sorted(images))},
    }
    return Dataset(_captions(request, images), opener, data, {key: objects[key] for key in images})


def _captions(request: RunRequest, images: Mapping[str, str]) -> list[Sample]:
    pairs = list(images.items())[: request.limit]
    return [Sample(key, name, prompt_for(request), {"image_id": int(key)}) for key, name in pairs]


def _choose_images(request: RunRequest, folder: Path, objects: Mapping[str, list[str]]) -> dict[str, str]:
    """Image id to file name: those asked for, or 500 of the annotated ones by the seed."""
    present: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        number = re.search(r"(\d+)$", path.stem)
        if number and path.suffix.lower() in _IMAGE_ENDINGS:
            present[str(int(number[1]))] = path.name
    if request.image_ids:
        asked = [str(int(word)) for word in re.findall(r"\d+", read_text(request.image_ids))]
        unknown = [key for key in asked if key not in objects]
        if unknown or not asked:
            raise EvalError(
                f"--image-ids must name images of the ground truth, got {len(unknown)} others of {len(asked)} "
                f"({', '.join(unknown[:3])}): give ids of COCO 2014, or --objects for other images"
            )
        # An image that is not there becomes a failed record of this name, and is told in the summary.
        return {key: present.get(key, f"COCO_val2014_{int(key):012d}.jpg") for key in dict.fromkeys(asked)}
    eligible = sorted((key for key in present if key in objects), key=int)
    if not eligible:
        raise EvalError(
            f"--images must hold annotated images such as COCO_val2014_000000000042.jpg, found none in {str(folder)!r} "
            f"({len(present)} images with a number): unpack COCO val2014 there"
        )
    wanted = min(request.limit or CHAIR_IMAGES, len(eligible))
    return {key: present[key] for key in random.Random(request.seed).sample(eligible, wanted)}


def _mme(request: RunRequest) -> Dataset:
    if request.images is None:
        raise EvalError(
            "mme needs the benchmark's folder (a folder a category, with images and questions): give --images"
        )
    folder = Path(request.images)
    opener = folder_opener(folder)
    questions = load_mme_questions(folder, request.splits or None)
    samples = [
        Sample(
            f"{asked.category}/{asked.name}/{asked.number}",
            asked.image,
            prompt_for(request, asked.question),
            {"category": asked.category, "name": asked.name, "question": asked.question, "label": asked.gold},
        )
        for asked in questions
    ]
    if request.limit:
        samples = samples[: request.limit]
    return Dataset(samples, opener, {"questions": {"n": len(samples), "sha256": _digest([list(q) for q in questions])}})


def scene_objects(scenes: int) -> dict[str, list[str]]:
    """Return the objects of the first test scenes, by the scene's image name."""
    from damro.tiny.scenes import scene

    return {
        f"test_{index:06d}.png": sorted({thing.name for thing in scene("test", index).objects})
        for index in range(scenes)
    }


def open_scene(name: str) -> Image.Image:
    """Render a test scene by its image name."""
    from damro.tiny.scenes import scene

    return scene("test", int(name.removeprefix("test_").removesuffix(".png"))).image


def caption_truth(request: RunRequest) -> dict[str, list[str]]:
    """Return the objects that captions of a request are scored with, without its images."""
    if request.model == "tiny" and request.images is None:
        return {str(number): names for number, names in enumerate(scene_objects(request.scenes).values())}
    return {image_key(image): names for image, names in read_objects(request.objects).items()}


def _images_folder(request: RunRequest) -> Path:
    if request.images is None:
        raise EvalError(
            f"{request.benchmark} on {request.model!r} needs the images, none are downloaded: give --images with the "
            "folder of COCO val2014 (http://images.cocodataset.org/zips/val2014.zip, 6 GB), or take --model tiny"
        )
    return Path(request.images)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def all_splits() -> tuple[str, ...]:
    """Return the nine splits of POPE, without the older release of coco/random."""
    return tuple(split for split in POPE_SPLITS if split != "coco/random_2910")
