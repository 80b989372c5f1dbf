"""What the answers of a run cost: tokens, seconds and passes, batch by batch, in a file of their own.

No record holds any of it but its seconds: a run that is measured and one that is not have the same records. A batch
that is answered again counts again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from uuid import uuid4

from damro.eval.errors import DataFormatError
from damro.eval.records import RecordWriter, iterate_records
from damro.eval.runs.gathering import Gathering
from damro.eval.runs.loop import AnswerBatch, Answered
from damro.eval.runs.sharding import Workers
from damro.eval.samples import Sample

_NAME = "costs"
_GROWING = re.compile(rf"{_NAME}(-[0-9]+)?\.jsonl")


@dataclass(frozen=True)
class Costs:
    """What some answers cost.

    Attributes:
        samples: How many they are.
        images: How many images they are about, one counted once for all questions that were asked together.
        tokens: Of the answers, with those that end them.
        seconds: From images and texts to answers.
        language: Rows that the language model was run over: a prompt or a continuation, once for each run.
        vision: Images that the vision tower was run over.

    Example:
        >>> both = Costs(1, 1, 10, 2.0, 21, 1.0) + Costs(1, 1, 10, 3.0, 19, 2.0)
        >>> both.tokens_per_second, both.passes, both.looks
        (4.0, 2.0, 1.5)
    """

    samples: int = 0
    images: int = 0
    tokens: int = 0
    seconds: float = 0.0
    language: int = 0
    vision: float = 0.0

    def __add__(self, other: Costs) -> Costs:
        """Both together."""
        return Costs(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    def to_dict(self) -> dict[str, float]:
        """Return what was counted, and the three quotients, as JSON values."""
        quotients = ("tokens_per_second", "passes", "looks")
        return asdict(self) | {name: round(getattr(self, name), 4) for name in quotients}

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the answers by seconds."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def passes(self) -> float:
        """Runs of the language model over a row, for each token of an answer; the prompts' own are among them."""
        return self.language / self.tokens if self.tokens else 0.0

    @property
    def looks(self) -> float:
        """Runs of the vision tower over an image, for each image."""
        return self.vision / self.images if self.images else 0.0


def costs_path(folder: Path, workers: Workers) -> Path:
    """Return the file that a process appends what its batches cost to."""
    return folder / (f"{_NAME}.jsonl" if workers.leads else f"{_NAME}-{workers.rank}.jsonl")


def measured(answer: AnswerBatch, taken: Callable[[], Costs], path: Path) -> AnswerBatch:
    """Answer as before, and write down what every batch cost.

    Args:
        answer: Answers batches.
        taken: Returns what has been counted since it was last called.
        path: The file to append to.
    """

    def answer_and_tell(batch: Sequence[Sample]) -> list[Answered]:
        taken()
        answers = answer(batch)
        with RecordWriter(path) as writer:
            writer.write(asdict(taken()))
        return answers

    return answer_and_tell


def bring_costs(folder: Path, gathering: Gathering) -> None:
    """Copy what batches cost on other disks to where `read_costs` finds it.

    Files that were written to get names of no process first: what is brought never grows, and twice is as once.
    """
    if gathering.keeps and not gathering.workers.leads:
        for path in filter(lambda path: _GROWING.fullmatch(path.name), list(folder.iterdir())):
            path.rename(folder / f"{_NAME}-{uuid4().hex}.jsonl")
    gathering.bring({path: path.name for path in sorted(folder.glob(f"{_NAME}-*.jsonl"))})


def read_costs(folder: Path) -> Costs | None:
    """Return what the answers of a run cost together; None if none of them was measured.

    Raises:
        DataFormatError: A file is malformed.
    """
    paths = sorted(folder.glob(f"{_NAME}.jsonl")) + sorted(folder.glob(f"{_NAME}-*.jsonl"))
    known = {one.name for one in fields(Costs)}
    total = Costs()
    for path in paths:
        for where, told in iterate_records(path):
            if set(told) != known or not all(isinstance(value, int | float) for value in told.values()):
                raise DataFormatError(f"{where}: must hold the numbers {', '.join(sorted(known))}, got {told!r:.80}")
            total += Costs(**told)
    return total if total.samples else None
