"""Object HalBench's file, ``obj_halbench_300_with_image.jsonl`` of repository RLHF-V/RLHF-V, and its images."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from damro.eval.chair.coco import image_key
from damro.eval.errors import DataFormatError, EvalError
from damro.eval.records import each_record
from damro.eval.samples import ImageFolder, ImageSource, folder_opener

if TYPE_CHECKING:
    from PIL import Image

FILE = "obj_halbench_300_with_image.jsonl"
_ENDINGS = (".jpg", ".jpeg", ".png")


class ObjhalQuestion(NamedTuple):
    """One request for a description.

    Attributes:
        key: The image's, see `damro.eval.chair.coco.image_key`.
        question: The request.
        content: The image's file in Base64; None where the record has none.
    """

    key: str
    question: str
    content: str | None


@dataclass(frozen=True)
class EncodedImages(ImageSource):
    """Opens images that stand in the file of questions.

    Attributes:
        contents: By an image's name, its file in Base64.
    """

    contents: Mapping[str, str]

    def __call__(self, name: str) -> Image.Image:
        """Open an image.

        Raises:
            EvalError: What stands there is no Base64.
            ImageError: What it holds does not open.
        """
        from damro.images import MAX_PIXELS, read_image

        return read_image(self._content(name), name, max_pixels=self.max_pixels or MAX_PIXELS)

    def digest(self, name: str) -> str | None:
        """Return the SHA-256 of an image's file; None where there is none."""
        try:
            return hashlib.sha256(self._content(name)).hexdigest()
        except EvalError:  # whoever opens the image is told
            return None

    def _content(self, name: str) -> bytes:
        try:
            return base64.b64decode(self.contents[name], validate=True)
        except (binascii.Error, ValueError) as error:
            raise EvalError(f"image {name!r} must be Base64 in the file of questions, is not ({error})") from error


def load_questions(path: Path | str) -> list[ObjhalQuestion]:
    """Read the requests of the file.

    Raises:
        DataFormatError: The file cannot be read, or a record lacks something.
    """
    questions = []
    for where, fields in each_record(path):
        identifier, question, content = (fields.get(name) for name in ("image_id", "question", "image"))
        if isinstance(identifier, bool) or not isinstance(identifier, int | str) or not str(identifier).strip():
            raise DataFormatError(
                f"{where}: image_id must be the number of an image of COCO 2014, got {ascii(identifier)[:60]}: give "
                f"{FILE}"
            )
        if not isinstance(question, str) or not question.strip():
            raise DataFormatError(f"{where}: question must be the request as text, got {ascii(question)[:60]}")
        if content is not None and not isinstance(content, str):
            raise DataFormatError(f"{where}: image must be a file in Base64, got {ascii(content)[:60]}")
        questions.append(ObjhalQuestion(image_key(identifier), question, content))
    return questions


def find_images(questions: list[ObjhalQuestion], folder: Path | None) -> tuple[list[str], ImageFolder | EncodedImages]:
    """Return the name of each question's image, and what opens them.

    Args:
        questions: In the order of the names.
        folder: Of COCO's images; None takes those of the file of questions.

    Raises:
        EvalError: No folder is given, and the file lacks an image.
    """
    if folder is not None:
        opener = folder_opener(folder)
        wanted = {one.key for one in questions}
        there = {
            image_key(path.name): path.name for path in sorted(folder.iterdir()) if path.suffix.lower() in _ENDINGS
        }
        names = {key: there.get(key, _coco_name(key)) for key in wanted}
        return [names[one.key] for one in questions], opener
    without = [one.key for one in questions if one.content is None]
    if without:
        raise EvalError(
            f"objhal needs its images, got no --images and none in the file of questions for {len(without)} of "
            f"{len(questions)}: give --images with the folder of COCO val2014, or --questions with {FILE}"
        )
    names_of = [_coco_name(one.key) for one in questions]
    contents = {name: one.content for name, one in zip(names_of, questions, strict=True) if one.content is not None}
    return names_of, EncodedImages(contents)


def _coco_name(key: str) -> str:
    return f"COCO_val2014_{int(key):012d}.jpg" if key.isdigit() else key
