"""How what the processes of a run record comes together: in a folder that all of them see, or by messages.

Nodes of a cluster may have disks of their own. Then the processes of each write to its own folder as they would to one
for all, and what lies there goes to the first process: before the run, what an earlier one left, and at its end. The
first process puts it together as if it had lain there all the time. Which of both it is, is found out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

from damro.eval.errors import EvalError
from damro.eval.records import iterate_records
from damro.eval.runs.group import Group
from damro.eval.runs.sharding import (
    PARTS,
    RECORDS,
    Workers,
    check_parts_free,
    find_parts,
    is_failed,
    make_parts,
    read_done,
    remove_parts,
)

_PIECE = 1 << 20  # bytes of a file in one message
_ITEMS = 2000  # records in one message
T = TypeVar("T")
Check = Callable[[Mapping[str, Any], str], None]


class Gathering:
    """One folder, which all processes of a run see, or the folder of a single one: what is recorded lies there.

    Args:
        folder: The folder of the run.
        workers: This process among those of the run.
        keeper: The number of the process that takes care of the folder that this one sees.
    """

    def __init__(self, folder: Path, workers: Workers, keeper: int = 0) -> None:
        """Only keep them."""
        self.folder, self.workers = folder, workers
        self.keeps = workers.rank == keeper
        """Whether this process locks the folder and writes its ``run.json``."""

    def everywhere(self, act: Callable[[], T]) -> T:
        """Do something in every process; what is refused in one is refused in all, so that none waits for it.

        Raises:
            EvalError: It is, in another process; says in which, and why.
        """
        group = self.workers.group
        if group is None:
            return act()
        result: T | None = None
        refusal: Exception | None = None
        try:
            result = act()
        except (ValueError, OSError) as error:
            refusal = error
        told = group.all_gather(None if refusal is None else str(refusal))
        if refusal is not None:
            raise refusal
        for rank, reason in enumerate(told):
            if reason is not None:
                raise EvalError(f"every process must be able to work on the run, process {rank} is not: {reason}")
        return result  # type: ignore[return-value]  # act has returned it

    def agree(self, act: Callable[[], T], differences: Callable[[T, T], Sequence[str]]) -> T:
        """Return what the first process works out, if it is what all do.

        Args:
            act: Works it out.
            differences: Says in what the second of two differs from the first.

        Raises:
            EvalError: It differs, or cannot be worked out, in some process.
        """
        own = self.everywhere(act)
        if self.workers.group is None:
            return own
        first: T = self.workers.group.broadcast(own)
        self.everywhere(lambda: self._check_agreed(differences(first, own)))
        return first

    def _check_agreed(self, found: Sequence[str]) -> None:
        if found:
            raise EvalError(
                f"all processes must do the same run, process {self.workers.rank} differs from the first in "
                f"{len(found)}: {'; '.join(found[:8])}. Start all with one command, and the same versions and data"
            )

    def collect(self, check: Check, *, with_whole: bool = False) -> None:
        """Return when everything that processes have recorded lies in the first one's folder.

        Args:
            check: Called with every record from elsewhere and where it stands; raises what is wrong with it.
            with_whole: Also take what an earlier run put together elsewhere.

        Raises:
            EvalError: A folder of parts is somebody else's, or records are none of this run's.
        """
        if self.keeps and self.workers.count > 1:
            check_parts_free(self.folder)
        self.workers.wait()

    def bring(self, files: Mapping[Path, str]) -> None:
        """Copy files of other folders into the first process's, each under the name that is given for it."""

    def tell_done(self, records: Mapping[str, Mapping[str, Any]]) -> dict[str, bool]:
        """Return of every record that the first process has whether it is one without an answer.

        Args:
            records: What has been put together; heeded in the first process only.
        """
        self.workers.wait()
        done = {key: is_failed(fields) for key, fields in self._read(records).items()}
        self.workers.wait()
        return done

    def tell(self, records: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Return the records that the first process has.

        Args:
            records: What has been put together; heeded in the first process only.
        """
        self.workers.wait()
        return self._read(records)

    def _read(self, records: Mapping[str, Any]) -> dict[str, Any]:
        return dict(records) if self.workers.leads else read_done(self.folder)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While open, this process ends soon after another one is gone; at the end all wait for each other."""
        if self.workers.group is None:
            yield
        else:
            with self.workers.group.watched():
                yield
        self.workers.wait()


class MessageGathering(Gathering):
    """Folders of which some processes see one and some another: what lies elsewhere goes to the first by messages."""

    def __init__(self, folder: Path, workers: Workers, group: Group, keeper: int) -> None:
        """Only keep them."""
        super().__init__(folder, workers, keeper)
        self._group = group
        self._sends = self.keeps and not workers.leads
        self._brought: list[Path] = []

    def collect(self, check: Check, *, with_whole: bool = False) -> None:
        """See `Gathering.collect`."""
        paths = self.everywhere(lambda: self._find(check, with_whole=with_whole))
        if self.workers.leads:
            make_parts(self.folder)
        self.bring({path: f"{PARTS}/{self.workers.rank}-{uuid4().int}.jsonl" for path in paths})
        self._brought = [path for path in paths if path.name != RECORDS]

    def _find(self, check: Check, *, with_whole: bool) -> list[Path]:
        """The files of records that this process has to send, each record of them checked."""
        if self.keeps:
            check_parts_free(self.folder)
        if not self._sends:
            return []
        whole = self.folder / RECORDS
        paths = [*([whole] if with_whole and whole.exists() else []), *find_parts(self.folder)]
        for path in paths:
            for where, fields in iterate_records(path):
                check(fields, where)
        return paths

    def bring(self, files: Mapping[Path, str]) -> None:
        """See `Gathering.bring`; no message holds more than a MiB of a file."""
        sent = list(_cut(files)) if self._sends else []
        rounds = max(self._group.all_gather(len(sent)))
        for number in range(rounds):
            piece = sent[number].read() if number < len(sent) else None
            for received in self._group.gather(piece) or ():
                if received is not None:
                    self._write(*received)
        self.workers.wait()

    def _write(self, name: str, offset: int, content: bytes) -> None:
        with (self.folder / name).open("r+b" if offset else "wb") as file:
            file.seek(offset)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def tell_done(self, records: Mapping[str, Mapping[str, Any]]) -> dict[str, bool]:
        """See `Gathering.tell_done`."""
        return self._tell({key: is_failed(fields) for key, fields in records.items()})

    def tell(self, records: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """See `Gathering.tell`."""
        return self._tell(records)

    def _tell(self, told: dict[str, T]) -> dict[str, T]:
        """What the first process has, in messages of so many; when it has told, its parts from elsewhere are merged."""
        items = iter(told.items())
        messages = self._group.broadcast(-(-len(told) // _ITEMS))
        received: dict[str, T] = {}
        for _ in range(messages):
            received.update(self._group.broadcast(dict(islice(items, _ITEMS)) if self.workers.leads else None))
        if self._sends:
            remove_parts(self.folder, self._brought)
            self._brought = []
        self.workers.wait()  # others write there from now on
        return received


def find_gathering(folder: Path, workers: Workers) -> Gathering:
    """Return how what processes record comes together, which all find out by looking for files of each other.

    Args:
        folder: The folder of the run, as this process calls it; it must exist.
        workers: This process among those of the run.
    """
    group = workers.group
    if group is None:
        return Gathering(folder, workers)
    own = folder / f".here-{uuid4().hex}"  # a name that no file system remembers not to have
    names = group.all_gather(own.name)
    own.touch()
    try:
        workers.wait()
        keepers = group.all_gather(next(rank for rank, name in enumerate(names) if (folder / name).exists()))
    finally:
        own.unlink()
    if not any(keepers):
        return Gathering(folder, workers)
    return MessageGathering(folder, workers, group, keepers[workers.rank])


class _Piece(NamedTuple):
    """A part of a file, and the name that the file shall have elsewhere."""

    path: Path
    name: str
    offset: int
    length: int

    def read(self) -> tuple[str, int, bytes]:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return self.name, self.offset, file.read(self.length)


def _cut(files: Mapping[Path, str]) -> Iterator[_Piece]:
    for path, name in files.items():
        size = path.stat().st_size
        for offset in range(0, size, _PIECE):
            yield _Piece(path, name, offset, min(_PIECE, size - offset))
