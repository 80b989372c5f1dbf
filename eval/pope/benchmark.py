"""POPE as a benchmark: questions of the shipped splits, of a file, or about the embedded scenes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from damro.eval.benchmark import Benchmark, DataRequest, Group, Measure, Records, Scoring, share
from damro.eval.errors import EvalError
from damro.eval.pope.builder import build
from damro.eval.pope.labels import correct, load_labels
from damro.eval.pope.questions import Question, load_questions, to_question
from damro.eval.pope.rules import RULES
from damro.eval.pope.scoring import judge, score_pairs
from damro.eval.records import digest_of_file
from damro.eval.resources import POPE_SPLITS, pope_questions_path
from damro.eval.samples import (
    Dataset,
    Sample,
    check_samples,
    digest_of,
    folder_opener,
    need_folder,
    open_scene,
    scene_objects,
)

ALL = "all"
"""Every split, but for the older release of coco/random."""
PAPER_SPLITS = ("coco/random", "coco/popular", "coco/adversarial")
"""What the DAMRO paper averages over."""
_SCENE_SPLITS = ("random", "popular", "adversarial")
_OUTCOMES = ("tp", "fp", "tn", "fn", "unread")

MEASURES: dict[str, Measure] = {
    "accuracy": Measure(share(lambda m: m[..., 0] + m[..., 2], lambda m: m.sum(-1)), "accuracy", plotted=True),
    "precision": Measure(share(lambda m: m[..., 0], lambda m: m[..., 0] + m[..., 1]), "precision"),
    "recall": Measure(share(lambda m: m[..., 0], lambda m: m[..., 0] + m[..., 3]), "recall"),
    "f1": Measure(share(lambda m: 2 * m[..., 0], lambda m: 2 * m[..., 0] + m[..., 1] + m[..., 3]), "F1", plotted=True),
    "yes_ratio": Measure(share(lambda m: m[..., 0] + m[..., 1], lambda m: m.sum(-1)), "yes", better=None, plotted=True),
}
"""Of the columns tp, fp, tn, fn, unread. F1 from counts is the harmonic mean of precision and recall."""


@dataclass(frozen=True)
class PopeScoring(Scoring):
    """How POPE's answers are read.

    Attributes:
        rules: the rules that read the answers, the first is the main one; all for every one.
        labels: a file of corrected labels, with exclusions.
        labels_complete: exclude what the file of labels does not name (RePOPE).
    """

    rules: tuple[Literal["pope", "opera", "vcd", "lmms", "vlmeval", "all"], ...] = ("pope",)
    labels: str | None = None
    labels_complete: bool = False

    @property
    def named_rules(self) -> tuple[str, ...]:
        """The rules, "all" spelled out."""
        return RULES if ALL in self.rules else self.rules


@dataclass(frozen=True)
class Pope(Benchmark):
    """POPE: yes/no questions about objects that are there and objects that are not (Li et al., EMNLP 2023).

    Attributes:
        split: the shipped questions, such as coco/random; all for the nine splits. Embedded scenes have random,
            popular and adversarial.
        questions: a file of questions instead, about any folder of images.
    """

    name: ClassVar = "pope"
    source: ClassVar = "POPE, EMNLP 2023, arXiv 2305.10355"
    prompt: ClassVar = "{question} Please answer this question with one word."
    max_new_tokens: ClassVar = 64
    task: ClassVar = "pope"
    scoring: ClassVar = PopeScoring
    command: ClassVar = "damro.eval.pope.command"

    split: tuple[str, ...] = ()
    questions: str | None = None

    def load(self, request: DataRequest) -> Dataset:
        """See :meth:`damro.eval.benchmark.Benchmark.load`."""
        if self.questions and self.split:
            raise EvalError(
                f"--split must be left out with --questions, got {' '.join(self.split)!r}: give one of them"
            )
        if request.scenes is not None:
            return self._of_scenes(request, request.scenes)
        opener = folder_opener(need_folder(request.images, self.name))
        if self.questions:
            files = [(Path(self.questions).name, Path(self.questions))]
        else:
            files = [(split, pope_questions_path(split)) for split in self._splits() or PAPER_SPLITS]
        questions = [(split, question) for split, path in files for question in load_questions(path)[: request.limit]]
        data = {"questions": {split: {"file": path.name, "sha256": digest_of_file(path)} for split, path in files}}
        return Dataset(self._samples(request, questions), opener, data)

    def score(self, records: Records, scoring: PopeScoring) -> list[Group]:
        """A group a split and, of several, all together; for every rule."""
        splits: dict[str, list[tuple[Question, str]]] = {}
        for key, fields in records.items():
            question = Question(key, fields["image"], fields["question"], fields["label"])
            splits.setdefault(str(fields["split"]), []).append((question, fields["answer"]))
        notes: dict[str, dict[str, Any]] = {}
        if scoring.labels is not None:
            labels = load_labels(scoring.labels, complete=scoring.labels_complete)
            for split, pairs in splits.items():
                corrected = correct([question for question, _ in pairs], labels)
                texts = {question.question_id: text for question, text in pairs}
                splits[split] = [(question, texts[question.question_id]) for question in corrected.questions]
                notes[split] = {"labels_changed": corrected.changed, "excluded_by_labels": corrected.excluded}
        groups = []
        for rule in scoring.named_rules:
            suffix = "" if rule == scoring.named_rules[0] else f" ({rule})"
            parts = [_group(split + suffix, pairs, rule, notes.get(split, {})) for split, pairs in splits.items()]
            if len(parts) > 1:
                together = [pair for pairs in splits.values() for pair in pairs]
                parts.append(_group("all splits" + suffix, together, rule, {}))
            groups += parts
        return groups

    def paper_differences(self, request: DataRequest) -> list[str]:
        """See :meth:`damro.eval.benchmark.Benchmark.paper_differences`."""
        if (self._splits() or PAPER_SPLITS) == PAPER_SPLITS:
            return []
        return [f"splits: {', '.join(self._splits())}; the paper averages {', '.join(PAPER_SPLITS)}"]

    def _splits(self) -> tuple[str, ...]:
        if self.split == (ALL,):
            return tuple(split for split in POPE_SPLITS if split != "coco/random_2910")
        return self.split

    def _samples(self, request: DataRequest, questions: Iterable[tuple[str, Question]]) -> list[Sample]:
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
            sample = Sample(f"{split}/{identifier}", question.image, self.ask(request, question.text), fields)
            by_image.setdefault(question.image, []).append(sample)
        samples = [sample for of_image in by_image.values() for sample in of_image]
        check_samples(samples)
        return samples

    def _of_scenes(self, request: DataRequest, scenes: int) -> Dataset:
        self.check_scenes_heed("split")
        splits = [name.removeprefix("tiny/") for name in (_SCENE_SPLITS if self.split in ((), (ALL,)) else self.split)]
        wrong = [name for name in splits if name not in _SCENE_SPLITS]
        if wrong:
            raise EvalError(
                f"--split must be of {', '.join(_SCENE_SPLITS)} for the embedded scenes, got {wrong[0]!r}: leave it "
                "out for all three, or give --model and --images for the shipped questions"
            )
        objects = scene_objects(scenes)
        eligible = sum(len(names) >= 3 for names in objects.values())
        questions = []
        for split in splits:
            records = build(objects, split, images=eligible, per_image=3, seed=request.seed)[: request.limit]
            questions += [(f"tiny/{split}", to_question(one, f"question {one['question_id']}")) for one in records]
        data = {"questions": {"builder": "eval.pope.build", "scenes": scenes, "sha256": digest_of(objects)}}
        return Dataset(self._samples(request, questions), open_scene, data)


def _group(name: str, pairs: Sequence[tuple[Question, str]], rule: str, notes: Mapping[str, Any]) -> Group:
    counts: dict[str, list[float]] = {}
    for question, text in pairs:
        counts.setdefault(question.image, [0.0] * 5)[_OUTCOMES.index(judge(question, text, rule))] += 1
    scores = {**score_pairs(pairs, rule).to_dict(), **notes}
    return Group(name, scores, {image: tuple(columns) for image, columns in counts.items()}, MEASURES)
