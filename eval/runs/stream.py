"""Samples answered one after the other as places get free, where an engine answers batch by batch.

Captions end at different lengths; a batch waits for its longest. Here the place of an answer that is written is taken
by the next sample. Answers are those of the engine, up to the rounding that :func:`damro.decoding.continuous.write`
tells of.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from PIL import Image

from damro.decoding.continuous import FREE, Joining, Written, read, why_not, write
from damro.decoding.counting import counting
from damro.decoding.families import family_of
from damro.eval.errors import EvalError
from damro.eval.runs.costs import Costs
from damro.eval.runs.engine import Engine, prepare_blank
from damro.eval.runs.faults import find_fault
from damro.eval.runs.loop import Answered, StreamBatch
from damro.eval.runs.yes_no import YesNoEngine
from damro.eval.samples import Sample
from damro.methods.patches import PatchContrast

PLACES = 32
"""Answers that are written at once, unless a run says otherwise."""
CHUNK = 4
"""Samples of a run that are answered so together, in places: what comes after them waits until all are written."""
AT_ONCE = 8
"""The most samples that are prepared and read together: the vision tower never sees more images than that."""


def units(samples: Iterable[Sample], rows: int) -> Iterator[list[Sample]]:
    """Cut samples into those that are read together, whenever places are free for them.

    Neighbours about one image are read together, up to `AT_ONCE`; others as many as get free at a time. What a unit is
    does not depend on how long answers are, so that it is the same for every method.

    Args:
        samples: In their order.
        rows: The most that are written at once.
    """
    together = max(1, min(AT_ONCE, int(FREE * rows)))
    loose: list[Sample] = []
    for _, neighbours in groupby(samples, key=lambda sample: sample.image or ("", sample.sample_id)):
        group = list(neighbours)
        if len(group) == 1:
            loose += group
        if loose and (len(group) > 1 or len(loose) == together):
            yield loose
            loose = []
        if len(group) > 1:
            most = min(AT_ONCE, rows)
            yield from (group[start : start + most] for start in range(0, len(group), most))
    if loose:
        yield loose


def why_batches(engine: Engine) -> str | None:
    """Why an engine's samples are answered batch by batch; None if :func:`answer_continuously` can.

    It tries the method on a blank image.

    Returns:
        A clause, as in "batch by batch, as ...".
    """
    if isinstance(engine, YesNoEngine):
        return "no answer is written"
    _, found = prepare_blank(engine)
    return why_not(family_of(engine.model).decoder(engine.model), found, engine.config)


def check_streams(engine: Engine) -> None:
    """Refuse an engine whose samples are answered batch by batch.

    Raises:
        EvalError: They are; says why.
    """
    if (why := why_batches(engine)) is not None:
        raise EvalError(
            f"--continuous must be left out with {engine.recipe.name}, whose answers are written batch by batch, as "
            f"{why}"
        )


def in_places(engine: Engine, rows: int = PLACES) -> StreamBatch:
    """Return what answers batches by :func:`answer_continuously`, in fewer places once memory was short.

    Args:
        engine: As there.
        rows: The most that are written at once.
    """

    def answer(samples: Sequence[Sample]) -> Iterator[tuple[Sample, Answered]]:
        nonlocal rows
        rows = yield from answer_continuously(engine, samples, rows)

    return answer


def answer_continuously(
    engine: Engine, samples: Iterable[Sample], rows: int = PLACES
) -> Generator[tuple[Sample, Answered], None, int]:
    """Answers samples, the next in the place of each that is done; each is told as soon as it is written.

    A sample that cannot be answered has an error instead, as the engine says of it alone. Where memory is short the
    places are halved, and the answers that were on their way begin anew.

    Args:
        engine: One for which :func:`why_batches` knows nothing.
        samples: Taken as places get free. Neighbours that ask about one image are read together.
        rows: The most that are written at once.

    Yields:
        Every sample with what came of it, in the order in which they are done.

    Returns:
        For how many places memory was enough.
    """
    source = _Source(engine, samples, rows)
    decoder: Any = family_of(engine.model).decoder(engine.model)
    while not source.done:
        writing = write(
            decoder,
            source.take,
            rows=source.rows,
            config=engine.config,
            temperature=engine.recipe.temperature,
            top_p=engine.top_p,
        )
        while True:
            try:
                written = source.write_on(writing)
            except Exception as error:
                source.recover(error)
                break
            yield from source.answer_aside()
            if written is None:
                break
            yield source.finish(written)
        yield from source.answer_alone()
    return source.rows


@dataclass
class _Flight:
    """A sample whose answer is being written."""

    sample: Sample
    outliers: list[list[int]] | None


@dataclass
class _Source:
    """What is read next, what is on its way, and what is left to the engine.

    Attributes:
        aside: Samples that the engine answers by itself, soon: those without an image, and those that failed.
        alone: Those for which there was no memory beside others.
    """

    engine: Engine
    samples: Iterable[Sample]
    rows: int
    aside: list[Sample] = field(default_factory=list)
    alone: list[Sample] = field(default_factory=list)
    flying: dict[str, _Flight] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._units = units(self.samples, self.rows)
        self._next: deque[list[Sample]] = deque()

    def _peek(self) -> list[Sample] | None:
        """The samples that are read next; None at the end."""
        if not self._next and (unit := next(self._units, None)) is not None:
            self._next.append(unit)
        if self._next and len(self._next[0]) > self.rows:  # there were more places when it was made
            unit = self._next.popleft()
            self._next.extendleft([unit[self.rows :], unit[: self.rows]])
        return self._next[0] if self._next else None

    @property
    def done(self) -> bool:
        """Whether nothing is left."""
        return not (self.aside or self.alone or self._peek())

    def take(self, free: int) -> list[Joining]:
        """The next samples that there is room for, read."""
        while (unit := self._peek()) is not None and len(unit) <= free:
            joining = self._read_images(self._next.popleft())
            if joining:
                return joining
        return []

    def _read_images(self, batch: Sequence[Sample]) -> list[Joining]:
        """Opens the images of samples and reads their prompts; questions about one image are read together."""
        images: dict[str, Image.Image] = {}
        for sample in batch:
            if sample.image is not None:
                try:
                    images[sample.sample_id] = self.engine.open_image(sample.image)
                except (ValueError, OSError):
                    self.aside.append(sample)  # the engine tells why
            else:
                self.aside.append(sample)
        groups: dict[str | None, list[Sample]] = {}
        for sample in batch:
            if sample.sample_id in images:
                groups.setdefault(sample.image, []).append(sample)
        single = [group[0] for group in groups.values() if len(group) == 1]
        together = [single] * bool(single) + [group for group in groups.values() if len(group) > 1]
        return [joining for part in together for joining in self._read(part, images)]

    def _read(self, batch: Sequence[Sample], images: dict[str, Image.Image]) -> list[Joining]:
        """Reads the prompts of samples at once, or in halves if that fails, down to the one that it fails with."""
        try:
            return [self._read_together(batch, images)]
        except Exception as error:
            short_of_memory = should_reduce_batch_size(error)
        if short_of_memory and self._gives_way():
            return self._read(batch, images)
        if len(batch) == 1:
            (self.alone if short_of_memory else self.aside).append(batch[0])
            return []
        half = len(batch) // 2
        return self._read(batch[:half], images) + self._read(batch[half:], images)

    @torch.no_grad()
    def _read_together(self, batch: Sequence[Sample], images: dict[str, Image.Image]) -> Joining:
        engine, shared = self.engine, len(batch) > 1 and batch[0].image == batch[1].image
        kept = engine.keeping(batch)
        contrast: Any
        with self._looking(len(batch), 1 if shared else len(batch)):
            inputs, contrast = engine.prepare(batch, images, kept, shared=shared)
        joining = read(
            family_of(engine.model).decoder(engine.model),
            contrast,
            inputs,
            [sample.sample_id for sample in batch],
            config=engine.config,
            seeds=engine.seeds(batch),
            shared_prefix=shared,
            reader=kept.look_up,
        )
        found = contrast.by_row() if isinstance(contrast, PatchContrast) else [None] * len(batch)
        self.flying |= {sample.sample_id: _Flight(sample, of) for sample, of in zip(batch, found, strict=True)}
        return joining

    def write_on(self, writing: Iterator[Written]) -> Written | None:
        """The next answer, None after the last; what is read and written until then is measured, if anything is."""
        if self.engine.costs is None:
            return next(writing, None)
        began = time.perf_counter()
        with counting(self.engine.model) as passes:
            written = next(writing, None)
        tokens = 0 if written is None else len(written.tokens)
        seconds = round(time.perf_counter() - began, 4)
        self.engine.costs += Costs(tokens=tokens, seconds=seconds, language=passes.rows)
        return written

    def finish(self, written: Written) -> tuple[Sample, Answered]:
        """What came of a sample that has been written."""
        flight = self.flying.pop(str(written.key))
        if written.error is not None:
            return flight.sample, Answered(None, error=str(written.error), fault=find_fault(written.error))
        text: str = self.engine.processor.batch_decode([written.tokens], skip_special_tokens=True)[0]
        return flight.sample, Answered(text.strip(), flight.outliers)

    def recover(self, error: Exception) -> None:
        """Has what was on its way begin anew: in fewer places if there was no memory, else one by one.

        Raises:
            Exception: `error`, if nothing was on its way.
        """
        flying = [flight.sample for flight in self.flying.values()]
        self.flying = {}
        if not flying:
            raise error
        if not should_reduce_batch_size(error):
            self.alone += flying
            return
        if not self._gives_way():
            if self.rows == 1:
                self.alone += flying
                return
            self.rows //= 2
        groups = [list(group) for _, group in groupby(flying, key=lambda sample: sample.image)]
        self._next.extendleft(reversed(groups))

    def _gives_way(self) -> bool:
        """Lets go of what is kept for other methods, as memory is short; whether anything was."""
        kept = self.engine.batch is not None and self.engine.batch.give_way()
        clear_device_cache(garbage_collection=True)
        return kept

    def answer_aside(self) -> Iterator[tuple[Sample, Answered]]:
        """Lets the engine answer what is put aside."""
        aside, self.aside = self.aside, []
        return zip(aside, self.engine.answer(aside), strict=True) if aside else iter(())

    def answer_alone(self) -> Iterator[tuple[Sample, Answered]]:
        """Lets the engine answer what must be answered alone, now that no other answer is on its way."""
        alone, self.alone = self.alone, []
        for sample in alone:
            yield sample, self.engine.answer([sample])[0]

    @contextmanager
    def _looking(self, samples: int, images: int) -> Iterator[None]:
        """While open, counts the images that are looked at, if anything is measured."""
        if self.engine.costs is None:
            yield
            return
        with counting(self.engine.model) as passes:
            yield
        self.engine.costs += Costs(samples=samples, images=images, vision=round(passes.looks * images, 4))
