"""Several processes on one run: who does what, where each writes, and how the parts become one file."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from damro.eval.errors import EvalError
from damro.eval.records import RecordWriter, iterate_records, write_whole
from damro.eval.runs.group import GlooGroup, Group
from damro.images import NO_SUCH_FILE

RECORDS = "records.jsonl"
PARTS = "parts"
"""The folder in that of a run where several processes write, a file each."""
_MARK = "written-by-damro"  # in the folder of parts: what lies in one without it is somebody else's
_PART = re.compile(r"[0-9]+(-[0-9]+)?\.jsonl")  # of a process; with a number behind it, of one with another disk
_OLD_PART = re.compile(r"records-[0-9]+\.jsonl")  # up to format 2
_LOOK = 1.0  # seconds
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
        group: What they tell each other by; None where it is known that all see one folder.
    """

    rank: int = 0
    count: int = 1
    wait: Callable[[], None] = lambda: None
    group: Group | None = None

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
        LostWorkerError: One of them is gone.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started < 2:
        return Workers()
    end_with_launcher()
    import torch
    from accelerate import PartialState

    # Unless told, accelerate takes processes on a machine without a GPU for single ones.
    state = PartialState(cpu=device == "cpu" or not torch.accelerator.is_available(), timeout=_WAIT)
    if state.num_processes != started:
        raise EvalError(
            f"a run of several processes must see all {started} that were started (WORLD_SIZE), got "
            f"{state.num_processes}: start them with torchrun, or a single one"
        )
    group = GlooGroup(state.process_index, state.num_processes, _WAIT)
    return Workers(state.process_index, state.num_processes, lambda: _wait(group), group)


def _wait(group: Group) -> None:
    group.all_gather(None)


def end_with_launcher() -> None:
    """End this process soon after the one that started it is gone, from a thread that looks every second.

    A launcher that is killed cannot end its workers, which would wait for each other for days. What they have recorded
    is on the disk. Windows does not tell who is gone.
    """
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(_LOOK)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="launcher", daemon=True).start()


def records_path(folder: Path, workers: Workers) -> Path:
    """Return the file that a process appends to: the run's own if it is alone, or one of the folder of parts."""
    if workers.count == 1:
        return folder / RECORDS
    return make_parts(folder) / f"{workers.rank}.jsonl"


def make_parts(folder: Path) -> Path:
    """Return the folder of parts, made and marked as ours if it is missing."""
    parts = folder / PARTS
    parts.mkdir(exist_ok=True)
    (parts / _MARK).touch()
    return parts


def check_parts_free(folder: Path) -> None:
    """Refuse a folder of parts that is somebody else's.

    Raises:
        EvalError: It is.
    """
    parts = folder / PARTS
    if parts.exists() and not (parts / _MARK).exists() and any(parts.iterdir()):
        raise EvalError(f"{parts} must be free for what several processes write, holds other files: move them")


def is_failed(fields: Mapping[str, Any]) -> bool:
    """Whether a record is of a sample without an answer."""
    return "error" in fields


def lacks_image(fields: Mapping[str, Any]) -> bool:
    """Whether a record is of a sample whose image was not there: nothing that the model said, and soon mended."""
    return str(fields.get("error", "")).endswith(NO_SUCH_FILE)


def consolidate(
    folder: Path,
    order: Sequence[str],
    *,
    drop: Callable[[Mapping[str, Any]], bool] = lambda fields: False,
    check: Callable[[Mapping[str, Any], str], None] = lambda fields, where: None,
    with_old_parts: bool = False,
) -> dict[str, dict[str, Any]]:
    """Put everything recorded so far into one file, in the order of the samples, each sample once.

    Of several records of one sample the first counts, an answer before a failure. Leaves torn ends out. A crash in
    between loses nothing: parts go only after the whole is in place.

    Args:
        folder: The folder of the run.
        order: The sample ids of the run.
        drop: Which records to forget, so that their samples are done again.
        check: Called with every record and where it stands; raises what is wrong with it.
        with_old_parts: Also take ``records-0.jsonl`` and so on, which versions of format 2 wrote. They may be
            somebody's copies as well, so they are not removed but get the ending ``.merged``.

    Returns:
        The records by sample id.

    Raises:
        EvalError: A file is malformed, or holds samples that are none of this run's.
    """
    whole = folder / RECORDS
    parts = find_parts(folder)
    old_parts = sorted(path for path in folder.iterdir() if with_old_parts and _OLD_PART.fullmatch(path.name))
    records: dict[str, dict[str, Any]] = {}
    lines = 0
    for path in (whole, *parts):
        if path.exists():
            RecordWriter(path).close()  # repairs the end
    for path in (whole, *parts, *old_parts):
        for where, fields in iterate_records(path) if path.exists() else ():
            check(fields, where)
            lines += 1
            if is_failed(records.setdefault(str(fields.get("id")), fields)) and not is_failed(fields):
                records[str(fields.get("id"))] = fields  # done again, while the failure lay on another disk
    known = set(order)
    strange = [identifier for identifier in records if identifier not in known]
    if strange:
        raise EvalError(
            f"{folder} must hold records of this run's samples, got {len(strange)} others ({', '.join(strange[:3])}): "
            "give another --out"
        )
    kept = {key: records[key] for key in order if key in records and not drop(records[key])}
    if parts or old_parts or lines != len(kept) or not _same_order(records, kept):
        write_whole(whole, (json.dumps(fields) + "\n" for fields in kept.values()))
    for path in old_parts:
        path.rename(path.with_name(path.name + ".merged"))
    remove_parts(folder, parts)
    return kept


def _same_order(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(first == second for first, second in zip(one, other, strict=False))


def find_parts(folder: Path) -> list[Path]:
    """Return the files that processes wrote into the folder of parts, if it is ours."""
    parts = folder / PARTS
    if not (parts / _MARK).exists():
        return []
    return sorted(path for path in parts.iterdir() if _PART.fullmatch(path.name))


def remove_parts(folder: Path, paths: Sequence[Path]) -> None:
    """Remove parts that are in a whole, and their folder unless somebody put something else there."""
    for path in paths:
        path.unlink()
    parts = folder / PARTS
    if (parts / _MARK).exists() and all(path.name == _MARK for path in parts.iterdir()):
        (parts / _MARK).unlink()
        parts.rmdir()


def read_done(
    folder: Path, check: Callable[[Mapping[str, Any], str], None] = lambda fields, where: None
) -> dict[str, dict[str, Any]]:
    """Return the records that `consolidate` has put together, by sample id; changes nothing.

    Args:
        folder: The folder of the run.
        check: Called with every record and where it stands; raises what is wrong with it.
    """
    path = folder / RECORDS
    records: dict[str, dict[str, Any]] = {}
    for where, fields in iterate_records(path) if path.exists() else ():
        check(fields, where)
        records.setdefault(str(fields.get("id")), fields)
    return records


def holds_records(folder: Path) -> bool:
    """Whether anything is recorded in a folder."""
    path = folder / RECORDS
    return (path.exists() and path.stat().st_size > 0) or bool(find_parts(folder))


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """While open, no other run may work in the folder; the lock goes with the process, also with a killed one.

    Raises:
        BusyRunError: Another process holds it.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BusyRunError(f"{folder} must be used by one run at a time, another process is at work there") from error
    try:
        yield
    finally:
        lock.release()
