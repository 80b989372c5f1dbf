"""MMVP as a benchmark: the questions of its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from damro.eval.benchmark import DataRequest, Group, Records, TableBenchmark
from damro.eval.choices import ChoiceScoring
from damro.eval.errors import DataFormatError, EvalError
from damro.eval.mmvp.questions import FILE, IMAGES, load_questions, read_gold
from damro.eval.mmvp.scoring import MmvpAnswer, score_groups
from damro.eval.mmvp.table import load_table
from damro.eval.records import digest_of_file
from damro.eval.samples import Dataset, ImageSource, Sample, check_samples, folder_opener


@dataclass(frozen=True)
class Mmvp(TableBenchmark):
    """MMVP: pairs of images that CLIP takes for the same, with a question each (CVPR 2024). Needs its folder."""

    name: ClassVar = "mmvp"
    source: ClassVar = "MMVP of Eyes Wide Shut?, CVPR 2024, arXiv 2401.06209"
    prompt: ClassVar = "{question}\nAnswer with the option's letter from the given choices directly."
    max_new_tokens: ClassVar = 64
    scoring: ClassVar = ChoiceScoring
    recorded: ClassVar = ("answer", "pair", "options", "correct_answer")
    command: ClassVar = "damro.eval.mmvp.command"

    data: str | None = None
    columns: tuple[str, ...] = ()

    def load(self, request: DataRequest) -> Dataset:
        """See :meth:`damro.eval.benchmark.Benchmark.load`."""
        opener: ImageSource
        source: dict[str, Any]
        if self.data:
            asked, opener, source = load_table(self.data, self.columns, request.images)
        elif request.images is None:
            raise EvalError(
                f"mmvp needs its folder, which holds {FILE} and {IMAGES!r}: give --images, or --data with a table such "
                "as hf:lmms-lab-eval/MMVP"
            )
        else:
            opener, path = folder_opener(request.images), request.images / FILE
            asked = [(one, f"{IMAGES}/{one.number}.jpg") for one in load_questions(path)]
            source = {"file": FILE, "sha256": digest_of_file(path)}
        samples = [
            Sample(
                str(one.number),
                image,
                self.ask(request, f"{one.question} {one.options}"),
                {
                    "pair": str(one.pair),
                    "question": one.question,
                    "options": one.options,
                    "correct_answer": f"({one.gold.lower()})",
                },
            )
            for one, image in asked
        ][: request.limit]
        check_samples(samples)
        return Dataset(samples, opener, {"questions": source})

    def score(self, records: Records, scoring: ChoiceScoring) -> list[Group]:
        """The one group of all pairs."""
        return score_groups((to_answer(fields, f"record {key!r}") for key, fields in records.items()), scoring.choice)


def to_answer(fields: Mapping[str, Any], where: str) -> MmvpAnswer:
    """Return an answer from a record of a run, or of the official script.

    That writes ``question_id`` (from 1), ``prompt`` with the options, the right option under ``answer`` and what the
    model said under ``response``.

    Raises:
        DataFormatError: The record lacks something; names where it stands.
    """
    found: tuple[Any, ...]
    if "response" in fields:
        number = fields.get("question_id")
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise DataFormatError(f"{where}: question_id must be a whole number from 1, got {ascii(number)[:60]}")
        found = ((number + 1) // 2, fields.get("prompt"), fields.get("answer"), fields["response"])
    else:
        found = tuple(fields.get(name) for name in ("pair", "options", "correct_answer", "answer"))
    pair, options, gold, text = found
    if pair is None or not isinstance(options, str) or not isinstance(text, str):
        raise DataFormatError(
            f"{where}: must be a record of damro run mmvp, or one of the official script with question_id, prompt, "
            f"answer and response, got keys {ascii(sorted(map(str, fields)))[:120]}"
        )
    return MmvpAnswer(str(pair), options, read_gold(gold, options, where), text)
