"""Several processes on one run: who does what, where each writes, and how the parts become one file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from damro.eval.errors import EvalError
from damro.eval.records import RecordWriter, read_records, write_whole
from damro.images import NO_SUCH_FILE

RECORDS = "records.jsonl"
_PARTS = "records-*.jsonl"
_WAIT = timedelta(days=7)  # the others may have hours of work left when one is done


class BusyRunError(EvalError):
    """Another process is at work in the folder."""


@dataclass(frozen=True)
class Workers:
    """This process among those of one run.

    Attributes:
        rank: Its number from 0.
        count: How many there are.
        wait: Returns when all processes have called it.
    """

    rank: int = 0
    count: int = 1
    wait: Callable[[], None] = lambda: None

    @property
    def leads(self) -> bool:
        """Whether this process merges, scores and tells."""
        return self.rank == 0


def find_workers(device: str | None = None) -> Workers:
    """Return this process's place among those that ``torchrun`` or ``accelerate launch`` started.

    Args:
        device: "cpu" keeps the processes on CPUs where there are GPUs.

    Raises:
        EvalError: The processes do not find each other; each would do the whole run.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started < 2:
        return Workers()
    import torch
    from accelerate import PartialState

    # Unless told, accelerate takes processes on a machine without a GPU for single ones.
    state = PartialState(cpu=device == "cpu" or not torch.accelerator.is_available(), timeout=_WAIT)
    if state.num_processes != started:
        raise EvalError(
            f"a run of several processes must see all {started} that were started (WORLD_SIZE), got "
            f"{state.num_processes}: start them with torchrun, or a single one"
        )
    return Workers(state.process_index, state.num_processes, state.wait_for_everyone)


def records_path(folder: Path, workers: Workers) -> Path:
    """Return the file that a process appends to: the run's own if it is alone."""
    return folder / (RECORDS if workers.count == 1 else f"records-{workers.rank}.jsonl")


def is_failed(fields: Mapping[str, Any]) -> bool:
    """Whether a record is of a sample without an answer."""
    return "error" in fields


def lacks_image(fields: Mapping[str, Any]) -> bool:
    """Whether a record is of a sample whose image was not there: nothing that the model said, and soon mended."""
    return str(fields.get("error", "")).endswith(NO_SUCH_FILE)


def consolidate(
    folder: Path, order: Sequence[str], *, drop: Callable[[Mapping[str, Any]], bool] = lambda fields: False
) -> dict[str, dict[str, Any]]:
    """Put everything recorded so far into one file, in the order of the samples, each sample once.

    Repairs torn ends first. A crash in between loses nothing: parts go only after the whole is in place.

    Args:
        folder: The folder of the run.
        order: The sample ids of the run.
        drop: Which records to forget, so that their samples are done again.

    Returns:
        The records by sample id.

    Raises:
        EvalError: A file is malformed, or holds samples that are none of this run's.
    """
    whole = folder / RECORDS
    parts = sorted(folder.glob(_PARTS))
    records: dict[str, dict[str, Any]] = {}
    lines = 0
    for path in [whole, *parts]:
        for fields in _read(path):
            lines += 1
            records.setdefault(str(fields.get("id")), fields)
    strange = [identifier for identifier in records if identifier not in set(order)] if records else []
    if strange:
        raise EvalError(
            f"{folder} must hold records of this run's samples, got {len(strange)} others ({', '.join(strange[:3])}): "
            "give another --out"
        )
    kept = {key: records[key] for key in order if key in records and not drop(records[key])}
    if parts or lines != len(kept) or list(records) != list(kept):
        write_whole(whole, "".join(json.dumps(fields) + "\n" for fields in kept.values()))
    for path in parts:
        path.unlink()
    return kept


def read_done(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the records that `consolidate` has put together, by sample id; changes nothing."""
    path = folder / RECORDS
    if not path.exists() or not path.stat().st_size:
        return {}
    return {str(record.fields.get("id")): record.fields for record in read_records(path)}


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """While open, no other run may work in the folder; the lock goes with the process, also with a killed one.

    Raises:
        BusyRunError: Another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows: two runs at once stay the user's care
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BusyRunError(
                f"{folder} must be used by one run at a time, another process is at work there"
            ) from error
        yield


def _read(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    RecordWriter(path).close()  # repairs the end
    if path.stat().st_size:
        yield from (record.fields for record in read_records(path))
