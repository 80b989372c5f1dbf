"""Signs of life between processes, with a table for a store; and real processes of which one is killed."""

import json
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from damro.eval.runs.group import GlooGroup, LostWorkerError, SignsOfLife


class Table:
    """A store in this process. One that is broken raises as torch's does."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.broken = False

    def set(self, key: str, value: str, /) -> None:
        if self.broken:
            raise RuntimeError("Broken pipe\nstack")
        self.values[key] = value

    def multi_get(self, keys: list[str], /) -> Sequence[bytes]:
        return [self.values[key].encode() for key in keys]


class Told:
    """Sentences, and when there is one."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.there = threading.Event()

    def __call__(self, sentence: str) -> None:
        self.sentences.append(sentence)
        self.there.set()


def pair(every: float = 0.01, patience: float = 0.5) -> tuple[Table, SignsOfLife, SignsOfLife, Told]:
    """Two processes, the first of which has begun."""
    table, told = Table(), Told()
    one, other = (SignsOfLife(table, rank, 2, every=every, patience=patience, lost=told) for rank in range(2))
    one.start()
    return table, one, other, told


def test_a_process_that_falls_silent_is_told_of() -> None:
    _, one, _, told = pair()
    began = time.monotonic()
    with one.watched():
        assert told.there.wait(20)
    assert time.monotonic() - began >= 0.5
    assert told.sentences == [
        "all 2 processes of a run must live until it is done, process 1 gave no sign for 0 seconds: give the same "
        "command again, what is recorded is used"
    ]


def test_a_process_that_works_is_not_told_of() -> None:
    _, one, other, told = pair(patience=2.0)
    other.start()
    with one.watched():
        assert not told.there.wait(3)
        other.leave()
        assert told.there.wait(1)  # long before patience ends
    assert "process 1 ended before" in told.sentences[0]


def test_nobody_is_told_of_before_and_behind_the_watch() -> None:
    table, one, other, told = pair(patience=0.1)
    assert not told.there.wait(0.4)  # silent all the time, as one that loads a model
    with one.watched():
        other.start()
        assert not told.there.wait(0.05)
    other.leave()
    table.broken = True
    assert not told.there.wait(0.4)


def test_a_store_that_is_gone_is_told_of() -> None:
    table, one, other, told = pair()
    other.start()
    with one.watched():
        table.broken = True
        assert told.there.wait(20)
    assert "process 0 does not reach the launcher of the first one any more (Broken pipe):" in told.sentences[0]
    one.leave()  # raises nothing


def meet(rank: int, port: int, place: Path) -> None:
    """One of three processes, which writes down what it is told; the last one is killed."""
    import torch.distributed as dist

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "3"}
    dist.init_process_group("gloo")
    group = GlooGroup(rank, 3, timedelta(days=7))
    told = [group.all_gather(rank), group.gather({"of": rank}), group.broadcast(rank + 5)]
    (place / f"told-{rank}").write_text(json.dumps(told))
    if rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        group.all_gather(None)
    except LostWorkerError as error:
        (place / f"lost-{rank}").write_text(str(error))


@pytest.mark.slow
def test_real_processes_tell_each_other_and_learn_that_one_is_killed(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=meet, args=(rank, port, tmp_path), daemon=True) for rank in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=90)
    assert [process.exitcode for process in processes] == [0, 0, -signal.SIGKILL]
    told = [json.loads((tmp_path / f"told-{rank}").read_text()) for rank in range(3)]
    everyone = [{"of": 0}, {"of": 1}, {"of": 2}]
    assert told == [[[0, 1, 2], everyone, 5], [[0, 1, 2], None, 5], [[0, 1, 2], None, 5]]
    for rank in range(2):
        sentence = (tmp_path / f"lost-{rank}").read_text()
        assert sentence.startswith(
            f"all 3 processes of a run must live until it is done, process {rank} lost another one ("
        )
        assert sentence.endswith("): give the same command again, what is recorded is used")
