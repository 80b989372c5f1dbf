"""From a request to a folder with ``run.json`` and ``records.jsonl``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from damro.decoding.errors import DecodingError
from damro.eval.errors import EvalError
from damro.eval.runs.costs import bring_costs, costs_path, measured
from damro.eval.runs.formats import ACCEPTS_OLD, FORMAT
from damro.eval.runs.gathering import find_gathering
from damro.eval.runs.identity import SeenImages
from damro.eval.runs.loop import Loop
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
from damro.eval.samples import Dataset, first_few

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
    from damro.eval.runs.engine import make_engine
    from damro.eval.runs.resolve import describe_machine, resolve

    folder, loop = Path(folder), loop or Loop()
    prepared = prepared or prepare(request)
    dataset = prepared.dataset
    engine = make_engine(request, prepared.loaded, dataset.open_image)
    engine.open_image = images = SeenImages(engine.open_image, dataset.digest_image)
    machine = describe_machine(prepared.loaded.model)
    record = to_record(request, resolve(request, engine, dataset.data), len(dataset.samples), machine)
    size = request.batch_size or BATCH_SIZE.get(record["resolved"]["device"], BATCH_SIZE["cpu"])
    folder.mkdir(parents=True, exist_ok=True)
    gathering = find_gathering(folder, loop.workers)
    with lock_folder(folder) if gathering.keeps else nullcontext():
        model = prepared.loaded.model
        begun = gathering.agree(
            lambda: _begun(folder, record, request, model, adopt_records=adopt_records), differences
        )
        if gathering.keeps and (not (folder / RUN_FILE).exists() or read_format(folder) != FORMAT):
            write_run(folder, begun)
        identity = replace(identity_of(begun), images=images)
        answer = measured(engine.answer, engine.take_costs, costs_path(folder, loop.workers)) if cost else engine.answer
        loop = replace(loop, batch_size=size, identity=identity, gathering=gathering)
        records = loop.run(folder, dataset.samples, answer)
        bring_costs(folder, gathering)
        return records


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
