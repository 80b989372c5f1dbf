"""CRPE as a benchmark: the questions of its two files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from damro.eval.benchmark import DataRequest, Group, Records, TableBenchmark
from damro.eval.choices import ChoiceScoring
from damro.eval.crpe.questions import FILES, CrpeQuestion, load_questions
from damro.eval.crpe.scoring import CrpeAnswer, score_groups
from damro.eval.crpe.table import load_table
from damro.eval.errors import DataFormatError, EvalError
from damro.eval.records import digest_of_file
from damro.eval.samples import Dataset, ImageSource, Sample, check_samples, folder_opener

FIELDS = ("category", "circle", "image", "question", "correct_option", "answer")
"""What of a record is scored, in the order of `CrpeAnswer`."""


@dataclass(frozen=True)
class CrpeScoring(ChoiceScoring):
    """How CRPE's answers are read: by default as its own script does."""

    choice: Literal["letter", "first", "exact"] = "exact"


@dataclass(frozen=True)
class Crpe(TableBenchmark):
    """CRPE: single-choice questions about objects and relations, in four orders (ECCV 2024). Needs its folder.

    Attributes:
        split: exist and relation; none for both, as far as their files are in the folder of images.
        questions: a file in the official form instead.
    """

    name: ClassVar = "crpe"
    source: ClassVar = "CRPE of The All-Seeing Project V2, ECCV 2024, arXiv 2402.19474"
    prompt: ClassVar = "{question}"  # the questions say themselves how to answer
    max_new_tokens: ClassVar = 64
    scoring: ClassVar = CrpeScoring
    recorded: ClassVar = FIELDS
    command: ClassVar = "damro.eval.crpe.command"

    split: tuple[str, ...] = ()
    questions: str | None = None
    data: str | None = None
    columns: tuple[str, ...] = ()

    def load(self, request: DataRequest) -> Dataset:
        """See :meth:`damro.eval.benchmark.Benchmark.load`."""
        opener: ImageSource
        if self.data:
            if self.questions:
                raise EvalError(f"--questions must be left out with --data, got {self.questions!r}: give one of them")
            every, opener, source = load_table(self.data, self.columns, request.images)
            questions = [(_split_of(one), one) for one in every if _split_of(one) in (self._named() or FILES)]
        elif request.images is None:
            raise EvalError(
                f"crpe needs its folder ({', '.join(FILES.values())}, abnormal_images, coco/val2017): give --images, "
                "or --data with a table"
            )
        else:
            files, opener = self._files(request.images), folder_opener(request.images)
            questions = [(split, one) for split, path in files.items() for one in load_questions(path)]
            source = {split: {"file": path.name, "sha256": digest_of_file(path)} for split, path in files.items()}
        by_image: dict[str, list[Sample]] = {}
        for split, one in questions:
            fields = {
                "category": one.category,
                "circle": f"{split}/{one.circle}",
                "question": one.text,
                "correct_option": one.gold,
            }
            sample = Sample(f"{split}/{one.question_id}", one.image, self.ask(request, one.text), fields)
            by_image.setdefault(one.image, []).append(sample)
        samples = [sample for of_image in by_image.values() for sample in of_image][: request.limit]
        check_samples(samples)
        return Dataset(samples, opener, {"questions": source})

    def score(self, records: Records, scoring: CrpeScoring) -> list[Group]:
        """A group a category and one of all."""
        return score_groups((to_answer(fields, f"record {key!r}") for key, fields in records.items()), scoring.choice)

    def _named(self) -> tuple[str, ...]:
        unknown = [name for name in self.split if name not in FILES]
        if unknown:
            raise EvalError(f"--split must be of {', '.join(FILES)}, got {unknown[0]!r}")
        return self.split

    def _files(self, folder: Path) -> dict[str, Path]:
        if self.questions:
            if self.split:
                raise EvalError(
                    f"--split must be left out with --questions, got {' '.join(self.split)!r}: give one of them"
                )
            return {Path(self.questions).stem: Path(self.questions)}
        files = {name: folder / FILES[name] for name in self._named() or FILES}
        found = {name: path for name, path in files.items() if self.split or path.is_file()}
        if not found:
            raise EvalError(
                f"--images must hold {' or '.join(FILES.values())}, got {str(folder)!r} with neither: put them there, "
                "or give --questions"
            )
        return found


def _split_of(asked: CrpeQuestion) -> str:
    return "exist" if asked.category == "exist" else "relation"


def to_answer(fields: Mapping[str, Any], where: str) -> CrpeAnswer:
    """Return an answer from a record of a run.

    Raises:
        DataFormatError: The record lacks something; names where it stands.
    """
    texts = [fields.get(name) for name in FIELDS]
    for name, text in zip(FIELDS, texts, strict=True):
        if not isinstance(text, str):
            raise DataFormatError(
                f"{where}: must have {name!r} as text, got {ascii(text)[:60]}: give the records of damro run crpe, or "
                "the answers of the official scripts with --questions"
            )
    return CrpeAnswer(*map(str, texts))
