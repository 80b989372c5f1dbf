"""CHAIR: which objects that a caption names are not in the image (Rohrbach et al. 2018, arXiv 1809.02156).

With M the mentions of COCO objects in all captions, H those of them whose object is not in the ground truth of
the image, and C the captions:

    CHAIRi  = |H| / |M|                               mentions, repetitions counted
    CHAIRs  = |captions with a mention in H| / |C|
    Recall  = sum over captions of |objects named and present| / sum over captions of |objects present|

Recall is pooled over captions (micro average), as in the CHAIR script of OPERA (arXiv 2311.17911). Precision and F1 are
pooled likewise, of objects counted once per caption: Precision = sum of |objects named and present| / sum of |objects
named|, F1 = 2 Precision Recall / (Precision + Recall).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from damro.eval.chair.coco import ImageId, image_key, name_few, normalize_objects
from damro.eval.chair.matchers import Matcher, Mention, Reading, load_matcher
from damro.eval.chair.vocabulary import Vocabulary
from damro.eval.errors import AlignmentError, DataFormatError, EvalError
from damro.eval.formats.captions import CAPTION_KEYS, IMAGE_KEYS


class Caption(NamedTuple):
    """A caption and the key (see `damro.eval.chair.coco.image_key`) of its image."""

    image_id: str
    text: str


@dataclass(frozen=True)
class CaptionScore:
    """What one caption names, and what of it is not in the image.

    Attributes:
        image_id: Key of the image.
        caption: The text.
        mentions: Every mention of an object, in order.
        hallucinated: Those of them whose object is not in the image; each carries its place in the text.
        truth: Objects in the image.
        n_words: Length of the caption in words (runs of characters between white space).
        length: Its length in tokens, see `damro.eval.chair.matchers.Reading`.
    """

    image_id: str
    caption: str
    mentions: tuple[Mention, ...]
    hallucinated: tuple[Mention, ...]
    truth: frozenset[str]
    n_words: int
    length: int

    @property
    def recalled(self) -> frozenset[str]:
        """Objects that are in the image and named."""
        return self.truth & {mention.name for mention in self.mentions}

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        return {
            "image_id": self.image_id,
            "caption": self.caption,
            "mentions": [mention._asdict() for mention in self.mentions],
            "hallucinated": [mention._asdict() for mention in self.hallucinated],
            "objects": sorted(self.truth),
            "n_words": self.n_words,
            "length": self.length,
        }


class CaptionCounts(NamedTuple):
    """One value per caption in each field, in the order of the captions: all that the scores are made of."""

    n_mentions: tuple[int, ...]
    n_hallucinated: tuple[int, ...]
    n_unique: tuple[int, ...]
    n_unique_hallucinated: tuple[int, ...]
    n_recalled: tuple[int, ...]
    n_truth: tuple[int, ...]
    n_words: tuple[int, ...]
    length: tuple[int, ...]


@dataclass(frozen=True)
class ChairScore:
    """CHAIR over a set of captions. Scores are fractions; None where the denominator is zero.

    Attributes:
        chair_s: Share of captions with at least one hallucinated mention.
        chair_i: Share of mentions that are hallucinated.
        chair_i_unique: The same with each object counted once per caption.
        recall: Share of the objects present that are named, pooled over captions.
        precision: Share of the objects named that are present, each counted once per caption: 1 - `chair_i_unique`.
        f1: Harmonic mean of precision and recall.
        mean_length: Mean caption length in words.
        mean_tokens: Mean caption length in tokens, CHAIR's "Len" (see `damro.eval.chair.matchers.Reading`).
        n_captions: Captions.
        n_hallucinated_captions: Captions with at least one hallucinated mention.
        n_mentions: Mentions.
        n_hallucinated: Hallucinated mentions.
        n_truth: Objects present, summed over captions.
        n_recalled: Objects present and named, summed over captions.
        matcher: Name of the matcher that found the mentions.
        counts: The counts of each caption.
        records: Each caption with its mentions.
    """

    chair_s: float
    chair_i: float | None
    chair_i_unique: float | None
    recall: float | None
    precision: float | None
    f1: float | None
    mean_length: float
    mean_tokens: float
    n_captions: int
    n_hallucinated_captions: int
    n_mentions: int
    n_hallucinated: int
    n_truth: int
    n_recalled: int
    matcher: str
    counts: CaptionCounts
    records: tuple[CaptionScore, ...]

    def to_dict(self, *, records: bool = False) -> dict[str, Any]:
        """The scores as plain JSON values.

        Args:
            records: Add the per-caption records under ``records``.
        """
        left_out = ("counts", "records")
        scores = {field: getattr(self, field) for field in self.__dataclass_fields__ if field not in left_out}
        if records:
            scores["records"] = [record.to_dict() for record in self.records]
        return scores


def parse_captions(records: Iterable[Mapping[str, Any] | tuple[str, Mapping[str, Any]]]) -> list[Caption]:
    """Captions from records with their image under one of `IMAGE_KEYS` and the text under one of `CAPTION_KEYS`.

    As in POPE's answers, ``text`` is the question where there is a caption under another key.

    Args:
        records: Mappings, or pairs of (where it stands, mapping) as `damro.eval.records.read_records` gives them;
            errors then name the place.

    Raises:
        DataFormatError: When a record has no image or no text, one of the wrong type, or two that may be the caption
            (one may be the reference); or when ``text`` is the same in all records and nothing else is a caption.

    >>> parse_captions([{"image_id": 7, "caption": "A cat."}])
    [Caption(image_id='7', text='A cat.')]
    """
    captions, texts, bare = [], [], 0
    for number, record in enumerate(records, start=1):
        where, fields = record if isinstance(record, tuple) else (f"caption {number}", record)
        if not isinstance(fields, Mapping):
            raise DataFormatError(f"{where}: must be an object with image_id and caption, got {fields!r:.80}")
        image = next((fields[name] for name in IMAGE_KEYS if fields.get(name) is not None), None)
        if image is None:
            raise DataFormatError(
                f"{where}: must name its image under one of {', '.join(IMAGE_KEYS)}, has {', '.join(map(repr, fields))}"
            )
        try:
            key = _caption_key(fields)
            captions.append(Caption(image_key(image), fields[key]))
        except DataFormatError as error:
            raise DataFormatError(f"{where}: {error}") from None
        texts.append(fields.get("text"))
        bare += key == "text"
    if bare and len(texts) > 1 and all(text == texts[0] for text in texts):
        raise DataFormatError(
            f"captions: must differ where they stand under 'text', got {texts[0]!r:.80} in all {len(texts)} records, "
            "which looks like the question; give the captions, or put them under 'caption'"
        )
    return captions


def _caption_key(fields: Mapping[str, Any]) -> str:
    """The key under which a record holds its caption."""
    keys = [key for key in CAPTION_KEYS if key in fields and key != "text"] or ["text"]
    if len(keys) > 1:
        names = " and ".join(map(repr, keys))
        raise DataFormatError(f"must have one caption, got {names}; keep the model's, another may be the reference")
    if not isinstance(fields.get(keys[0]), str):
        has = (
            f"got {fields[keys[0]]!r:.80} under {keys[0]!r}"
            if keys[0] in fields
            else f"has {', '.join(map(repr, fields))}"
        )
        raise DataFormatError(f"must have its text under one of {', '.join(CAPTION_KEYS)}; {has}")
    return keys[0]


def score(
    captions: Iterable[Mapping[str, Any] | tuple[str, Mapping[str, Any]]] | Mapping[ImageId, str],
    objects_by_image: Mapping[ImageId, Collection[str]],
    matcher: str | Matcher = "auto",
    vocabulary: Vocabulary | None = None,
) -> ChairScore:
    """Score captions against the objects of their images.

    Args:
        captions: Records (see `parse_captions`), or a mapping from image id to caption.
        objects_by_image: COCO names of the objects in each image; more images than captions are fine. Synonyms of
            the vocabulary are taken for the name they stand for.
        matcher: A matcher, or the name of one (see `damro.eval.chair.matchers.load_matcher`).
        vocabulary: What names the objects; None takes the shipped one.

    Raises:
        EvalError: When there are no captions, or the matcher cannot be had.
        AlignmentError: When an image has two captions, or a caption's image has no ground truth.
        DataFormatError: When a record is malformed, or an object of the image is not in the vocabulary.

    >>> result = score({1: "A man rides his bike past a bus."}, {1: ["person", "bicycle"]}, matcher="builtin")
    >>> result.chair_i, result.recall, [mention.word for mention in result.records[0].hallucinated]
    (0.3333333333333333, 1.0, ['bus'])
    """
    if isinstance(captions, Mapping):
        parsed = parse_captions({"image_id": image, "caption": text} for image, text in captions.items())
    else:
        parsed = parse_captions(captions)
    objects = align(parsed, objects_by_image, vocabulary)
    truth = [objects[caption.image_id] for caption in parsed]
    if isinstance(matcher, str):
        matcher = load_matcher(matcher, vocabulary)
    return score_readings(parsed, [matcher.read(caption.text) for caption in parsed], truth, matcher=matcher.name)


def score_readings(
    captions: Sequence[Caption],
    readings: Sequence[Reading],
    truth: Sequence[Collection[str]],
    *,
    matcher: str,
) -> ChairScore:
    """Score captions that have been read already. Pure counting.

    Args:
        captions: The captions.
        readings: For each caption, its mentions and its length.
        truth: For each caption, the COCO names of the objects in its image.
        matcher: What found the mentions; reported with the result.

    Raises:
        EvalError: When there are no captions.
        AlignmentError: When the three are not of one length.
    """
    if not captions:
        raise EvalError("captions: at least one is needed to score, got none")
    if not len(captions) == len(readings) == len(truth):
        raise AlignmentError(
            f"captions, readings and truth: must be of one length, got {len(captions)}, {len(readings)}, {len(truth)}"
        )
    records = tuple(map(_score_caption, captions, readings, truth))
    counts = CaptionCounts(*zip(*map(_count, records), strict=True))
    n_hallucinated_captions = sum(n > 0 for n in counts.n_hallucinated)
    return ChairScore(
        chair_s=n_hallucinated_captions / len(records),
        chair_i=_ratio(counts.n_hallucinated, counts.n_mentions),
        chair_i_unique=_ratio(counts.n_unique_hallucinated, counts.n_unique),
        recall=_ratio(counts.n_recalled, counts.n_truth),
        precision=_ratio(counts.n_recalled, counts.n_unique),
        f1=_ratio([2 * sum(counts.n_recalled)], [sum(counts.n_unique) + sum(counts.n_truth)]),
        mean_length=sum(counts.n_words) / len(records),
        mean_tokens=sum(counts.length) / len(records),
        n_captions=len(records),
        n_hallucinated_captions=n_hallucinated_captions,
        n_mentions=sum(counts.n_mentions),
        n_hallucinated=sum(counts.n_hallucinated),
        n_truth=sum(counts.n_truth),
        n_recalled=sum(counts.n_recalled),
        matcher=matcher,
        counts=counts,
        records=records,
    )


def _score_caption(caption: Caption, reading: Reading, truth: Collection[str]) -> CaptionScore:
    return CaptionScore(
        image_id=caption.image_id,
        caption=caption.text,
        mentions=tuple(reading.mentions),
        hallucinated=tuple(mention for mention in reading.mentions if mention.name not in truth),
        truth=frozenset(truth),
        n_words=len(caption.text.split()),
        length=reading.length,
    )


def _count(record: CaptionScore) -> tuple[int, ...]:
    """The values of one caption, in the order of `CaptionCounts`."""
    return (
        len(record.mentions),
        len(record.hallucinated),
        len({mention.name for mention in record.mentions}),
        len({mention.name for mention in record.hallucinated}),
        len(record.recalled),
        len(record.truth),
        record.n_words,
        record.length,
    )


def _ratio(part: Sequence[int], whole: Sequence[int]) -> float | None:
    return sum(part) / sum(whole) if sum(whole) else None


def align(
    captions: Sequence[Caption],
    objects_by_image: Mapping[ImageId, Collection[str]],
    vocabulary: Vocabulary | None = None,
) -> dict[str, frozenset[str]]:
    """Return the objects of each captioned image, by its key.

    Args:
        captions: At most one an image.
        objects_by_image: COCO names of the objects, or their synonyms; more images than captions are fine.
        vocabulary: What names the objects; None takes the shipped one.

    Raises:
        AlignmentError: When an image has two captions, or a caption's image has no ground truth.
        DataFormatError: When an object of a captioned image is not in the vocabulary.
    """
    seen: set[str] = set()
    doubled = []
    for image, _ in captions:
        if image in seen:
            doubled.append(image)
        seen.add(image)
    if doubled:
        raise AlignmentError(f"captions: one per image, got a further one for {name_few(doubled)}; keep one of each")
    objects = normalize_objects(objects_by_image, seen, vocabulary)
    unknown = [image for image, _ in captions if image not in objects]
    if unknown:
        raise AlignmentError(
            f"captions: every image must be in the ground truth, which lacks {name_few(unknown)}; give a ground truth "
            "that has these images"
        )
    return objects
