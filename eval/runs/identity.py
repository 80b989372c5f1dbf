"""Which run a record is of: digests of its settings, of what was asked, and of the image that was looked at."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from damro.eval.errors import EvalError
from damro.eval.samples import OpenImage, Sample

if TYPE_CHECKING:
    from PIL import Image

DIGEST, IMAGE_DIGEST = "digest", "image_digest"
P_YES = "p_yes"
_ANSWER = ("answer", P_YES, "outliers", "error", "seconds", DIGEST)
_LENGTH = 16  # hexadecimal digits: this tells accidents apart, no forgeries


class ForeignRecordError(EvalError):
    """A record contradicts the run that it lies with."""


class ChangedImageError(EvalError):
    """An image is not the one that a recorded answer is about."""


@dataclass
class SeenImages:
    """Opens images, and knows the digest of each file as it was opened.

    Attributes:
        open_image: From an image's name to the image.
        digest_image: From an image's name to the SHA-256 of its file; None where there is none.
    """

    open_image: OpenImage
    digest_image: Callable[[str], str | None]
    _seen: dict[str, str] = field(default_factory=dict)

    def __call__(self, name: str) -> Image.Image:
        """Open an image; see `damro.eval.samples.OpenImage`."""
        # First: a file that changes in between then seems to have changed, rather than not to have.
        digest = self.digest_image(name)
        image = self.open_image(name)
        if digest is not None:
            self._seen[name] = digest[:_LENGTH]
        return image

    def digest(self, name: str) -> str | None:
        """Return the digest of an image that was opened; None of one that is no file, or did not open."""
        return self._seen.get(name)

    def check(self, records: Iterable[Mapping[str, Any]]) -> None:
        """See `check_images`."""
        check_images(records, self.digest_image)


@dataclass(frozen=True)
class Identity:
    """What ties records to a run.

    Attributes:
        settings: Digest of all that the answers depend on, as `damro.eval.runs.record.digest_of_settings` has it.
        accepts_old: Whether the run has records of a version that wrote no digests.
        images: What opens the images; None where records only are at hand.
    """

    settings: str
    accepts_old: bool = False
    images: SeenImages | None = None

    def stamp(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return a record with the digest of its image, if it has an answer, and its own."""
        image = None if "error" in fields or self.images is None else self.images.digest(fields["image"])
        stamped = dict(fields) if image is None else {**fields, IMAGE_DIGEST: image}
        return {**stamped, DIGEST: digest_of_record(self.settings, stamped)}

    def check(self, fields: Mapping[str, Any], where: str) -> None:
        """Refuse a record that is none of this run's.

        Args:
            fields: The record.
            where: Its file and line.

        Raises:
            ForeignRecordError: Its digest is not that of what it holds under the settings of the run, or it has none.
        """
        told = fields.get(DIGEST)
        if told is None and self.accepts_old:
            return
        if told != digest_of_record(self.settings, fields):
            wrong = "has none" if told is None else "contradicts the settings of the run, or the question was changed"
            raise ForeignRecordError(
                f"{where}: record {fields.get('id')!r} must carry the digest of this run, {wrong}: take out the "
                "records of other runs, or give another --out"
            )


def digest_of_record(settings: str, fields: Mapping[str, Any]) -> str:
    """Return a short digest of what a record's answer depends on: its prompt, image and label, and the run's settings.

    Example:
        >>> one = {"id": "s/1", "prompt": "Is there a cat?", "label": "no", "answer": "No"}
        >>> digest_of_record("a", one) == digest_of_record("a", {**one, "answer": "Yes"})
        True
        >>> digest_of_record("a", one) == digest_of_record("a", {**one, "label": "yes"})
        False
    """
    asked = {name: value for name, value in fields.items() if name not in _ANSWER}
    return digest_of_json([settings, asked])


def digest_of_json(value: object) -> str:
    """Return a short digest of a value's JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:_LENGTH]


def check_asked(fields: Mapping[str, Any], sample: Sample, where: str) -> None:
    """Refuse a record that answers another question than that of its sample. What it does not hold is not compared.

    Args:
        fields: The record.
        sample: The sample of its id.
        where: Its file and line.

    Raises:
        ForeignRecordError: It holds another prompt, image, label or other field.
    """
    for name, value in {**sample.fields, "image": sample.image, "prompt": sample.prompt}.items():
        # Through JSON, where a tuple is a list.
        if name in fields and fields[name] != value and fields[name] != json.loads(json.dumps(value)):
            raise ForeignRecordError(
                f"{where}: record {sample.sample_id!r} must hold the {name} {str(value)[:60]!r} of its sample, got "
                f"{str(fields[name])[:60]!r}: take out the records of other runs, or give another --out"
            )


def check_images(records: Iterable[Mapping[str, Any]], digest_image: Callable[[str], str | None]) -> None:
    """Refuse to go on where an image is not the one that was looked at. Files that are not there are not compared.

    Every file is read as a whole, by all cores.

    Args:
        records: Those without a digest of their image are left out.
        digest_image: From an image's name to the SHA-256 of its file.

    Raises:
        ChangedImageError: The contents of one have changed; names it.
    """
    seen = dict.fromkeys(found for fields in records if (found := _image_of(fields)))
    with ThreadPoolExecutor() as threads:
        now = threads.map(digest_image, (name for name, _ in seen))
        for (name, before), digest in zip(seen, now, strict=True):
            if digest is not None and digest[:_LENGTH] != before:
                raise ChangedImageError(
                    f"image {name!r} must be the file that the recorded answers are about, its contents are others "
                    "now: put it back, or give another --out"
                )


def check_same_images(runs: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Refuse runs that looked at different images of one name.

    Raises:
        ChangedImageError: Two did; names the image.
    """
    first: dict[str, tuple[str, str]] = {}
    for run, records in runs.items():
        for name, digest in filter(None, map(_image_of, records.values())):
            other, before = first.setdefault(name, (run, digest))
            if before != digest:
                raise ChangedImageError(
                    f"image {name!r} must be the same file in all runs to be compared, {other} and {run} looked at "
                    "different ones: run one of them anew"
                )


def _image_of(fields: Mapping[str, Any]) -> tuple[str, str] | None:
    """The image that a record is about and its digest, where it has one."""
    name, digest = fields.get("image"), fields.get(IMAGE_DIGEST)
    return (name, digest) if isinstance(name, str) and isinstance(digest, str) else None
