"""From a request to a folder with ``run.json`` and ``records.jsonl``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from damro.decoding.errors import DecodingError
from damro.eval.errors import EvalError
from damro.eval.runs.ahead import ImagesAhead
from damro.eval.runs.costs import bring_costs, costs_path, measured
from damro.eval.runs.formats import ACCEPTS_OLD, FORMAT
from damro.eval.runs.gathering import find_gathering
from damro.eval.runs.identity import SeenImages
from damro.eval.runs.loop import AnswerBatch, Course, Loop, Progress, StreamBatch, run_in_turn
from damro.eval.runs.record import (
    RUN_FILE,
    RunMismatchError,
    check_same,
    differences,
    identity_of,
    load_run,
    read_format,
    to_record,
    write_run,
)
from damro.eval.runs.request import RunRequest
from damro.eval.runs.sharding import holds_records, lock_folder
from damro.eval.samples import Dataset, Sample, bounded, first_few

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from damro.eval.runs.engine import Engine
    from damro.loading import Loaded

BATCH_SIZE = {"cpu": 8, "cuda": 16}


class Prepared(NamedTuple):
    """What several runs of one model share.

    Attributes:
        loaded: The model and its processor.
        dataset: The samples; the same for every method.
    """

    loaded: Loaded
    dataset: Dataset


def prepare(request: RunRequest, *others: RunRequest, tell: Callable[[str], None] = lambda sentence: None) -> Prepared:
    """Load the samples and the model of a request, and see whether it can be run.

    Args:
        request: What to run.
        others: What else to run with the same model and samples.
        tell: Told, before the model is loaded, how many images are not there; their samples become failed records.

    Raises:
        EvalError: A file is malformed or missing, most images are not there, or a method does not have an option of
            its request.
        DecodingError: The model does not load, or a parameter is out of range.
    """
    dataset = request.asked.load(request.data_request)  # first: a missing folder is found before 14 GB are loaded
    missing = dataset.missing_images()
    if missing:
        tell(
            f"{len(missing)} images are not in {str(request.images)!r} ({first_few(missing)}): their samples fail, and "
            "are tried again when the same command is given with the files there"
        )
    from damro.eval.runs.engine import load, make_engine

    for one in (request, *others):
        _ = one.recipe  # raises what is wrong with it
    prepared = Prepared(load(request), dataset)
    for one in (request, *others):  # what the last method lacks is told before the first one has run for hours
        make_engine(one, prepared.loaded, dataset.open_image)
    return prepared


def working(
    requests: Sequence[RunRequest], prepared: Prepared, tell: Callable[[str], None] = lambda sentence: None
) -> list[RunRequest]:
    """Return those requests whose methods work with the model; of the others, why not is told.

    Args:
        requests: Of the model and data that are prepared.
        prepared: What `prepare` returned for one of them.
        tell: Told a sentence for each that is left out.
    """
    from damro.eval.runs.engine import make_engine

    kept = []
    for request in requests:
        try:
            make_engine(request, prepared.loaded, prepared.dataset.open_image)
        except (EvalError, DecodingError) as error:
            tell(f"{request.recipe.name} is left out: {error}")
        else:
            kept.append(request)
    return kept


def run_benchmark(
    request: RunRequest,
    folder: Path | str,
    *,
    loop: Loop | None = None,
    prepared: Prepared | None = None,
    adopt_records: bool = False,
    cost: bool = False,
) -> dict[str, dict[str, Any]]:
    """Run a model over a benchmark, or go on with a run that was cut off.

    Args:
        request: What to run.
        folder: Where ``run.json`` and ``records.jsonl`` go; made if missing.
        loop: How to go through the samples; its batch size is the request's, or fits the device.
        prepared: What `prepare` returned for a request of this model and benchmark, to load it once.
        adopt_records: Take records that lie in the folder without a ``run.json`` for those of this request.
        cost: Also measure what answers cost, see `damro.eval.runs.costs`.

    Returns:
        The records by sample id, in the order of the samples.

    Raises:
        RunMismatchError: The folder holds another run; says in what they differ. Or records of which nothing says how
            they came about.
        ForeignRecordError: A record is of other settings or another question.
        ChangedImageError: An image is not the one that a recorded answer is about.
        BusyRunError: Another process is at work in the folder.
        FailedSampleError: A sample failed, and the loop is strict.
        SystemicFaultError: Samples failed one after the other with what is not about them; they are left undone.
        EvalError: A file is malformed.
        DecodingError: The model does not load, or a parameter is out of range.
    """
    loop = loop or Loop()
    asked = Asked(request, Path(folder), loop.progress)
    (records,) = run_benchmarks([asked], loop=loop, prepared=prepared, adopt_records=adopt_records, cost=cost)
    return records


class Asked(NamedTuple):
    """One of several runs.

    Attributes:
        request: What to run.
        folder: Its folder.
        progress: Told after each of its batches; None if nobody asks.
    """

    request: RunRequest
    folder: Path
    progress: Progress | None = None


def run_benchmarks(
    asked: Sequence[Asked],
    *,
    loop: Loop | None = None,
    prepared: Prepared | None = None,
    adopt_records: bool = False,
    cost: bool = False,
) -> list[dict[str, dict[str, Any]]]:
    """Run a model over a benchmark with several methods, in turn over each batch.

    The records are those of `run_benchmark` with each request: what methods have in common of a batch, the images, the
    processor's work, the vision tower's run and the full prompt's prefill, is done once for all of them.

    Args:
        asked: The runs, of requests that differ in their method alone.
        loop: As for `run_benchmark`; but who is told is each run's own.
        prepared: As for `run_benchmark`.
        adopt_records: As for `run_benchmark`.
        cost: As for `run_benchmark`; then nothing but the images is shared, so that a method is measured as if alone.

    Returns:
        The records of each run.

    Raises:
        EvalError: Requests differ in more than their method.
        ValueError: As `run_benchmark` does; what is wrong with a folder is told before anything is answered.
    """
    first = asked[0].request
    for one in asked:
        if replace(one.request, method=first.method) != first:
            raise EvalError(
                f"requests that are run together must differ in their method alone, got {one.request.method!r} with "
                f"other settings than {first.method!r}: run it by itself"
            )
    from damro.eval.runs.engine import make_engine
    from damro.eval.runs.kept import KeptBatch
    from damro.eval.runs.stream import CHUNK, PLACES, in_places

    loop = loop or Loop()
    prepared = prepared or prepare(first, *(one.request for one in asked[1:]))
    dataset = prepared.dataset
    seen = SeenImages(bounded(dataset.open_image, first.max_pixels), dataset.digest_image)
    engines = [make_engine(one.request, prepared.loaded, dataset.open_image) for one in asked]
    # What they refuse is told before there is a folder.
    told = [_describe(one.request, engine, prepared) for one, engine in zip(asked, engines, strict=True)]
    with ExitStack() as stack:
        gatherings = []
        for one in asked:
            one.folder.mkdir(parents=True, exist_ok=True)
            gatherings.append(find_gathering(one.folder, loop.workers))
        for gathering in gatherings:  # all of them first: one that is taken is told before an answer is waited for
            if gathering.keeps:
                stack.enter_context(lock_folder(gathering.folder))
        images = stack.enter_context(ImagesAhead(seen))
        rows = first.batch_size or PLACES
        kept = KeptBatch(most=rows if first.continuous else None)
        model = prepared.loaded.model
        begun = [
            gathering.agree(
                partial(_begun, one.folder, record, one.request, model, adopt_records=adopt_records), differences
            )
            for one, record, gathering in zip(asked, told, gatherings, strict=True)
        ]
        courses = []
        for one, engine, record, gathering in zip(asked, engines, begun, gatherings, strict=True):
            folder = one.folder
            if gathering.keeps and (not (folder / RUN_FILE).exists() or read_format(folder) != FORMAT):
                write_run(folder, record)
            engine.open_image, engine.batch = images, kept if len(asked) > 1 and not cost else None
            answer: AnswerBatch = engine.answer
            if cost:
                answer = measured(answer, engine.take_costs, costs_path(folder, loop.workers))
            size = first.batch_size or BATCH_SIZE.get(engine.model.device.type, BATCH_SIZE["cpu"])
            stream: StreamBatch | None = None
            if first.continuous:
                size, stream = CHUNK * rows, in_places(engine, rows)
            identity = replace(identity_of(record), images=seen)
            own = replace(loop, batch_size=size, identity=identity, progress=one.progress, gathering=gathering)
            courses.append(Course(own, folder, dataset.samples, answer, stream))

        def turn(batch: Sequence[Sample], following: Sequence[Sample]) -> None:
            kept.begin()
            images.want(sample.image for sample in (*batch, *following) if sample.image is not None)

        records = run_in_turn(courses, turn)
        for one, gathering in zip(asked, gatherings, strict=True):
            bring_costs(one.folder, gathering)
        return records


def _describe(request: RunRequest, engine: Engine, prepared: Prepared) -> dict[str, Any]:
    """What ``run.json`` of a new run holds."""
    from damro.eval.runs.resolve import describe_machine, resolve

    dataset = prepared.dataset
    resolved = resolve(request, engine, dataset.data)
    return to_record(request, resolved, len(dataset.samples), describe_machine(prepared.loaded.model))


def _begun(
    folder: Path, record: dict[str, Any], request: RunRequest, model: PreTrainedModel, *, adopt_records: bool
) -> dict[str, Any]:
    """What ``run.json`` shall hold: what it does, if it was written by this version.

    Raises:
        RunMismatchError: It holds another run, or is missing where there are records.
    """
    from damro.eval.runs.resolve import is_older_fingerprint

    if not (folder / RUN_FILE).exists():
        if not holds_records(folder):
            return record
        if not adopt_records:
            raise RunMismatchError(
                f"{folder} must hold {RUN_FILE}, which says how its records came about, got records without it: put it "
                "back, give another --out, or give --adopt-records to take them for records of this very command"
            )
        return {**record, ACCEPTS_OLD: True}
    old = load_run(folder)
    before, now = old["resolved"].get("model", {}), record["resolved"]["model"]["fingerprint"]
    if before.get("fingerprint") != now and is_older_fingerprint(str(before.get("fingerprint")), request, model):
        before["fingerprint"] = now
    check_same(folder, old, record)
    if read_format(folder) == FORMAT:
        return old
    return {**record, "created": old.get("created"), ACCEPTS_OLD: True}
