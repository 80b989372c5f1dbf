"""Processes of one run as threads that talk through a list."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from damro.eval.runs.group import LostWorkerError
from damro.eval.runs.sharding import Workers


class ThreadGroup:
    """What all threads of one run share; a `Member` is the view of one."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.largest = 0
        self.rounds: list[dict[int, Any]] = []
        self.gone: set[int] = set()
        self.changed = threading.Condition()

    def exchange(self, number: int, rank: int, value: Any) -> list[Any]:
        with self.changed:
            if number == len(self.rounds):
                self.rounds.append({})
            told = self.rounds[number]
            told[rank] = value
            self.changed.notify_all()
            self.changed.wait_for(lambda: len(told) == self.count or self.gone - set(told), timeout=20)
            if len(told) < self.count:
                raise LostWorkerError(f"{self.gone} are gone")
            return [told[other] for other in range(self.count)]

    def leave(self, rank: int) -> None:
        with self.changed:
            self.gone.add(rank)
            self.changed.notify_all()


class Member:
    """The group as one thread sees it: a `damro.eval.runs.group.Group`."""

    def __init__(self, group: ThreadGroup, rank: int) -> None:
        self.group, self.rank = group, rank
        self.number = 0

    def all_gather(self, value: Any) -> list[Any]:
        told = self.group.exchange(self.number, self.rank, value)
        self.number += 1
        return told

    def gather(self, value: Any) -> list[Any] | None:
        if value is not None:
            self.group.largest = max(self.group.largest, len(value[2]))
        told = self.all_gather(value)
        return told if self.rank == 0 else None

    def broadcast(self, value: Any) -> Any:
        told = self.all_gather(value)[0]
        if isinstance(told, dict):
            self.group.largest = max(self.group.largest, len(told))
        return told

    @contextmanager
    def watched(self) -> Iterator[None]:
        yield


def run_together(count: int, work: Callable[[Workers], Any]) -> tuple[list[Any], ThreadGroup]:
    """What each of some threads returned or raised; one that ends early ends the exchanges of the others."""
    group = ThreadGroup(count)
    results: list[Any] = [None] * count

    def act(rank: int) -> None:
        member = Member(group, rank)
        try:
            results[rank] = work(Workers(rank, count, lambda: member.all_gather(None) and None, member))
        except BaseException as error:
            results[rank] = error
            group.leave(rank)

    threads = [threading.Thread(target=act, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return results, group
