"""HallusionBench as a benchmark: the questions of the official file, or of a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from damro.eval.benchmark import DataRequest, Group, Records, Scoring, TableBenchmark
from damro.eval.errors import DataFormatError, EvalError
from damro.eval.hallusion.questions import PLACE, HallusionQuestion, find_file, load_questions, to_question
from damro.eval.hallusion.scoring import HallusionAnswer, score_groups
from damro.eval.hallusion.table import load_table
from damro.eval.records import digest_of_file
from damro.eval.samples import Dataset, Sample, check_samples, folder_opener

SPLITS = ("image", "non_image")
"""Questions with a figure and those without, as lmms-lab/HallusionBench calls them."""
_SIZES = ("figure_questions", "pair_questions", "half_questions")


@dataclass(frozen=True)
class Hallusion(TableBenchmark):
    """HallusionBench: yes/no questions about figures and altered ones (Guan et al., CVPR 2024). Needs its folder.

    Questions without a figure are asked as they are, plainly: there is nothing to contrast with.

    Attributes:
        split: image for the questions with a figure, which VLMEvalKit and lmms-eval ask; non_image for those without;
            none for all, which the official figures are of.
        questions: the official file, HallusionBench.json; none for that in the folder of images or beside it.
    """

    name: ClassVar = "hallusion"
    source: ClassVar = "HallusionBench, CVPR 2024, arXiv 2310.14566"
    prompt: ClassVar = "{question} Please answer yes or no."
    max_new_tokens: ClassVar = 64
    scoring: ClassVar = Scoring
    recorded: ClassVar = ("answer", *PLACE, "question", "gt_answer")
    command: ClassVar = "damro.eval.hallusion.command"

    split: tuple[str, ...] = ()
    questions: str | None = None
    data: str | None = None
    columns: tuple[str, ...] = ()

    def load(self, request: DataRequest) -> Dataset:
        """See :meth:`damro.eval.benchmark.Benchmark.load`."""
        unknown = [name for name in self.split if name not in SPLITS]
        if unknown:
            raise EvalError(f"--split must be of {', '.join(SPLITS)}, got {unknown[0]!r}")
        source: dict[str, Any]
        if self.data:
            if self.questions:
                raise EvalError(f"--questions must be left out with --data, got {self.questions!r}: give one of them")
            every, opener, source = load_table(self.data, self.columns, request.images)
        else:
            if request.images is None:
                raise EvalError(
                    "hallusion needs the figures, none are downloaded: give --images with the unpacked hallusion_bench "
                    "folder, which holds VD and VS, or --data with a table such as hf:lmms-lab/HallusionBench"
                )
            path = Path(self.questions) if self.questions else find_file(request.images)
            every, opener = load_questions(path), folder_opener(request.images)
            source = {"file": path.name, "sha256": digest_of_file(path)}
        asked = [one for one in every if SPLITS[one.image is None] in (self.split or SPLITS)]
        samples = self._samples(request, asked)
        source["without_figure"] = sum(one.image is None for one in asked)
        return Dataset(samples, opener, {"questions": source})

    def score(self, records: Records, scoring: Scoring) -> list[Group]:
        """A group for VD, for VS and for all."""
        return score_groups(to_answer(fields, f"record {key!r}") for key, fields in records.items())

    def _samples(self, request: DataRequest, asked: list[HallusionQuestion]) -> list[Sample]:
        """One a question: those of a figure next to each other, and those without one behind."""
        figures, pairs = Counter(one.of_figure for one in asked), Counter(one.of_pair for one in asked)
        halves = Counter(one.of_half for one in asked)
        by_image: dict[str | None, list[Sample]] = {}
        for one in asked:
            fields: dict[str, Any] = dict(zip(PLACE, one, strict=False))
            fields |= {"question": one.question, "gt_answer": "1" if one.gold == "yes" else "0", "filename": one.image}
            fields |= {} if one.visual is None else {"visual_input": one.visual}
            sizes = (figures[one.of_figure], pairs[one.of_pair], halves[one.of_half])
            fields |= dict(zip(_SIZES, sizes, strict=True))
            sample = Sample("/".join(one[:5]), one.image, self.ask(request, one.question), fields)
            by_image.setdefault(sample.image, []).append(sample)
        bare = by_image.pop(None, [])
        samples = [*(sample for of_image in by_image.values() for sample in of_image), *bare][: request.limit]
        check_samples(samples)
        return samples


def to_answer(fields: Mapping[str, Any], where: str) -> HallusionAnswer:
    """Return an answer from a record of a run, or of the official form, which has it under ``model_prediction``.

    Raises:
        DataFormatError: The record lacks something; names where it stands.
    """
    text = fields.get("answer", fields.get("model_prediction"))
    if not isinstance(text, str):
        raise DataFormatError(
            f"{where}: must have the model's answer as text under 'model_prediction' or 'answer', got "
            f"{ascii(text)[:60]}"
        )
    sizes = [fields.get(name) for name in _SIZES]
    for name, size in zip(_SIZES, sizes, strict=True):
        if size is not None and (isinstance(size, bool) or not isinstance(size, int)):
            raise DataFormatError(f"{where}: {name} must be a whole number, got {ascii(size)[:60]}")
    return HallusionAnswer(to_question(fields, where), text, *sizes)
