from functools import partial
from pathlib import Path

import torch

from damro.tiny.parallel import average_gradients, place, run_parallel, share_of


def write_gradient(folder: Path) -> None:
    """The gradient of a mean over this process's share of a batch of four, averaged over the processes."""
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    unused = torch.tensor([3.0], requires_grad=True)
    rows = torch.arange(8.0).view(4, 2)[list(share_of(4))]
    (rows @ weight).square().mean().backward()
    average_gradients([weight, unused])
    rank, world = place()
    torch.save(weight.grad, folder / f"{world}-{rank}.pt")


def test_two_processes_find_the_gradient_of_one(tmp_path: Path) -> None:
    for workers in (1, 2):
        run_parallel(partial(write_gradient, tmp_path), workers, tmp_path / "state" / "meeting")
    alone, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    # Row sums with weights (1, 2): 2, 8, 14, 20. Gradient = 2/4 sum of value * row.
    assert alone.tolist() == [0.5 * (2 * 0 + 8 * 2 + 14 * 4 + 20 * 6), 0.5 * (2 * 1 + 8 * 3 + 14 * 5 + 20 * 7)]
    assert torch.equal(first, alone) and torch.equal(second, alone)
    assert not (tmp_path / "state" / "meeting").exists()


def test_one_process_takes_the_whole_batch() -> None:
    assert share_of(6) == range(6)
    assert place() == (0, 1)
