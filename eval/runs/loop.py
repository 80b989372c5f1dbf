"""The loop of a run: batch by batch, a record a sample, nothing lost and nothing doubled.

It knows no torch: what answers a batch is a callable, and `damro.eval.runs.engine` makes one of a model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from damro.eval.errors import EvalError
from damro.eval.records import RecordWriter
from damro.eval.runs.faults import Fault, Streak
from damro.eval.runs.gathering import Check, Gathering, find_gathering
from damro.eval.runs.identity import P_YES, Identity, check_asked
from damro.eval.runs.sharding import Workers, consolidate, is_failed, lacks_image, records_path
from damro.eval.samples import Sample


class Answered(NamedTuple):
    """What came of one sample.

    Attributes:
        text: The answer; None if there is none.
        outliers: The chosen patches, a row a base tile, best first; None where the method chooses none.
        error: Why there is no answer; None if there is one.
        fault: What may be wrong beside the sample; None if the failure is the sample's, or there is none.
        p_yes: The probability of a yes, where that was read in place of an answer.
    """

    text: str | None
    outliers: list[list[int]] | None = None
    error: str | None = None
    fault: Fault | None = None
    p_yes: float | None = None


AnswerBatch = Callable[[Sequence[Sample]], list[Answered]]
"""Answers the samples of a batch, in their order. A sample that cannot be answered has an error instead."""


class Tally(NamedTuple):
    """How far a run has come.

    Attributes:
        done: Samples with a record, in this process and before.
        failed: Those of them without an answer.
        total: Samples of the run, or of this process where there are several.
    """

    done: int
    failed: int
    total: int


Progress = Callable[[Tally], None]


class FailedSampleError(EvalError):
    """A sample could not be answered, and the run was told to stop there."""


@dataclass(frozen=True)
class Loop:
    """How a run goes through its samples.

    Attributes:
        batch_size: Samples at once.
        strict: Stop at the first sample that fails.
        retry_failed: Do again what failed before. Samples whose image was not there are done again in any case.
        workers: This process among those of the run.
        progress: Told after each batch; None if nobody asks.
        identity: What ties the records to the run; None where it has no settings.
        gathering: How what the processes record comes together; found out if it is None.
    """

    batch_size: int = 8
    strict: bool = False
    retry_failed: bool = False
    workers: Workers = Workers()
    progress: Progress | None = None
    identity: Identity | None = None
    gathering: Gathering | None = None

    def run(self, folder: Path, samples: Sequence[Sample], answer: AnswerBatch) -> dict[str, dict[str, Any]]:
        """Answer the samples that have no record yet, and record them.

        Batches are cut from the whole list, whatever is done already and whoever does it: a batch of which a part is
        done is answered as a whole again and only the rest of it recorded. So every answer comes of the same batch in
        an undisturbed run, in a resumed one and in one of several processes, and is the same to the last bit.

        A batch is on the disk before the next one begins.

        Returns:
            The records of the run by sample id, in the order of the samples.

        Raises:
            FailedSampleError: A sample failed and ``strict`` is set; its record is not written.
            SystemicFaultError: Samples failed one after the other with what is not about them; they are left undone.
            ForeignRecordError: The folder holds records of other settings or questions.
            ChangedImageError: An image is not the one that a recorded answer is about.
            EvalError: The folder holds records that are malformed or of another run.
        """
        folder.mkdir(parents=True, exist_ok=True)
        gathering = self.gathering or find_gathering(folder, self.workers)
        check = self._make_check(samples)
        with gathering.watched():
            gathering.collect(check, with_whole=True)
            records: dict[str, dict[str, Any]] = {}
            if self.workers.leads:
                drop = is_failed if self.retry_failed else lacks_image
                records = self._consolidate(folder, samples, check, drop)
                if self.identity is not None and self.identity.images is not None:
                    self.identity.images.check(records.values())
            done = gathering.tell_done(records)
            del records  # of a million samples the loop needs no more than this
            self._answer_rest(folder, samples, done, answer)
            gathering.collect(check)
            return gathering.tell(self._consolidate(folder, samples, check) if self.workers.leads else {})

    def _make_check(self, samples: Sequence[Sample]) -> Check:
        """What refuses records that are none of this run's."""
        asked = {sample.sample_id: sample for sample in samples}

        def check(fields: Mapping[str, Any], where: str) -> None:
            if self.identity is not None:
                self.identity.check(fields, where)
            sample = asked.get(str(fields.get("id")))
            if sample is not None:
                check_asked(fields, sample, where)

        return check

    def _consolidate(
        self,
        folder: Path,
        samples: Sequence[Sample],
        check: Check,
        drop: Callable[[Mapping[str, Any]], bool] = lambda fields: False,
    ) -> dict[str, dict[str, Any]]:
        order = [sample.sample_id for sample in samples]
        old_parts = self.identity is not None and self.identity.accepts_old
        return consolidate(folder, order, drop=drop, check=check, with_old_parts=old_parts)

    def _answer_rest(self, folder: Path, samples: Sequence[Sample], done: dict[str, bool], answer: AnswerBatch) -> None:
        mine = [
            batch
            for number, batch in enumerate(cut(samples, self.batch_size))
            if number % self.workers.count == self.workers.rank
        ]
        finished = [done[sample.sample_id] for batch in mine for sample in batch if sample.sample_id in done]
        tally = Tally(len(finished), sum(finished), sum(map(len, mine)))
        self._tell(tally)
        streak = Streak(answered=not all(done.values()))
        with RecordWriter(records_path(folder, self.workers)) as writer:
            for batch in mine:
                missing = [sample for sample in batch if sample.sample_id not in done]
                if not missing:
                    continue
                answers = self._record(batch, answer)
                for sample in missing:
                    tally = self._write(writer, streak.add(*answers[sample.sample_id]), tally)
                writer.sync()
                self._tell(tally)
            held = streak.end()
            if held:
                self._tell(self._write(writer, held, tally))
                writer.sync()

    def _write(self, writer: RecordWriter, records: Sequence[dict[str, Any]], tally: Tally) -> Tally:
        for fields in records:
            writer.write(fields)
        return Tally(tally.done + len(records), tally.failed + sum(map(is_failed, records)), tally.total)

    def _record(self, batch: Sequence[Sample], answer: AnswerBatch) -> dict[str, tuple[dict[str, Any], Fault | None]]:
        """The records of a batch, each with what may be wrong beside its sample."""
        began = time.perf_counter()
        answers = answer(batch)
        seconds = round((time.perf_counter() - began) / len(batch), 4)
        records = {}
        for sample, answered in zip(batch, answers, strict=True):
            if answered.error is not None and self.strict:
                raise FailedSampleError(
                    f"sample {sample.sample_id} ({sample.image}) must be answered under --strict, failed: "
                    f"{answered.error}. Mend it and resume, or leave --strict out to record it as failed"
                )
            fields = to_fields(sample, answered, seconds)
            stamped = fields if self.identity is None else self.identity.stamp(fields)
            records[sample.sample_id] = stamped, answered.fault
        return records

    def _tell(self, tally: Tally) -> None:
        if self.progress is not None:
            self.progress(tally)


def to_fields(sample: Sample, answered: Answered, seconds: float) -> dict[str, Any]:
    """Return the record of a sample, as it stands in ``records.jsonl``."""
    fields: dict[str, Any] = {
        "id": sample.sample_id,
        **sample.fields,
        "image": sample.image,
        "prompt": sample.prompt,
    }
    if answered.error is not None:
        return {**fields, "error": answered.error, "seconds": seconds}
    read = {} if answered.p_yes is None else {P_YES: answered.p_yes}
    return {**fields, "answer": answered.text, **read, "outliers": answered.outliers, "seconds": seconds}


def cut(samples: Sequence[Sample], size: int) -> Iterator[list[Sample]]:
    """Cut samples into batches of about ``size``; neighbours that ask about one image stay together.

    Example:
        >>> samples = [Sample(str(n), f"{n // 3}.jpg", "?", {}) for n in range(7)]
        >>> [[sample.image for sample in batch] for batch in cut(samples, 4)]
        [['0.jpg', '0.jpg', '0.jpg'], ['1.jpg', '1.jpg', '1.jpg', '2.jpg']]
    """
    batch: list[Sample] = []
    for _, neighbours in groupby(samples, key=lambda sample: sample.image or ("", sample.sample_id)):
        group = list(neighbours)
        if batch and len(batch) + len(group) > size:
            yield batch
            batch = []
        batch = batch + group
    if batch:
        yield batch
