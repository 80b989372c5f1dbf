"""The loop of a run: batch by batch, a record a sample, nothing lost and nothing doubled.

It knows no torch: what answers a batch is a callable, and `damro.eval.runs.engine` makes one of a model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby, zip_longest
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


StreamBatch = Callable[[Sequence[Sample]], Iterator[tuple[Sample, Answered]]]
"""Answers the samples of a batch, each told as soon as it is done, in any order."""
_SYNC = 1.0  # seconds


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
Turn = Callable[[Sequence[Sample], Sequence[Sample]], None]
"""Told of the batch that comes next, and of the one that follows it."""


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
        (records,) = run_in_turn([Course(self, folder, samples, answer)])
        return records


class Course:
    """One run on its way through its samples, for runs that go in turn.

    Args:
        loop: How it goes through them.
        folder: Where its records go; made if missing.
        samples: Of the run.
        answer: Answers its batches.
        stream: Does so sample by sample, in its place; None if batches are answered at once.
    """

    def __init__(
        self,
        loop: Loop,
        folder: Path,
        samples: Sequence[Sample],
        answer: AnswerBatch,
        stream: StreamBatch | None = None,
    ) -> None:
        """Cut the samples into batches; nothing is read yet."""
        self._stream = stream
        self._loop, self._folder, self._samples, self._answer = loop, folder, samples, answer
        count, rank = loop.workers.count, loop.workers.rank
        self._batches = [batch for number, batch in enumerate(cut(samples, loop.batch_size)) if number % count == rank]
        self._done: dict[str, bool] = {}
        self._tally = Tally(0, 0, 0)
        self._streak = Streak()
        self._writer: RecordWriter | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._check = self._make_check()
        self.gathering = loop.gathering or find_gathering(folder, loop.workers)

    def begin(self) -> None:
        """Put together what is recorded, check it, and open the file for the rest; see `Loop.run`."""
        loop, folder = self._loop, self._folder
        records: dict[str, dict[str, Any]] = {}
        self.gathering.collect(self._check, with_whole=True)
        if loop.workers.leads:
            records = self._consolidate(drop=is_failed if loop.retry_failed else lacks_image)
            if loop.identity is not None and loop.identity.images is not None:
                loop.identity.images.check(records.values())
        self._done = self.gathering.tell_done(records)
        del records  # of a million samples the loop needs no more than this
        mine = [sample.sample_id for batch in self._batches for sample in batch]
        finished = [self._done[key] for key in mine if key in self._done]
        self._tally = Tally(len(finished), sum(finished), len(mine))
        self._tell()
        self._streak = Streak(answered=not all(self._done.values()))
        self._writer = RecordWriter(records_path(folder, loop.workers))

    def batch(self, number: int) -> list[Sample]:
        """Return a batch of this process, as a whole; none if nothing in it is to be done, or there is no such."""
        batch = self._batches[number] if number < len(self._batches) else []
        return batch if any(sample.sample_id not in self._done for sample in batch) else []

    @property
    def batches(self) -> int:
        """How many batches this process has."""
        return len(self._batches)

    def steps(self, number: int) -> Iterator[None]:
        """Answer a batch and have what was missing of it on the disk: at once, or step by step an answer."""
        assert self._writer is not None  # begun
        batch = self._batches[number]
        if self._stream is not None:
            yield from self._write_on(self._stream(batch))
            return
        answers = self._record(batch)
        for sample in batch:
            if sample.sample_id not in self._done:
                self._write(self._streak.add(*answers[sample.sample_id]))
        self._writer.sync()
        self._tell()
        yield

    def _write_on(self, answered: Iterator[tuple[Sample, Answered]]) -> Iterator[None]:
        """Record what was missing of a batch as it comes; on the disk within about a second."""
        assert self._writer is not None  # begun
        began = synced = time.perf_counter()
        for sample, came in answered:
            now = time.perf_counter()
            if sample.sample_id not in self._done:
                self._write(self._streak.add(*self._stamp(sample, came, round(now - began, 4))))
            if now - synced > _SYNC:
                self._writer.sync()
                self._tell()
                synced = now
            yield
            began = time.perf_counter()  # what other runs take meanwhile is not this one's
        self._writer.sync()
        self._tell()

    def end(self) -> dict[str, dict[str, Any]]:
        """Write what was held back, put everything together, and return it; see `Loop.run`."""
        loop = self._loop
        held = self._streak.end()
        if held and self._writer is not None:
            self._write(held)
            self._tell()
            self._writer.sync()
        self.close()
        self.gathering.collect(self._check)
        return self.gathering.tell(self._consolidate() if loop.workers.leads else {})

    def close(self) -> None:
        """Close the file; what is recorded stays."""
        if self._writer is not None:
            self._writer.close()

    def _consolidate(
        self, drop: Callable[[Mapping[str, Any]], bool] = lambda fields: False
    ) -> dict[str, dict[str, Any]]:
        identity = self._loop.identity
        old_parts = identity is not None and identity.accepts_old
        order = [sample.sample_id for sample in self._samples]
        return consolidate(self._folder, order, drop=drop, check=self._check, with_old_parts=old_parts)

    def _make_check(self) -> Check:
        """What refuses records that are none of this run's."""
        identity = self._loop.identity
        asked = {sample.sample_id: sample for sample in self._samples}

        def check(fields: Mapping[str, Any], where: str) -> None:
            if identity is not None:
                identity.check(fields, where)
            sample = asked.get(str(fields.get("id")))
            if sample is not None:
                check_asked(fields, sample, where)

        return check

    def _write(self, records: Sequence[dict[str, Any]]) -> None:
        assert self._writer is not None  # begun
        for fields in records:
            self._writer.write(fields)
        done, failed, total = self._tally
        self._tally = Tally(done + len(records), failed + sum(map(is_failed, records)), total)

    def _record(self, batch: Sequence[Sample]) -> dict[str, tuple[dict[str, Any], Fault | None]]:
        """The records of a batch, each with what may be wrong beside its sample."""
        began = time.perf_counter()
        answers = self._answer(batch)
        seconds = round((time.perf_counter() - began) / len(batch), 4)
        return {
            sample.sample_id: self._stamp(sample, answered, seconds)
            for sample, answered in zip(batch, answers, strict=True)
        }

    def _stamp(self, sample: Sample, answered: Answered, seconds: float) -> tuple[dict[str, Any], Fault | None]:
        """The record of a sample, and what may be wrong beside it."""
        loop = self._loop
        if answered.error is not None and loop.strict:
            raise FailedSampleError(
                f"sample {sample.sample_id} ({sample.image}) must be answered under --strict, failed: "
                f"{answered.error}. Mend it and resume, or leave --strict out to record it as failed"
            )
        fields = to_fields(sample, answered, seconds)
        return fields if loop.identity is None else loop.identity.stamp(fields), answered.fault

    def _tell(self) -> None:
        if self._loop.progress is not None:
            self._loop.progress(self._tally)


def run_in_turn(
    courses: Sequence[Course], turn: Turn = lambda batch, following: None
) -> list[dict[str, dict[str, Any]]]:
    """Take several runs over the same samples through them side by side, batch by batch, each as `Loop.run` does.

    A batch is answered by every run that lacks a part of it before the next one begins; of runs that answer sample by
    sample each has a turn for one. Whatever ends one run ends all; what is recorded stays.

    Args:
        courses: The runs.
        turn: Called before each batch, with its samples and those of the batch that follows.

    Returns:
        The records of each run, by sample id, in the order of the samples.
    """
    with ExitStack() as files:
        if courses:  # all processes are those of every run
            files.enter_context(courses[0].gathering.watched())
        for course in courses:
            files.callback(course.close)
            course.begin()
        numbers = range(max((course.batches for course in courses), default=0))
        batches = [next(filter(None, (course.batch(number) for course in courses)), []) for number in numbers]
        wanted = [number for number in numbers if batches[number]]
        for number, following in zip_longest(wanted, wanted[1:]):
            turn(batches[number], [] if following is None else batches[following])
            steps = [course.steps(number) for course in courses if course.batch(number)]
            for _ in zip_longest(*steps):
                pass
        return [course.end() for course in courses]


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
