"""MME as a benchmark: the questions of its folder."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from damro.eval.benchmark import DataRequest, Group, Measure, Note, Records, Scoring, YesNoBenchmark, share
from damro.eval.errors import EvalError
from damro.eval.mme.questions import load_questions
from damro.eval.mme.scoring import SUMS, MMEAnswer, MMEScore, parse_answer, score
from damro.eval.mme.table import load_table
from damro.eval.samples import Dataset, ImageSource, Sample, check_samples, digest_of, folder_opener
from damro.eval.thresholds import WIDTH, best_threshold, column_of, p_yes_of, threshold_measures

if TYPE_CHECKING:
    from damro.eval.statistics import Array, Metric

COLUMNS = ("right answers", "questions", "images with both right", "images")
MEASURES: dict[str, Measure] = {
    "accuracy": Measure(share(lambda m: m[..., 0], lambda m: m[..., 1]), "accuracy"),
    "accuracy_plus": Measure(share(lambda m: m[..., 2], lambda m: m[..., 3]), "accuracy+"),
    "score": Measure(
        share(lambda m: 100 * (m[..., 0] / m[..., 1] + m[..., 2]), lambda m: m[..., 3]), "score", unit="", plotted=True
    ),
}
"""Of the columns `COLUMNS`."""
SHARE_MEASURES: dict[str, Measure] = {**MEASURES, **threshold_measures(len(COLUMNS), lambda m: m[..., 1])}
"""Where P(yes) is read; of the columns `COLUMNS` and those of `damro.eval.thresholds`."""
ALL = "all categories"
"""Name of the group that holds the total and the sums of `damro.eval.mme.scoring.SUMS`."""


@dataclass(frozen=True)
class Mme(YesNoBenchmark):
    """MME: two yes/no questions an image, by category (Fu et al. 2023). Needs the benchmark's folder.

    Attributes:
        split: categories, such as existence; none for every one that is there.
        read: text for the answers that are generated; logits for P(yes) from the scores of the first token, where the
            likelier word is the answer.
    """

    name: ClassVar = "mme"
    source: ClassVar = "MME, arXiv 2306.13394"
    prompt: ClassVar = "{question}"  # the questions say themselves how to answer
    max_new_tokens: ClassVar = 64
    task: ClassVar = "mme"
    scoring: ClassVar = Scoring
    recorded: ClassVar = ("answer", "category", "name", "question", "label")
    command: ClassVar = "damro.eval.mme.command"

    split: tuple[str, ...] = ()
    data: str | None = None
    columns: tuple[str, ...] = ()
    read: Literal["text", "logits"] = "text"

    def load(self, request: DataRequest) -> Dataset:
        """See :meth:`damro.eval.benchmark.Benchmark.load`."""
        opener: ImageSource
        source: dict[str, Any] = {"read": self.read} if self.reads_logits else {}
        if self.data:
            questions, opener, source["table"] = load_table(self.data, self.columns, self.split, request.images)
        elif request.images is None:
            raise EvalError(
                "mme needs the benchmark's folder (a folder a category, with images and questions): give --images, or "
                "--data with a table such as hf:lmms-lab/MME"
            )
        else:
            opener = folder_opener(request.images)
            questions = load_questions(request.images, self.split or None)
        samples = [
            Sample(
                f"{asked.category}/{asked.name}/{asked.number}",
                asked.image,
                self.ask(request, asked.question),
                {"category": asked.category, "name": asked.name, "question": asked.question, "label": asked.gold},
            )
            for asked in questions
        ]
        samples = samples[: request.limit]
        check_samples(samples)
        data = {"questions": {"n": len(samples), "sha256": digest_of([list(asked) for asked in questions])}}
        return Dataset(samples, opener, {**data, **source})

    def score(self, records: Records, scoring: Scoring) -> list[Group]:
        """A group a category and, of several, their sums."""
        answers = []
        for key, fields in records.items():
            answer = MMEAnswer(*(fields[name] for name in ("category", "name", "question", "label", "answer")))
            answers.append(answer._replace(p_yes=p_yes_of(fields, key)) if self.reads_logits else answer)
        return score_groups(answers, shares=self.reads_logits)


def score_groups(given: Iterable[MMEAnswer], *, shares: bool = False) -> list[Group]:
    """Return a group a category and, of several, one of their sums. Images with one answer are left out, and told.

    Args:
        given: The answers.
        shares: Whether P(yes) was read, so that AUC and what a threshold could do are told, too.

    Raises:
        EvalError: No image has both its questions answered.
    """
    answers: dict[str, list[MMEAnswer]] = {}
    for asked in given:
        answers.setdefault(asked.category, []).append(asked)
    groups: list[Group] = []
    scored: list[MMEAnswer] = []
    for category, of_category in answers.items():
        # One of two questions failed: the image cannot count, and is left out with both.
        asked_of = Counter(answer.image for answer in of_category)
        whole = [answer for answer in of_category if asked_of[answer.image] == 2]
        if whole:
            halves = sum(count != 2 for count in asked_of.values())
            groups.append(_group(category, whole, halves, shares=shares))
            scored += whole
    if not groups:
        raise EvalError("mme must have at least one image with both its questions answered, got none")
    return [*groups, _sums(groups, score(scored))] if len(groups) > 1 else groups


def _group(category: str, answers: Sequence[MMEAnswer], halves: int, *, shares: bool) -> Group:
    result = score(answers)
    counts: dict[str, list[float]] = {}
    for answer in answers:
        columns = counts.setdefault(answer.image, [0.0, 0.0, 0.0, 1.0, *([0.0] * WIDTH if shares else [])])
        if answer.p_yes is not None:
            columns[len(COLUMNS) + column_of(answer.gold, answer.p_yes)] += 1
        columns[0] += parse_answer(answer.answer) == answer.gold
        columns[1] += 1
        columns[2] = float(columns[0] == 2)
    scores = result.to_dict()["categories"][category]
    notes: tuple[Note, ...] = (Note("questions", scores["n_questions"]), _other(scores["other"]))
    if halves:
        notes += (
            Note("halves", halves, "images with one of their two questions answered, and left out", doubtful=True),
        )
    rows = {image: tuple(columns) for image, columns in counts.items()}
    if not shares:
        return Group(category, scores, rows, MEASURES, notes=notes)
    threshold, found = _threshold(list(rows.values()))
    scores |= {**found, "threshold": threshold}
    notes = (Note("read", "logits"), *notes, Note("best threshold", f"{threshold:.3g}"))
    return Group(category, scores, rows, SHARE_MEASURES, notes=notes)


def _threshold(rows: Sequence[tuple[float, ...]]) -> tuple[float, dict[str, float | None]]:
    """The best threshold of P(yes), and what the measures are that depend on it alone."""
    import numpy as np

    means = np.mean(rows, axis=0)
    values = {name: float(SHARE_MEASURES[name].compute(means)) for name in SHARE_MEASURES if name not in MEASURES}
    finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
    return best_threshold(means, len(COLUMNS)), finite


def _other(count: int) -> Note:
    return Note("other", count, "read as neither a yes nor a no, and counted as wrong", doubtful=count > 0)


def _sums(groups: Sequence[Group], result: MMEScore) -> Group:
    """The sums over categories, as a group of all images: a row has the columns of every category, all but one zero."""
    scores = {"total": result.total}
    measures = {"total": Measure(_sum(range(len(groups))), "total", unit="", plotted=True)}
    for name, parts in SUMS.items():
        value = getattr(result, name)
        if value is not None:
            scores[name] = value
            places = [n for n, group in enumerate(groups) if group.name in parts]
            measures[name] = Measure(_sum(places), name, unit="")
    width = len(COLUMNS) * len(groups)
    counts = {}
    for number, group in enumerate(groups):
        for image, columns in group.counts.items():
            before = (0.0,) * (len(COLUMNS) * number)
            own = columns[: len(COLUMNS)]
            counts[f"{group.name}/{image}"] = (*before, *own, *(0.0,) * (width - len(before) - len(own)))
    other = sum(category.other for category in result.categories.values())
    return Group(ALL, scores, counts, measures, notes=(_other(other),))


def _sum(places: Sequence[int]) -> Metric:
    def metric(means: Array) -> Array:
        width = len(COLUMNS)
        parts = [means[..., width * n : width * (n + 1)] for n in places]
        shares = [MEASURES[name].compute(part) for part in parts for name in ("accuracy", "accuracy_plus")]
        total: Array = 100 * sum(shares)  # type: ignore[assignment]
        return total

    return metric
