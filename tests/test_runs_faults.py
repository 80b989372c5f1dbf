"""eval/runs/faults.py: what is not about a sample ends a run and leaves the samples undone."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from run_stub import answer, make_samples

from damro.eval.runs.faults import IN_A_ROW, Fault, SystemicFaultError, find_fault
from damro.eval.runs.loop import Answered, Loop
from damro.eval.samples import Sample
from damro.images import ImageError

DEVICE = Fault("AcceleratorError: CUDA error: unspecified launch failure", True)
SETTING = Fault("ValueError: heads must divide #", False)
AnswerBatch = Callable[[Sequence[Sample]], list[Answered]]


def raised(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "everywhere"),
    [
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), True),
        (RuntimeError("HIP error: invalid device function"), True),
        (RuntimeError("NCCL error in: ProcessGroupNCCL.cpp"), True),
        (OSError(errno.EIO, "Input/output error"), True),
        (raised(RuntimeError("cannot save"), OSError(errno.ENOSPC, "No space left on device")), True),
        (RuntimeError("shape '[2, 3]' is invalid for input of size 5"), False),
        (ValueError("keep_tokens must not exceed the 16 patches"), False),
    ],
)
def test_faults_of_the_device_and_the_disk_are_told_apart(error: Exception, everywhere: bool) -> None:
    found = find_fault(error)
    assert found is not None and found.everywhere is everywhere


def test_an_image_is_the_samples_own_and_its_disk_is_not() -> None:
    def opened(cause: Exception) -> Fault | None:
        return find_fault(raised(ImageError("image must be a file that Pillow can open"), cause), opening=True)

    assert opened(OSError("cannot identify image file")) is None
    assert opened(FileNotFoundError(errno.ENOENT, "No such file")) is None
    for number in (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EMFILE):
        found = opened(OSError(number, "the disk"))
        assert found is not None and found.everywhere


def test_memory_that_does_not_suffice_is_the_samples() -> None:
    found = find_fault(torch.OutOfMemoryError("CUDA out of memory. CUDA error: no"), short_of_memory=True)
    assert found is not None and not found.everywhere


def test_numbers_do_not_make_another_kind() -> None:
    first, second = (find_fault(IndexError(f"index {number} is out of range\nmore")) for number in (3, 512))
    assert first == second == Fault("IndexError: index # is out of range", False)


def failing(fault: Fault | None, fails: Callable[[int], bool]) -> AnswerBatch:
    """Answers of the stub, of which some samples have none for a reason of their own or another."""

    def of(batch: Sequence[Sample]) -> list[Answered]:
        return [
            Answered(None, error=f"no answer to {sample.sample_id}", fault=fault)
            if fails(int(sample.fields["question_id"]))
            else Answered(sample.prompt)
            for sample in batch
        ]

    return of


def recorded(folder: Path) -> list[str]:
    return [json.loads(line)["id"] for line in (folder / "records.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("size", [1, 2, 8])
@pytest.mark.parametrize("start", [0, 3, 11])
def test_a_dead_device_ends_the_run_and_leaves_its_samples_undone(tmp_path: Path, size: int, start: int) -> None:
    samples = make_samples(40)
    whole = Loop(batch_size=size).run(tmp_path / "whole", samples, failing(None, lambda number: False))
    folder = tmp_path / "cut"
    with pytest.raises(
        SystemicFaultError, match=rf"got {IN_A_ROW} in a row .* 's/{start + IN_A_ROW - 1}' with: no answer to s/.*again"
    ):
        Loop(batch_size=size).run(folder, samples, failing(DEVICE, lambda number: number >= start))
    assert recorded(folder) == [f"s/{number}" for number in range(start)]
    again = Loop(batch_size=size).run(folder, samples, failing(None, lambda number: False))
    assert [without_time(one) for one in again.values()] == [without_time(one) for one in whole.values()]


def without_time(fields: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in fields.items() if name != "seconds"}


def test_a_device_that_dies_on_the_last_samples_leaves_them_undone(tmp_path: Path) -> None:
    with pytest.raises(SystemicFaultError, match="got 2 in a row"):
        Loop(batch_size=4).run(tmp_path, make_samples(10), failing(DEVICE, lambda number: number >= 8))
    assert len(recorded(tmp_path)) == 8


def test_a_device_that_recovers_has_failed_one_sample(tmp_path: Path) -> None:
    records = Loop(batch_size=4).run(tmp_path, make_samples(20), failing(DEVICE, lambda number: number % 5 < 4))
    assert len(records) == 20 and sum("error" in fields for fields in records.values()) == 16
    assert list(records) == recorded(tmp_path)


def test_a_setting_that_fits_no_sample_ends_the_run_at_its_start_alone(tmp_path: Path) -> None:
    with pytest.raises(SystemicFaultError, match="got 5 in a row"):
        Loop(batch_size=2).run(tmp_path / "none", make_samples(20), failing(SETTING, lambda number: True))
    assert recorded(tmp_path / "none") == []
    # After one answer it is the samples'.
    records = Loop(batch_size=2).run(tmp_path / "one", make_samples(20), failing(SETTING, lambda number: number > 0))
    assert sum("error" in fields for fields in records.values()) == 19
    # So it is in a run that goes on after an answer.
    Loop(batch_size=2).run(tmp_path / "on", make_samples(20)[:1], failing(None, lambda number: False))
    records = Loop(batch_size=2).run(tmp_path / "on", make_samples(20), failing(SETTING, lambda number: True))
    assert sum("error" in fields for fields in records.values()) == 19


def test_failures_of_their_own_and_few_ones_are_recorded(tmp_path: Path) -> None:
    own = Loop(batch_size=4).run(tmp_path / "own", make_samples(20), failing(None, lambda number: True))
    assert len(own) == 20
    few = Loop(batch_size=4).run(tmp_path / "few", make_samples(4), failing(SETTING, lambda number: True))
    assert list(few) == recorded(tmp_path / "few") and len(few) == 4


def test_many_questions_about_one_image_are_one_failure(tmp_path: Path) -> None:
    samples = [sample._replace(image=f"{number // 12}.jpg") for number, sample in enumerate(make_samples(36))]
    records = Loop(batch_size=4).run(tmp_path, samples, failing(SETTING, lambda number: number < 12))
    assert sum("error" in fields for fields in records.values()) == 12


def test_the_stub_of_other_tests_fails_by_its_samples(tmp_path: Path) -> None:
    assert len(Loop(batch_size=4).run(tmp_path, make_samples(30), answer)) == 30
