"""Object HalBench's scores (Yu et al., RLHF-V, CVPR 2024, arXiv 2312.00849), CHAIR's on objects that a judge extracts.

As in ``eval_gpt_obj_halbench.py`` and ``summarize_gpt_obj_halbench_review.py`` of repository RLHF-V/RLHF-V:

- *response*: of the descriptions that name an object, the share with a hallucinated one ("Response Hall",
  ``CHAIRs_refine``);
- *mention*: the share of mentions that are hallucinated ("Object Hall", ``CHAIRi``);
- *chair_s*: of all descriptions, the share with a hallucinated object (``CHAIRs``);
- *recall*: the share of the images' objects that are named;
- *words*: between spaces ("Average Length").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from damro.eval.benchmark import Group, Measure, Note, share
from damro.eval.errors import EvalError

COLUMNS = (
    *("descriptions", "with an object", "with a hallucinated one", "mentions", "hallucinated ones"),
    *("objects named", "objects in the images", "words"),
)
MEASURES: dict[str, Measure] = {
    "response": Measure(share(lambda m: m[..., 2], lambda m: m[..., 1]), "response", better="lower", plotted=True),
    "mention": Measure(share(lambda m: m[..., 4], lambda m: m[..., 3]), "mention", better="lower", plotted=True),
    "chair_s": Measure(share(lambda m: m[..., 2], lambda m: m[..., 0]), "CHAIRs", better="lower"),
    "recall": Measure(share(lambda m: m[..., 5], lambda m: m[..., 6]), "recall", plotted=True),
    "mean_length": Measure(share(lambda m: m[..., 7], lambda m: m[..., 0]), "words", unit="", better=None),
}
"""Of the columns `COLUMNS`."""
DESCRIPTIONS = "descriptions"
"""Name of the group."""


class ReadAnswer(NamedTuple):
    """A description with the objects that were found in it.

    Attributes:
        image: The image's key.
        text: The description.
        objects: The name of each mention's object; None where the judge's reply was of no use.
        truth: The objects of the image.
    """

    image: str
    text: str
    objects: Sequence[str] | None
    truth: frozenset[str]


def score_groups(read: Sequence[ReadAnswer], notes: Iterable[Note] = ()) -> list[Group]:
    """Return the one group of all descriptions. Images are what a bootstrap draws.

    A description whose judging failed is left out, and told.

    Raises:
        EvalError: There are no descriptions, or no judging succeeded.
    """
    counts = {one.image: _count(one) for one in read}
    failed = sum(one.objects is None for one in read)
    if failed == len(read):
        raise EvalError(f"answers must hold at least one description that was judged, got none of {len(read)}")
    sums = [sum(column) for column in zip(*counts.values(), strict=True)]
    scores = _values(sums)
    scores |= dict(zip(("n", "n_with_object", "n_hallucinated", "n_mentions"), map(int, sums), strict=False))
    size = Note(DESCRIPTIONS, len(read))
    told = Note("not judged", failed, "descriptions of which no list of objects came, and left out", failed > 0)
    return [Group(DESCRIPTIONS, scores, counts, MEASURES, notes=(*notes, size, told))]


def _count(one: ReadAnswer) -> tuple[float, ...]:
    if one.objects is None:  # a row of zeros changes no sum, and runs keep the same images
        return (0.0,) * len(COLUMNS)
    wrong = [name for name in one.objects if name not in one.truth]
    right = one.truth.intersection(one.objects)
    mentions, length = len(one.objects), len(one.text.strip().split(" "))
    numbers = (1, mentions > 0, bool(wrong), mentions, len(wrong), len(right), len(one.truth), length)
    return tuple(map(float, numbers))


def _values(sums: Sequence[float]) -> dict[str, Any]:
    """The metrics of sums; None where there is nothing to divide by."""
    import numpy as np

    found = {name: float(measure.compute(np.asarray(sums))) for name, measure in MEASURES.items()}
    return {name: value if value == value else None for name, value in found.items()}  # NaN is not equal to itself
