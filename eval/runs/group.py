"""Messages between the processes of one run, and noticing soon that one of them is gone.

A process that is killed closes its connections, which ends what others exchange with it at once. Between two exchanges
lie hours of work, so every process also leaves a sign of life with the launcher's store and looks for those of the
others.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from typing import Any, Protocol

from damro.eval.errors import EvalError

_LEFT = b"left"
_EVERY = 5.0  # seconds from one sign of life to the next
_PATIENCE = 60.0  # seconds without any: a thread that only counts is never as late as this in a process that works
_REMEDY = "give the same command again, what is recorded is used"


class LostWorkerError(EvalError):
    """Another process of the run is gone."""


class Group(Protocol):
    """What processes of one run tell each other. Every process calls the same, in the same order."""

    def all_gather(self, value: Any) -> list[Any]:
        """Return what all processes gave, by their numbers."""

    def gather(self, value: Any) -> list[Any] | None:
        """Return that in the first process; None in the others."""

    def broadcast(self, value: Any) -> Any:
        """Return what the first process gave."""

    def watched(self) -> AbstractContextManager[None]:
        """While open, this process ends soon after another one is gone."""


class Store(Protocol):
    """A table that all processes see, as torch's ``TCPStore`` is one."""

    def set(self, key: str, value: str, /) -> None:
        """Put a text under a key."""

    def multi_get(self, keys: list[str], /) -> Sequence[bytes]:
        """Return what stands under some keys."""


class GlooGroup:
    """The processes that a launcher started, over gloo, whatever they compute on.

    Args:
        rank: The number of this one.
        count: How many there are.
        wait: How long one may wait for another that is alive.
    """

    def __init__(self, rank: int, count: int, wait: timedelta) -> None:
        """Meet the others."""
        import torch.distributed as dist

        self._rank, self._count = rank, count
        self._group = dist.new_group(backend="gloo", timeout=wait)
        # A connection of its own: a client serves one call at a time.
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False)  # type: ignore[attr-defined]
        self._signs = SignsOfLife(store, rank, count)
        self.all_gather(None)  # now all have left one
        self._signs.start()
        atexit.register(self._signs.leave)

    def all_gather(self, value: Any) -> list[Any]:
        """See `Group`."""
        import torch.distributed as dist

        told = [None] * self._count
        with self._losing():
            dist.all_gather_object(told, value, group=self._group)
        return told

    def gather(self, value: Any) -> list[Any] | None:
        """See `Group`."""
        import torch.distributed as dist

        told = [None] * self._count if self._rank == 0 else None
        with self._losing():
            dist.gather_object(value, told, dst=0, group=self._group)
        return told

    def broadcast(self, value: Any) -> Any:
        """See `Group`."""
        import torch.distributed as dist

        told = [value]
        with self._losing():
            dist.broadcast_object_list(told, src=0, group=self._group)
        return told[0]

    def watched(self) -> AbstractContextManager[None]:
        """See `Group`."""
        return self._signs.watched()

    @contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # torch's own errors of lost connections are of this type
            reason = str(error).strip().partition("\n")[0]
            raise LostWorkerError(
                f"all {self._count} processes of a run must live until it is done, process {self._rank} lost another "
                f"one ({reason}): {_REMEDY}"
            ) from error


def end_process(sentence: str) -> None:
    """Say why, and end this process at once: its main thread may wait for one that is gone."""
    print(f"damro: {sentence}", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)


class SignsOfLife:
    """Leaves a sign of life every few seconds, from a thread, and looks for those of the others while it is told to.

    Args:
        store: What all processes see.
        rank: The number of this one.
        count: How many there are.
        every: Seconds from one sign to the next.
        patience: Seconds without a sign of another process after which it is gone.
        lost: Told a sentence when one is gone.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        count: int,
        *,
        every: float = _EVERY,
        patience: float = _PATIENCE,
        lost: Callable[[str], None] = end_process,
    ) -> None:
        """Leave the first sign."""
        self._store, self._rank = store, rank
        self._keys = [f"damro/alive/{number}" for number in range(count)]
        self._every, self._patience, self._lost = every, patience, lost
        self._watched, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="signs of life", daemon=True)
        self._store.set(self._keys[rank], "0")

    def start(self) -> None:
        """Begin, when all have left their first sign."""
        self._thread.start()

    def leave(self) -> None:
        """Tell the others that this process ends."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(self._every)  # an interpreter must not end while a thread of it is in torch
        with suppress(RuntimeError):  # the store may be gone already
            self._store.set(self._keys[self._rank], _LEFT.decode())

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While open, others that are gone are told of."""
        self._watched.set()
        try:
            yield
        finally:
            self._watched.clear()

    def _run(self) -> None:
        seen: dict[int, tuple[bytes, float]] = {}
        sign = 0
        while not self._ended.wait(self._every):
            sign += 1
            gone = self._look(sign, seen)
            if not self._watched.is_set():
                seen.clear()  # who is late may be loading a model; patience begins with the watch
            elif gone:
                self._lost(f"all {len(self._keys)} processes of a run must live until it is done, {gone}: {_REMEDY}")
                return

    def _look(self, sign: int, seen: dict[int, tuple[bytes, float]]) -> str | None:
        """Leave a sign, and say who is gone."""
        try:
            self._store.set(self._keys[self._rank], str(sign))
            told = self._store.multi_get(self._keys)
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            return f"process {self._rank} does not reach the launcher of the first one any more ({reason})"
        now = time.monotonic()
        for rank, value in enumerate(told):
            if value == _LEFT:
                return f"process {rank} ended before"
            before, since = seen.get(rank, (None, now))
            seen[rank] = (value, since if value == before else now)
            if now - seen[rank][1] > self._patience:
                return f"process {rank} gave no sign for {self._patience:.0f} seconds"
        return None
