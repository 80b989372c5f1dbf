"""A benchmark: how many there are, with questions from a file about any folder of images."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from damro.eval.benchmark import Benchmark, DataRequest, Group, Measure, Note, Records, Scoring, share
from damro.eval.errors import EvalError
from damro.eval.records import digest_of_file, read_records
from damro.eval.samples import Dataset, Sample, check_samples, folder_opener, need_folder

MEASURES = {
    "accuracy": Measure(share(lambda m: m[..., 0], lambda m: m[..., 2]), "accuracy", plotted=True),
    "error": Measure(share(lambda m: m[..., 1], lambda m: m[..., 2]), "mean error", unit="", better="lower"),
}
"""Of the columns right answers, absolute errors, questions."""


@dataclass(frozen=True)
class Counting(Benchmark):
    """Counting: questions with a number as answer; an answer without a number counts as zero.

    Attributes:
        questions: a file of records with image, question and number.
    """

    name: ClassVar = "counting"
    source: ClassVar = "an example"
    prompt: ClassVar = "{question} Answer with a number."
    max_new_tokens: ClassVar = 8
    scoring: ClassVar = Scoring

    questions: str | None = None

    def load(self, request: DataRequest) -> Dataset:
        """The questions of the file."""
        if self.questions is None:
            raise EvalError("counting needs a file of questions, got none: give --questions")
        opener = folder_opener(need_folder(request.images, self.name))
        samples = [
            Sample(str(place), fields["image"], self.ask(request, fields["question"]), {"number": fields["number"]})
            for place, (_, fields) in enumerate(read_records(self.questions))
        ]
        samples.sort(key=lambda sample: sample.image)  # samples of one image stand together
        check_samples(samples)
        file = {"file": Path(self.questions).name, "sha256": digest_of_file(self.questions)}
        return Dataset(samples[: request.limit], opener, {"questions": file})

    def score(self, records: Records, scoring: Scoring) -> list[Group]:
        """One group, of all questions."""
        counts: dict[str, tuple[float, ...]] = {}
        silent = 0
        for fields in records.values():
            found = re.search(r"\d+", fields["answer"])
            silent += found is None
            error = abs(int(found[0] if found else 0) - fields["number"])
            before = counts.get(fields["image"], (0.0, 0.0, 0.0))
            counts[fields["image"]] = (before[0] + (error == 0), before[1] + error, before[2] + 1)
        right, errors, n = map(sum, zip(*counts.values(), strict=True))
        scores = {"accuracy": right / n, "error": errors / n, "n": int(n)}
        note = Note("silent", silent, "without a number, and counted as zero", doubtful=silent > 0)
        return [Group("questions", scores, counts, MEASURES, notes=(note,))]
