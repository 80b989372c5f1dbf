"""AMBER's scores: CHAIR, Cover, Hal and Cog of descriptions, accuracy to F1 of yes/no answers, and the AMBER score.

The positive answer is *no*: what precision and recall are about is that a hallucination is seen. Beside our fractions
stand, under ``script``, the figures that ``inference.py`` of github.com/junyangwang0410/AMBER prints: in percent, of
one digit, with 0.001 added to what it divides by and 0.0001 (existence: 0.001) in F1, which is that of the rounded
precision and recall.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from damro.eval.amber.descriptions import Described, describe_objects, extract_nouns, load_similarity
from damro.eval.amber.questions import DIMENSIONS, AmberQuestion, WordLists
from damro.eval.benchmark import Group, Measure, Note, share
from damro.eval.errors import EvalError
from damro.eval.pope.rules import Verdict

if TYPE_CHECKING:
    from damro.eval.statistics import Array

YES_NO = "yes/no"
"""Name of the group of all yes/no questions."""
AMBER = "AMBER"
"""Name of the group that holds the AMBER score."""
COLUMNS = (
    *("nouns", "hallucinated", "objects covered", "objects", "imagined ones named", "imagined ones"),
    *("descriptions with a hallucination", "descriptions"),
)
"""Of descriptions."""
ANSWER_COLUMNS = ("right", "questions", "right noes", "noes said", "noes that are right")
"""Of yes/no answers."""
DESCRIPTIONS: dict[str, Measure] = {
    "chair": Measure(share(lambda m: m[..., 1], lambda m: m[..., 0]), "CHAIR", better="lower", plotted=True),
    "cover": Measure(share(lambda m: m[..., 2], lambda m: m[..., 3]), "Cover", plotted=True),
    "hal": Measure(share(lambda m: m[..., 6], lambda m: m[..., 7]), "Hal", better="lower"),
    "cog": Measure(share(lambda m: m[..., 4], lambda m: m[..., 5]), "Cog", better="lower"),
}
"""Of the columns `COLUMNS`."""
ANSWERS: dict[str, Measure] = {
    "accuracy": Measure(share(lambda m: m[..., 0], lambda m: m[..., 1]), "accuracy"),
    "precision": Measure(share(lambda m: m[..., 2], lambda m: m[..., 3]), "precision"),
    "recall": Measure(share(lambda m: m[..., 2], lambda m: m[..., 4]), "recall"),
    "f1": Measure(
        share(lambda m: 2 * m[..., 2], lambda m: (m[..., 3] + m[..., 4]) * (m[..., 2] > 0)), "F1", plotted=True
    ),
}
"""Of the columns `ANSWER_COLUMNS`."""


class AmberAnswer(NamedTuple):
    """One question of AMBER and what the model said."""

    question: AmberQuestion
    text: str


def read_yes_no(text: str, rule: Literal["exact", "start"] = "exact") -> Verdict:
    """Read a yes/no answer.

    Args:
        text: The answer.
        rule: ``exact`` for the script's, to which "Yes" and "No" are answers and nothing else is; ``start`` takes yes
            or no as the first word, in any case.

    Example:
        >>> [read_yes_no(text) for text in ("Yes", "yes", "No.", "No")]
        ['yes', 'unknown', 'unknown', 'no']
        >>> [read_yes_no(text, "start") for text in ("yes", "No, there is none.", "None", "There is.")]
        ['yes', 'no', 'unknown', 'unknown']
    """
    if rule == "exact":
        return "yes" if text == "Yes" else "no" if text == "No" else "unknown"
    found = re.match(r"\W*(yes|no)\b", text, re.IGNORECASE)
    return "unknown" if found is None else "yes" if found[1].lower() == "yes" else "no"


def score_groups(
    answers: Iterable[AmberAnswer],
    words: WordLists | None,
    *,
    similarity: Literal["exact", "spacy"] = "exact",
    yes_no: Literal["exact", "start"] = "exact",
) -> list[Group]:
    """Return a group for the descriptions, for each kind of questions, dimension and all of them, and the AMBER score.

    The AMBER score is there where descriptions and all three dimensions are.

    Args:
        answers: Each question once.
        words: What descriptions are read with; None where there are none.
        similarity: See `damro.eval.amber.descriptions.load_similarity`.
        yes_no: See `read_yes_no`.

    Raises:
        EvalError: There are no answers, descriptions have no lists of words, or what reads them is not installed.
    """
    by_kind: dict[str, list[AmberAnswer]] = {}
    for answer in answers:
        by_kind.setdefault(answer.question.kind, []).append(answer)
    if not by_kind:
        raise EvalError("answers must hold at least one answer, got none")
    groups = []
    if told := by_kind.pop("generative", None):
        groups.append(_describe(told, words, similarity))
    for dimension, kinds in DIMENSIONS.items():
        found = [kind for kind in kinds if kind in by_kind]
        if len(kinds) > 1:
            groups += [_answer(kind, [kind], by_kind, yes_no) for kind in found]
        if found:
            groups.append(_answer(dimension, found, by_kind, yes_no))
    dimensions = [group.name for group in groups if group.name in DIMENSIONS and group.name != "generative"]
    if len(dimensions) > 1:
        groups.append(_answer(YES_NO, list(by_kind), by_kind, yes_no))
    if told and len(dimensions) == len(DIMENSIONS) - 1:
        groups.append(_total(groups[0], groups[-1]))
    return groups


def _describe(answers: Sequence[AmberAnswer], words: WordLists | None, similarity: Literal["exact", "spacy"]) -> Group:
    if words is None:
        raise EvalError("words must be given to score descriptions, got None: load them with load_words")
    similar = load_similarity(similarity)
    counts: dict[str, tuple[float, ...]] = {}
    for question, text in answers:
        said = describe_objects(extract_nouns(text), question.truth, question.hallu, words, similar)
        before = counts.get(question.image, (0.0,) * len(COLUMNS))
        counts[question.image] = tuple(a + b for a, b in zip(before, _columns(said), strict=True))
    sums = [sum(column) for column in zip(*counts.values(), strict=True)]
    # The script starts every denominator at 0.001 and subtracts the share of clean descriptions from 100.
    script = {
        "CHAIR": _percent(sums[1], sums[0]),
        "Cover": _percent(sums[2], sums[3]),
        "Hal": round(100 - (sums[7] - sums[6]) / (sums[7] + 0.001) * 100, 1),
        "Cog": _percent(sums[4], sums[5]),
    }
    scores: dict[str, Any] = _values(sums, DESCRIPTIONS)
    scores |= {"n_nouns": int(sums[0]), "n_descriptions": len(answers), "script": script}
    return Group("generative", scores, counts, DESCRIPTIONS, notes=(Note("similarity", similarity),))


def _columns(said: Described) -> tuple[float, ...]:
    numbers = (said.nouns, len(said.hallucinated), said.covered, said.objects, said.imagined, said.imaginable)
    return (*map(float, numbers), float(bool(said.hallucinated)), 1.0)


def _answer(
    name: str, kinds: Sequence[str], by_kind: Mapping[str, Sequence[AmberAnswer]], rule: Literal["exact", "start"]
) -> Group:
    counts: dict[str, list[float]] = {}
    unread = 0
    for kind in kinds:
        for question, text in by_kind[kind]:
            verdict = read_yes_no(text, rule)
            unread += verdict == "unknown"
            row = counts.setdefault(question.image, [0.0] * len(ANSWER_COLUMNS))
            row[0] += verdict == question.label
            row[1] += 1
            row[2] += verdict == question.label == "no"
            row[3] += verdict == "no"
            row[4] += question.label == "no"
    sums = [sum(column) for column in zip(*counts.values(), strict=True)]
    # A dimension adds up what the script counts by kind, 0.001 each; all questions it counts once more.
    start = 0.001 * (1 if name == YES_NO else len(DIMENSIONS.get(name, kinds)))
    precision, recall = _percent(sums[2], sums[3], start), _percent(sums[2], sums[4], start)
    small = 0.001 if name == "existence" else 0.0001
    f1 = round(2 * (precision / 100) * (recall / 100) / ((precision / 100) + (recall / 100) + small) * 100, 1)
    script = {"accuracy": _percent(sums[0], sums[1], start), "precision": precision, "recall": recall, "F1": f1}
    scores: dict[str, Any] = {**_values(sums, ANSWERS), "n_questions": int(sums[1]), "unread": unread, "script": script}
    notes = (
        Note("yes-no", rule),
        Note("unread", unread, "neither a yes nor a no to the rule, and counted as wrong", doubtful=unread > 0),
    )
    return Group(name, scores, {image: tuple(row) for image, row in counts.items()}, ANSWERS, notes=notes)


def _total(described: Group, answered: Group) -> Group:
    """The AMBER score, (100 - CHAIR + F1) / 2; a row has the columns of both."""
    width = len(COLUMNS)

    def compute(means: Array) -> Array:
        chair, f1 = DESCRIPTIONS["chair"].compute(means[..., :width]), ANSWERS["f1"].compute(means[..., width:])
        total: Array = 50 * (1 - chair + f1)
        return total

    images = dict.fromkeys([*described.counts, *answered.counts])
    nothing = ((0.0,) * width, (0.0,) * len(ANSWER_COLUMNS))
    counts = {
        image: (*described.counts.get(image, nothing[0]), *answered.counts.get(image, nothing[1])) for image in images
    }
    chair, f1 = described.scores["chair"], answered.scores["f1"]
    value = None if chair is None or f1 is None else 50 * (1 - chair + f1)
    printed = (100 - described.scores["script"]["CHAIR"] + answered.scores["script"]["F1"]) / 2
    notes = (*described.notes, *answered.notes)
    scores = {"amber": value, "script": {"AMBER": round(printed, 2)}}
    return Group(AMBER, scores, counts, {"amber": Measure(compute, "AMBER", unit="", plotted=True)}, notes=notes)


def _values(sums: Sequence[float], measures: Mapping[str, Measure]) -> dict[str, float | None]:
    """The metrics of sums; None where there is nothing to divide by."""
    import numpy as np

    found = {name: float(measure.compute(np.asarray(sums))) for name, measure in measures.items()}
    return {name: value if value == value else None for name, value in found.items()}  # NaN is not equal to itself


def _percent(part: float, whole: float, start: float = 0.001) -> float:
    return round(part / (whole + start) * 100, 1)
