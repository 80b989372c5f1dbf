"""Failures that are not about a sample: a device that died, a disk that went away, a setting that fits no sample.

Recorded as failures they would be the samples', and never done again. So they end the run and leave the samples undone.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from damro.eval.errors import EvalError

IN_A_ROW = 5
"""So many failures of one kind in a row, of different images, are no accident."""

_DEVICE = re.compile(
    r"\b(CUDA|HIP|XPU|MPS|cuda|driver|NCCL|cuDNN|cuBLAS|CUDNN|CUBLAS|cuFFT|cuSOLVER|MIOpen|device-side)\b.*\b(error|assert)"
    r"|\b(CUBLAS|CUDNN|CUSOLVER|CUSPARSE|NCCL|MIOPEN)_STATUS_",
    re.IGNORECASE,
)
# Of the disk or the share that files lie on, or of the process; none says anything about one file.
_DISK = {
    getattr(errno, name)
    for name in (
        *("EIO", "ENXIO", "ENODEV", "ENOTCONN", "ESTALE", "EMFILE", "ENFILE", "ENOSPC", "EDQUOT", "EROFS"),
        *("ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "EREMOTEIO", "ENOMEDIUM"),
    )
    if hasattr(errno, name)
}


class SystemicFaultError(EvalError):
    """Samples failed one after the other with what is not about them."""


class Fault(NamedTuple):
    """A failure that may not be the sample's.

    Attributes:
        kind: Type and message, without the numbers in them.
        everywhere: Whether it is of the device or the disk: then it counts also after samples that went well.
    """

    kind: str
    everywhere: bool


def find_fault(error: BaseException, *, opening: bool = False, short_of_memory: bool = False) -> Fault | None:
    """Return what may be wrong beside the sample; None if it is the sample's.

    Args:
        error: What was raised.
        opening: While its image was opened: then all but the disk's own errors are about the image.
        short_of_memory: Whether the device was full, which the next sample may fit.

    Example:
        >>> find_fault(RuntimeError("CUDA error: device-side assert triggered"))
        Fault(kind='RuntimeError: CUDA error: device-side assert triggered', everywhere=True)
        >>> find_fault(IndexError("index 7 is out of range"))
        Fault(kind='IndexError: index # is out of range', everywhere=False)
        >>> find_fault(OSError("no image"), opening=True)
    """
    kind = f"{type(error).__name__}: {re.sub(r'[0-9]+', '#', str(error).partition(chr(10))[0])}"
    codes = {one.errno for one in _causes(error) if isinstance(one, OSError)}
    if codes & _DISK:
        return Fault(kind, True)
    if opening:
        return None
    device = type(error).__name__ == "AcceleratorError" or bool(_DEVICE.search(str(error)))
    of_the_system = isinstance(error, OSError) and error.errno is not None
    return Fault(kind, (device or of_the_system) and not short_of_memory)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from."""
    for _ in range(10):  # a chain may bite its tail
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


@dataclass
class Streak:
    """Records of failures that follow each other and may not be their samples', held back until that is decided.

    Attributes:
        answered: Whether a sample has been answered: then only what is everywhere counts.
        held: The records.
    """

    answered: bool = False
    held: list[dict[str, Any]] = field(default_factory=list)
    _fault: Fault | None = None

    def add(self, fields: dict[str, Any], fault: Fault | None) -> list[dict[str, Any]]:
        """Take a record, and return those that can be written, in their order.

        Raises:
            SystemicFaultError: It is one of `IN_A_ROW` of a kind; none of them is to be written.
        """
        self.answered = self.answered or "error" not in fields
        if fault is None or not (fault.everywhere or not self.answered):
            return [*self._let_go(), fields]
        free = [] if self._goes_on(fault) else self._let_go()
        self._fault = fault
        self.held.append(fields)
        # Questions about one image fail together where the image is at fault.
        if len({one["image"] for one in self.held} if not fault.everywhere else self.held) >= IN_A_ROW:
            raise self._error()
        return free

    def end(self) -> list[dict[str, Any]]:
        """Return what is still held at the end of a run.

        Raises:
            SystemicFaultError: It is of the device or the disk.
        """
        if self._fault is not None and self._fault.everywhere:
            raise self._error()
        return self._let_go()

    def _goes_on(self, fault: Fault) -> bool:
        before = self._fault
        return before is None or before.kind == fault.kind or (before.everywhere and fault.everywhere)

    def _let_go(self) -> list[dict[str, Any]]:
        free, self.held, self._fault = self.held, [], None
        return free

    def _error(self) -> SystemicFaultError:
        last = self.held[-1]
        return SystemicFaultError(
            f"samples must fail by themselves, got {len(self.held)} in a row that failed alike, the last "
            f"{last['id']!r} with: {last['error']}. They are left undone: mend it and give the same command again to "
            "go on"
        )
