"""MMHal-Bench as a benchmark: the questions of the official file about its images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from damro.eval.benchmark import Benchmark, DataRequest, Group, Note, Records
from damro.eval.errors import DataFormatError, EvalError
from damro.eval.judged.replies import Judgement, Judgements, read_judgements
from damro.eval.judged.scoring import JudgedScoring, notes_of
from damro.eval.mmhal.judging import is_official, read_official
from damro.eval.mmhal.questions import find_file, load_questions, need_images, to_question
from damro.eval.mmhal.scoring import MmhalAnswer, score_groups, unjudged_group
from damro.eval.records import digest_of_file
from damro.eval.samples import Dataset, Sample, check_samples, folder_opener

ANSWER_KEYS = ("model_answer", "answer")
"""Where an answer stands: in the official form, and in the records of a run."""
REVIEW = "gpt4_review"
"""Where RLAIF-V's script puts the judge's reply beside an answer."""


@dataclass(frozen=True)
class Mmhal(Benchmark):
    """MMHal-Bench: 96 questions of eight types, answers rated 0 to 6 by a judge (Sun et al. 2023). Needs its folder.

    Attributes:
        questions: the official file, response_template.json; none for that in the folder of images or beside it.
    """

    name: ClassVar = "mmhal"
    source: ClassVar = "MMHal-Bench of Aligning LMMs with Factually Augmented RLHF, arXiv 2309.14525"
    prompt: ClassVar = "{question}"
    max_new_tokens: ClassVar = 1024
    scoring: ClassVar = JudgedScoring
    recorded: ClassVar = ("answer", "question_id", "question_type", "question", "gt_answer")
    command: ClassVar = "damro.eval.mmhal.command"

    questions: str | None = None

    def load(self, request: DataRequest) -> Dataset:
        """See :meth:`damro.eval.benchmark.Benchmark.load`."""
        folder = need_images(request.images)
        opener = folder_opener(folder)
        path = Path(self.questions) if self.questions else find_file(folder)
        samples = [
            Sample(
                str(number),
                image,
                self.ask(request, asked.question),
                {
                    "question_id": str(number),
                    "question_type": asked.kind,
                    "image_content": list(asked.contents),
                    "question": asked.question,
                    "gt_answer": asked.gold,
                },
            )
            for number, (image, asked) in enumerate(load_questions(path), start=1)
        ][: request.limit]
        check_samples(samples)
        return Dataset(samples, opener, {"questions": {"file": path.name, "sha256": digest_of_file(path)}})

    def settle_scoring(self, scoring: JudgedScoring, runs: Mapping[str, Records]) -> JudgedScoring:
        """See :meth:`damro.eval.benchmark.Benchmark.settle_scoring`."""
        official = [path for path in scoring.judgements if is_official(path)]
        if official and (len(runs) > 1 or len(scoring.judgements) > 1):
            raise EvalError(
                f"--judgements must be files that damro score --judge wrote where there are several runs or files, got "
                f"{official[0]!r}, whose replies are told apart by their order alone: score that run by itself"
            )
        return scoring

    def score(self, records: Records, scoring: JudgedScoring) -> list[Group]:
        """A group for each type of questions and for all; without judgements, one that says so."""
        answers = [to_answer(fields, f"record {key!r}", key) for key, fields in records.items()]
        found = find_judgements(answers, scoring.judgements)
        return [unjudged_group(answers)] if found is None else score_groups(answers, *found)


def to_answer(fields: Mapping[str, Any], where: str, identifier: str) -> MmhalAnswer:
    """Return an answer from a record of a run, or of the official form, which has it under ``model_answer``.

    Args:
        fields: The record.
        where: Where it stands, for messages.
        identifier: The question's number, where the record does not tell it.

    Raises:
        DataFormatError: The record lacks something.
    """
    text = next((fields[name] for name in ANSWER_KEYS if name in fields), None)
    if not isinstance(text, str):
        raise DataFormatError(
            f"{where}: must have the model's answer as text under 'model_answer' or 'answer', got {ascii(text)[:60]}"
        )
    reply = fields.get(REVIEW)
    return MmhalAnswer(
        str(fields.get("question_id", identifier)),
        to_question(fields, where),
        text.replace("Assistant:", "").strip(),
        reply if isinstance(reply, str) else None,
    )


def find_judgements(
    answers: Sequence[MmhalAnswer], paths: Sequence[str]
) -> tuple[Mapping[str, Judgement], list[Note]] | None:
    """Return the judgement of each answer, by its question's number, and what a reader must know of the judge.

    Args:
        answers: One a question.
        paths: Files of judgements; none takes the replies that came with the answers.

    Returns:
        None where there are no judgements.

    Raises:
        EvalError: An answer has no judgement, or a file is malformed.
    """
    if not paths:
        replies = {one.identifier: Judgement(one.reply) for one in answers if one.reply is not None}
        whole = answers and len(replies) == len(answers)
        return (replies, [Note("judge", "that of the file of answers")]) if whole else None
    if is_official(paths[0]):
        return read_official(paths[0], answers), [Note("judge", "that of the official script's file")]
    return of_judge(answers, read_judgements(paths))


def of_judge(answers: Sequence[MmhalAnswer], judgements: Judgements) -> tuple[Mapping[str, Judgement], list[Note]]:
    """Return the judgement of each answer, by its question's number, and what a reader must know of the judge.

    Raises:
        EvalError: An answer has none.
    """
    return judgements.find({one.identifier: one.key for one in answers}), notes_of(judgements)
