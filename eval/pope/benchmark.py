"""POPE as a benchmark: questions of the shipped splits, of a file, or about the embedded scenes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from damro.eval.benchmark import DataRequest, Difference, Group, Records, Scoring, YesNoBenchmark
from damro.eval.errors import EvalError
from damro.eval.pope.builder import build
from damro.eval.pope.groups import mean_group, score_group
from damro.eval.pope.labels import correct_pairs, load_labels
from damro.eval.pope.probability import score_shares
from damro.eval.pope.questions import Question, load_questions, to_question
from damro.eval.pope.rules import RULES
from damro.eval.pope.table import load_table
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
from damro.eval.thresholds import p_yes_of

T = TypeVar("T")
ALL = "all"
"""Every split, but for the older release of coco/random."""
PAPER_SPLITS = ("coco/random", "coco/popular", "coco/adversarial")
"""What the DAMRO paper averages over."""
PAPER_QUESTIONS = 9000
"""How many these are together."""
PAPER_RULE = "vcd"
"""How the released code of DAMRO reads answers (``evaluation/eval_pope/eval_pope.py``)."""
_SCENE_SPLITS = ("random", "popular", "adversarial")


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

    def __post_init__(self) -> None:
        """Check the parameters, and that a file is there to be complete."""
        super().__post_init__()
        if self.labels_complete and self.labels is None:
            raise EvalError("--labels-complete must come with --labels, got no file: give it, or leave this out")

    @property
    def named_rules(self) -> tuple[str, ...]:
        """The rules, "all" spelled out."""
        return RULES if ALL in self.rules else self.rules


@dataclass(frozen=True)
class Pope(YesNoBenchmark):
    """POPE: yes/no questions about objects that are there and objects that are not (Li et al., EMNLP 2023).

    Attributes:
        split: the shipped questions, such as coco/random; all for the nine splits. Embedded scenes have random,
            popular and adversarial.
        questions: a file of questions instead, about any folder of images.
        read: text for the answers that are generated and read by a rule; logits for P(yes) from the scores of the first
            token, which needs no rule.
    """

    name: ClassVar = "pope"
    source: ClassVar = "POPE, EMNLP 2023, arXiv 2305.10355"
    prompt: ClassVar = "{question} Please answer this question with one word."
    max_new_tokens: ClassVar = 64
    task: ClassVar = "pope"
    scoring: ClassVar = PopeScoring
    recorded: ClassVar = ("answer", "split", "image", "question", "label")
    command: ClassVar = "damro.eval.pope.command"

    split: tuple[str, ...] = ()
    questions: str | None = None
    data: str | None = None
    columns: tuple[str, ...] = ()
    read: Literal["text", "logits"] = "text"

    def load(self, request: DataRequest) -> Dataset:
        """See :meth:`damro.eval.benchmark.Benchmark.load`."""
        dataset = self._load(request)
        return replace(dataset, data={**dataset.data, "read": self.read}) if self.reads_logits else dataset

    def _load(self, request: DataRequest) -> Dataset:
        if self.data and self.questions:
            raise EvalError(f"--questions must be left out with --data, got {self.questions!r}: give one of them")
        if self.data:
            splits = () if self.split == (ALL,) else self.split
            table = load_table(self.data, self.columns, splits, request.images, request.limit)
            return Dataset(self._samples(request, table.questions), table.open_image, {"table": table.source})
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
        """A group a split and, of several, the mean over them and all together; for every rule, or by P(yes)."""
        if self.reads_logits:
            if scoring.rules != PopeScoring.rules:
                raise EvalError(f"--rules must be left out where logits are read, got {' '.join(scoring.rules)!r}")
            return _with_mean([score_shares(*one) for one in _split_up(records, scoring, p_yes_of)])
        parts = _split_up(records, scoring, lambda fields, key: str(fields["answer"]))
        first, groups = scoring.named_rules[0], []
        for rule in scoring.named_rules:
            groups += _with_mean([score_group(*part[:2], rule, part[2], beside=rule != first) for part in parts])
        return groups

    def paper_differences(self, request: DataRequest, scored: Group) -> list[Difference]:
        """See :meth:`damro.eval.benchmark.Benchmark.paper_differences`."""
        asked = self._asked(request)
        found = [] if asked is None else [f"questions: {asked}; the paper averages {', '.join(PAPER_SPLITS)}"]
        if scored.scores["n"] != PAPER_QUESTIONS:
            found.append(f"samples: {scored.scores['n']} questions answered; the paper's are {PAPER_QUESTIONS}")
        if scored.scores["rule"] != PAPER_RULE:
            found.append(
                f"rule: {scored.scores['rule']}; the released code reads answers as {PAPER_RULE} does: give --rules "
                f"{PAPER_RULE}"
            )
        if "labels_changed" in scored.scores:
            found.append("labels: corrected; the paper's are those of the question files")
        pooled = Difference("average: over questions; the paper's is that of the splits' figures", harmless=True)
        return [*map(Difference, found), pooled]

    def _asked(self, request: DataRequest) -> str | None:
        """What is asked instead of the paper's questions, if so."""
        if request.scenes is not None:
            return "about embedded scenes"
        if self.questions or self.data:
            return f"of {Path(self.questions or self.data or '').name}"
        splits = self._splits() or PAPER_SPLITS
        return None if sorted(splits) == sorted(PAPER_SPLITS) else ", ".join(splits)

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
        self.check_scenes_heed("split", "read")
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


def _with_mean(groups: list[Group]) -> list[Group]:
    """Of several splits, their mean before the group of all questions, which stays the last."""
    return [*groups[:-1], mean_group(groups[:-1]), groups[-1]] if len(groups) > 1 else groups


def _split_up(
    records: Records, scoring: PopeScoring, read: Callable[[Mapping[str, Any], str], T]
) -> list[tuple[str, list[tuple[Question, T]], dict[str, int]]]:
    """Each split's questions with what was read of them, under corrected labels; of several splits, all together too.

    Args:
        records: By sample id.
        scoring: With the labels.
        read: From a record and its id to what is scored.
    """
    splits: dict[str, list[tuple[Question, T]]] = {}
    for key, fields in records.items():
        question = Question(key, fields["image"], fields["question"], fields["label"])
        splits.setdefault(str(fields["split"]), []).append((question, read(fields, key)))
    changes: dict[str, dict[str, int]] = {split: {} for split in splits}
    if scoring.labels is not None:
        labels = load_labels(scoring.labels, complete=scoring.labels_complete)
        for split, pairs in splits.items():
            splits[split], changes[split] = correct_pairs(pairs, labels)
    if len(splits) > 1:
        names = next(iter(changes.values()))
        changes["all splits"] = {name: sum(of[name] for of in changes.values()) for name in names}
        splits["all splits"] = [pair for pairs in splits.values() for pair in pairs]
    return [(split, pairs, changes[split]) for split, pairs in splits.items()]
