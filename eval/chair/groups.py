"""CHAIR's scores with what intervals are made of: a group of captions, whole or at equal length."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from damro.eval.benchmark import Group, Measure, Note, share
from damro.eval.chair.matchers import Reading
from damro.eval.chair.scoring import Caption, score_readings
from damro.eval.chair.texts import cut_reading, drop_cut_sentence

CAPTIONS, EQUAL_LENGTH = "captions", "captions at equal length"
"""Names of groups."""

MEASURES: dict[str, Measure] = {
    "chair_s": Measure(share(lambda m: m[..., 1], lambda m: m[..., 0]), "CHAIRs", better="lower", plotted=True),
    "chair_i": Measure(share(lambda m: m[..., 3], lambda m: m[..., 2]), "CHAIRi", better="lower", plotted=True),
    "chair_i_unique": Measure(share(lambda m: m[..., 5], lambda m: m[..., 4]), "CHAIRi unique", better="lower"),
    "recall": Measure(share(lambda m: m[..., 6], lambda m: m[..., 7]), "recall", plotted=True),
    "precision": Measure(share(lambda m: m[..., 6], lambda m: m[..., 4]), "precision"),
    "f1": Measure(share(lambda m: 2 * m[..., 6], lambda m: m[..., 4] + m[..., 7]), "F1"),
    "mean_length": Measure(share(lambda m: m[..., 8], lambda m: m[..., 0]), "words", unit="", better=None),
    "mean_tokens": Measure(share(lambda m: m[..., 9], lambda m: m[..., 0]), "Len", unit="", better=None),
}
"""Of the columns captions, hallucinated captions, mentions, hallucinated ones, unique, hallucinated unique, recalled,
present, words, tokens."""


class ReadCaptions(NamedTuple):
    """Captions and what a matcher reads in them.

    Attributes:
        captions: One an image.
        readings: Of each caption.
        matcher: Its name.
    """

    captions: Sequence[Caption]
    readings: Sequence[Reading]
    matcher: str


def drop_cut_sentences(captions: Sequence[Caption]) -> tuple[list[Caption], Note]:
    """Return captions without their cut last sentences, and how many had one."""
    whole = [caption._replace(text=drop_cut_sentence(caption.text)) for caption in captions]
    changed = sum(before != after for before, after in zip(captions, whole, strict=True))
    return whole, Note("cut sentences dropped", changed)


def cut_captions(read: ReadCaptions, limits: Mapping[str, int]) -> ReadCaptions:
    """Return captions read up to a number of tokens.

    Args:
        read: Of whole captions.
        limits: By image; captions of other images stay whole.
    """
    readings = [
        cut_reading(reading, limits.get(caption.image_id, reading.n_tokens))
        for caption, reading in zip(read.captions, read.readings, strict=True)
    ]
    return read._replace(readings=readings)


def score_group(
    read: ReadCaptions,
    objects: Mapping[str, Collection[str]],
    notes: Sequence[Note] = (),
    *,
    name: str = CAPTIONS,
    beside: bool = False,
) -> Group:
    """Score captions as one group.

    Args:
        read: The captions.
        objects: By image, the names of what is in it; of every captioned one.
        notes: Shown behind the matcher and the number of captions.
        name: Of the group.
        beside: Whether this is another reading of captions that an earlier group has already.

    Raises:
        EvalError: There are no captions.
    """
    truth = [objects[caption.image_id] for caption in read.captions]
    result = score_readings(read.captions, read.readings, truth, matcher=read.matcher)
    counts = {}
    for caption, row in zip(read.captions, zip(*result.counts, strict=True), strict=True):
        n_mentions, n_hallucinated, *others = map(float, row)
        counts[caption.image_id] = (1.0, float(n_hallucinated > 0), n_mentions, n_hallucinated, *others)
    told = (Note("matcher", read.matcher), Note("captions", len(read.captions)), *notes)
    captions = () if beside else result.records
    return Group(name, result.to_dict(), counts, MEASURES, captions, told, beside)
