"""Several single-threaded processes that share each batch.

On a CPU that does other work too, this is far faster than threads: they meet once a step, not in every operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, distributed, multiprocessing


def share_of(batch: int) -> range:
    """The part of a batch that this process takes.

    Args:
        batch: scenes a step; a multiple of the number of processes.

    Returns:
        Places in the batch; all of them when there is one process.

    Raises:
        ValueError: the batch cannot be shared evenly.

    Example:
        >>> share_of(4)
        range(0, 4)
    """
    rank, world = place()
    if batch % world:
        raise ValueError(f"batch must be a multiple of the {world} processes, not {batch}; change one of them")
    size = batch // world
    return range(rank * size, (rank + 1) * size)


def place() -> tuple[int, int]:
    """The number of this process and how many there are."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def average_gradients(weights: Sequence[Tensor]) -> None:
    """Replaces each gradient by its mean over the processes.

    Args:
        weights: their gradients are changed in place; the same ones must be set in every process.
    """
    _, world = place()
    if world == 1:
        return
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= world
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()


def run_parallel(work: Callable[[], object], workers: int, meeting: Path) -> None:
    """Calls a function in several processes at once, each with one thread.

    Args:
        work: picklable; `share_of` and `average_gradients` know the processes inside it.
        workers: how many; 1 calls it here, with the threads torch has.
        meeting: a file name for the processes to find each other; the file is removed.
    """
    if workers == 1:
        work()
        return
    meeting.parent.mkdir(parents=True, exist_ok=True)
    meeting.unlink(missing_ok=True)
    arguments = (work, workers, str(meeting.resolve()))
    multiprocessing.spawn(_enter, arguments, nprocs=workers)  # type: ignore[attr-defined, no-untyped-call]
    meeting.unlink(missing_ok=True)


def _enter(rank: int, work: Callable[[], object], workers: int, meeting: str) -> None:
    """One process of `run_parallel`."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=workers)
    try:
        work()
    finally:
        distributed.destroy_process_group()
