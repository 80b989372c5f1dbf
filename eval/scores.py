"""What runs are worth: every metric with its interval, every comparison paired on the same samples.

A run becomes groups (a POPE split, a CHAIR run, an MME category). A group holds what the scorer says and, image by
image, the counts it is made of: images are what a bootstrap draws, since the questions of one image belong together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from damro.eval.chair import CaptionScore, score_mentions
from damro.eval.chair import parse_captions as parse_caption_records
from damro.eval.chair.coco import ImageId, normalize_objects
from damro.eval.chair.matchers import Matcher
from damro.eval.errors import EvalError
from damro.eval.mme import scoring as mme
from damro.eval.pope import Question, judge, score_pairs
from damro.eval.pope.labels import Labels, correct
from damro.eval.statistics import Array, Interval, Metric, bootstrap_metrics

Records = Mapping[str, Mapping[str, Any]]
"""The records of a run by sample id."""

_OUTCOMES = ("tp", "fp", "tn", "fn", "unread")


def _share(part: Callable[[Array], Array], whole: Callable[[Array], Array]) -> Metric:
    def metric(means: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(part(means) / whole(means))

    return metric


POPE_METRICS: dict[str, Metric] = {
    "accuracy": _share(lambda m: m[..., 0] + m[..., 2], lambda m: m.sum(-1)),
    "precision": _share(lambda m: m[..., 0], lambda m: m[..., 0] + m[..., 1]),
    "recall": _share(lambda m: m[..., 0], lambda m: m[..., 0] + m[..., 3]),
    "f1": _share(lambda m: 2 * m[..., 0], lambda m: 2 * m[..., 0] + m[..., 1] + m[..., 3]),
    "yes_ratio": _share(lambda m: m[..., 0] + m[..., 1], lambda m: m.sum(-1)),
}
"""Of the columns tp, fp, tn, fn, unread. F1 from counts is the harmonic mean of precision and recall."""
CHAIR_METRICS: dict[str, Metric] = {
    "chair_s": _share(lambda m: m[..., 1], lambda m: m[..., 0]),
    "chair_i": _share(lambda m: m[..., 3], lambda m: m[..., 2]),
    "chair_i_unique": _share(lambda m: m[..., 5], lambda m: m[..., 4]),
    "recall": _share(lambda m: m[..., 6], lambda m: m[..., 7]),
    "mean_length": _share(lambda m: m[..., 8], lambda m: m[..., 0]),
}
"""Of the columns captions, hallucinated captions, mentions, hallucinated ones, unique, hallucinated unique, recalled,
present, words."""
MME_COLUMNS = ("right answers", "questions", "images with both right", "images")
MME_METRICS: dict[str, Metric] = {
    "accuracy": _share(lambda m: m[..., 0], lambda m: m[..., 1]),
    "accuracy_plus": _share(lambda m: m[..., 2], lambda m: m[..., 3]),
    "score": _share(lambda m: 100 * (m[..., 0] / m[..., 1] + m[..., 2]), lambda m: m[..., 3]),
}
"""Of the columns `MME_COLUMNS`."""
MME_SUMS = "all categories"
"""Name of the group that holds MME's total and the sum of its hallucination subset."""
LOWER_IS_BETTER = frozenset({"chair_s", "chair_i", "chair_i_unique"})


@dataclass(frozen=True)
class Group:
    """A part of a run that is scored by itself.

    Attributes:
        name: Of the split, category or benchmark.
        scores: What the scorer says, as JSON values.
        counts: By image, the columns that the metrics are made of.
        metrics: Each a function of column means.
        captions: CHAIR: each caption with its mentions.
    """

    name: str
    scores: dict[str, Any]
    counts: dict[str, tuple[float, ...]]
    metrics: Mapping[str, Metric]
    captions: tuple[CaptionScore, ...] = ()

    def intervals(self) -> dict[str, Interval | None]:
        """Return each metric with its 95 % interval."""
        return bootstrap_metrics(list(self.counts.values()), self.metrics)

    def differences(self, baseline: Group) -> dict[str, Interval | None]:
        """Return by how much each metric differs from a baseline's on the same images, with its 95 % interval.

        Raises:
            EvalError: The two are not of the same images.
        """
        if self.counts.keys() != baseline.counts.keys():
            raise EvalError(f"{self.name}: runs must be compared on the same images, got different ones")
        below = [baseline.counts[image] for image in self.counts]
        return bootstrap_metrics(list(self.counts.values()), self.metrics, baseline=below)

    def to_dict(self, baseline: Group | None = None) -> dict[str, Any]:
        """Return scores, intervals under ``ci`` and, with a baseline, differences under ``difference``."""
        result: dict[str, Any] = {**self.scores, "ci": {k: _ends(v) for k, v in self.intervals().items()}}
        if baseline is not None:
            found = self.differences(baseline)
            result["difference"] = {k: None if v is None else [v.estimate, v.low, v.high] for k, v in found.items()}
        return result


@dataclass(frozen=True)
class Scoring:
    """How runs are scored; none of it changes an answer.

    Attributes:
        rules: POPE: the rules that read the answers; the first is the main one.
        labels: POPE: corrected labels.
        matcher: CHAIR: what finds objects in captions; not needed for other benchmarks.
        objects: CHAIR: the objects of each image.
    """

    rules: Sequence[str] = ("pope",)
    labels: Labels | None = None
    matcher: Matcher | None = None
    objects: Mapping[str, Sequence[str]] = field(default_factory=dict)


def answered_in_all(runs: Iterable[Records]) -> set[str]:
    """Return the sample ids that have an answer in every run: what runs can be compared on."""
    sets = [{key for key, fields in records.items() if "error" not in fields} for records in runs]
    return set.intersection(*sets) if sets else set()


def score_run(benchmark: str, records: Records, scoring: Scoring, keep: set[str] | None = None) -> list[Group]:
    """Score the records of a run.

    Args:
        benchmark: "pope", "chair" or "mme".
        records: Failed ones are left out; whoever shows the result says how many.
        scoring: How.
        keep: Only these samples; None keeps all.

    Raises:
        EvalError: No sample has an answer.
    """
    good = {key: fields for key, fields in records.items() if "error" not in fields and (keep is None or key in keep)}
    if not good:
        reasons = [str(fields["error"]) for fields in records.values() if "error" in fields]
        first = f"; the first of {len(reasons)} failed with: {reasons[0]}" if reasons else ""
        raise EvalError(f"a run must have at least one answer to be scored, got none{first}")
    return {"pope": _pope, "chair": _chair, "mme": _mme}[benchmark](good, scoring)


def _pope(records: Records, scoring: Scoring) -> list[Group]:
    splits: dict[str, list[tuple[Question, str]]] = {}
    for key, fields in records.items():
        question = Question(key, fields["image"], fields["question"], fields["label"])
        splits.setdefault(str(fields["split"]), []).append((question, fields["answer"]))
    notes: dict[str, dict[str, Any]] = {}
    if scoring.labels is not None:
        for split, pairs in splits.items():
            corrected = correct([question for question, _ in pairs], scoring.labels)
            texts = {question.question_id: text for question, text in pairs}
            splits[split] = [(question, texts[question.question_id]) for question in corrected.questions]
            notes[split] = {"labels_changed": corrected.changed, "excluded_by_labels": corrected.excluded}
    groups = []
    for rule in scoring.rules:
        suffix = "" if rule == scoring.rules[0] else f" ({rule})"
        parts = [_pope_group(split + suffix, pairs, rule, notes.get(split, {})) for split, pairs in splits.items()]
        if len(parts) > 1:
            together = [pair for pairs in splits.values() for pair in pairs]
            parts.append(_pope_group("all splits" + suffix, together, rule, {}))
        groups += parts
    return groups


def _pope_group(name: str, pairs: Sequence[tuple[Question, str]], rule: str, notes: Mapping[str, Any]) -> Group:
    counts: dict[str, list[float]] = {}
    for question, text in pairs:
        counts.setdefault(question.image, [0.0] * 5)[_OUTCOMES.index(judge(question, text, rule))] += 1
    scores = {**score_pairs(pairs, rule).to_dict(), **notes}
    return Group(name, scores, {image: tuple(columns) for image, columns in counts.items()}, POPE_METRICS)


def _chair(records: Records, scoring: Scoring) -> list[Group]:
    if scoring.matcher is None:
        raise EvalError("captions must be scored with a matcher, got none: see damro.eval.chair.matchers.load_matcher")
    captions = parse_caption_records([{"image_id": f["image_id"], "caption": f["answer"]} for f in records.values()])
    given: dict[ImageId, Sequence[str]] = dict(scoring.objects.items())
    objects = normalize_objects(given, {caption.image_id for caption in captions})
    missing = [caption.image_id for caption in captions if caption.image_id not in objects]
    if missing:
        raise EvalError(f"objects must hold every captioned image, got none for {len(missing)} ({missing[0]}, ...)")
    mentions = [scoring.matcher.find(caption.text) for caption in captions]
    truth = [objects[caption.image_id] for caption in captions]
    result = score_mentions(captions, mentions, truth, matcher=scoring.matcher.name)
    counts = {}
    for caption, row in zip(captions, zip(*result.counts, strict=True), strict=True):
        n_mentions, n_hallucinated, *others = map(float, row)
        counts[caption.image_id] = (1.0, float(n_hallucinated > 0), n_mentions, n_hallucinated, *others)
    return [Group("captions", result.to_dict(), counts, CHAIR_METRICS, result.records)]


def _mme(records: Records, scoring: Scoring) -> list[Group]:
    answers: dict[str, list[mme.MMEAnswer]] = {}
    for fields in records.values():
        asked = mme.MMEAnswer(
            fields["category"], fields["name"], fields["question"], fields["label"], fields["answer"].replace("\t", " ")
        )
        answers.setdefault(asked.category, []).append(asked)
    groups: list[Group] = []
    scored: list[mme.MMEAnswer] = []
    for category, of_category in answers.items():
        # One of two questions failed: the image cannot count, and is left out with both.
        asked_of = {name: sum(a.image == name for a in of_category) for name in {a.image for a in of_category}}
        whole = [answer for answer in of_category if asked_of[answer.image] == 2]
        if whole:
            groups.append(_mme_group(category, whole))
            scored += whole
    if not groups:
        raise EvalError("mme must have at least one image with both its questions answered, got none")
    return [*groups, _mme_sums(groups, mme.score(scored))] if len(groups) > 1 else groups


def _mme_group(category: str, answers: Sequence[mme.MMEAnswer]) -> Group:
    result = mme.score(answers)
    counts: dict[str, list[float]] = {}
    for answer in answers:
        columns = counts.setdefault(answer.image, [0.0, 0.0, 0.0, 1.0])
        columns[0] += mme.parse_answer(answer.answer) == answer.gold
        columns[1] += 1
        columns[2] = float(columns[0] == 2)
    scores = result.to_dict()["categories"][category]
    return Group(category, scores, {image: tuple(columns) for image, columns in counts.items()}, MME_METRICS)


def _mme_sums(groups: Sequence[Group], result: mme.MMEScore) -> Group:
    """The sums over categories, as a group of all images: a row has the columns of every category, all but one zero."""
    scores = {"total": result.total}
    metrics = {"total": _mme_sum(range(len(groups)))}
    if result.hallucination is not None:
        scores["hallucination"] = result.hallucination
        metrics["hallucination"] = _mme_sum([n for n, group in enumerate(groups) if group.name in mme.HALLUCINATION])
    width = len(MME_COLUMNS) * len(groups)
    counts = {}
    for number, group in enumerate(groups):
        for image, columns in group.counts.items():
            before = (0.0,) * (len(MME_COLUMNS) * number)
            counts[f"{group.name}/{image}"] = (*before, *columns, *(0.0,) * (width - len(before) - len(columns)))
    return Group(MME_SUMS, scores, counts, metrics)


def _mme_sum(places: Sequence[int]) -> Metric:
    def metric(means: Array) -> Array:
        width = len(MME_COLUMNS)
        parts = [means[..., width * n : width * (n + 1)] for n in places]
        shares = [MME_METRICS[name](part) for part in parts for name in ("accuracy", "accuracy_plus")]
        return np.asarray(100 * sum(shares))

    return metric


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]
