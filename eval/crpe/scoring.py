"""CRPE's scores (Wang et al., The All-Seeing Project V2, ECCV 2024, arXiv 2402.19474), by category.

*accuracy* is that of ``all-seeing-v2/llava/eval/eval_crpe.py`` of repository OpenGVLab/all-seeing: of four lines of a
category in a row, which are one question with its options in four orders, all must be right. That script takes an
answer longer than one letter for wrong, "A." too (rule `exact` of `damro.eval.choices`), and groups answers as they
stand in the file of answers; here the file of questions says which belong together. *single* is the share of right
lines. VLMEvalKit counts as *accuracy* does since September 2025 (``CRPE`` of ``vlmeval/dataset/image_vqa.py``), reading
the first letter of an answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from damro.eval.benchmark import Group, Measure, Note, share
from damro.eval.choices import parse_options, read_choice
from damro.eval.crpe.questions import CATEGORIES, ORDERS
from damro.eval.errors import EvalError

COLUMNS = ("questions right in all orders", "questions", "right lines", "lines")
MEASURES: dict[str, Measure] = {
    "accuracy": Measure(share(lambda m: m[..., 0], lambda m: m[..., 1]), "accuracy", plotted=True),
    "single": Measure(share(lambda m: m[..., 2], lambda m: m[..., 3]), "single"),
}
"""Of the columns `COLUMNS`."""
ALL = "all categories"
"""Name of the group of all questions."""


class CrpeAnswer(NamedTuple):
    """What a model said to one line.

    Attributes:
        category: Of the line.
        circle: The question that the line is one order of.
        image: Of the line.
        prompt: With the options.
        gold: The right letter.
        text: The model's answer.
    """

    category: str
    circle: str
    image: str
    prompt: str
    gold: str
    text: str


def score_groups(given: Iterable[CrpeAnswer], rule: str = "exact") -> list[Group]:
    """Return a group a category and, of several, one of all. Images are what a bootstrap draws.

    A question that lacks the answer to one of its orders is left out, and told.

    Args:
        given: The answers.
        rule: One of `damro.eval.choices.CHOICE_RULES`.

    Raises:
        EvalError: There are no answers, the rule is unknown, or no question has all its answers.
    """
    answers = list(given)
    sizes = Counter((one.category, one.circle) for one in answers)
    whole = [one for one in answers if sizes[one.category, one.circle] == ORDERS]
    if not whole:
        raise EvalError(
            f"answers must hold a question with all its {ORDERS} orders, got {len(answers)} answers and none of them"
        )
    left_out = Counter(category for (category, _), size in sizes.items() if size != ORDERS)
    names = sorted({one.category for one in whole}, key=_place)
    groups = [_group(name, [one for one in whole if one.category == name], rule, left_out[name]) for name in names]
    return [*groups, _group(ALL, whole, rule, left_out.total())] if len(groups) > 1 else groups


def _place(category: str) -> tuple[int, str]:
    return (CATEGORIES.index(category) if category in CATEGORIES else len(CATEGORIES), category)


def _group(name: str, answers: Sequence[CrpeAnswer], rule: str, left_out: int) -> Group:
    counts: dict[str, list[float]] = {}
    right: Counter[tuple[str, str]] = Counter()
    image_of: dict[tuple[str, str], str] = {}
    unparsed = 0
    for answer in answers:
        said = read_choice(answer.text, parse_options(answer.prompt), rule)
        unparsed += said is None
        row = counts.setdefault(answer.image, [0.0] * len(COLUMNS))
        row[2] += said == answer.gold
        row[3] += 1
        circle = (answer.category, answer.circle)
        right[circle] += said == answer.gold
        image_of.setdefault(circle, answer.image)
    for circle, image in image_of.items():
        counts[image][0] += right[circle] == ORDERS
        counts[image][1] += 1
    totals = [int(sum(column)) for column in zip(*counts.values(), strict=True)]
    scores = {
        "accuracy": totals[0] / totals[1],
        "single": totals[2] / totals[3],
        "n": totals[1],
        "lines": totals[3],
        "unparsed": unparsed,
    }
    notes = [
        Note("choice", rule),
        Note("questions", totals[1]),
        Note("unparsed", unparsed, "chose no option by this rule, and counted as not right", unparsed > 0),
    ]
    if left_out:
        notes.append(Note("left out", left_out, "questions without an answer to one of their orders", doubtful=True))
    return Group(name, scores, {key: tuple(row) for key, row in counts.items()}, MEASURES, notes=tuple(notes))
