"""Commands as a user gives them, in this process or in one of their own, and whether what they say is fit for one."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from damro.cli import main

ROOT = Path(__file__).parents[2]


class Told(NamedTuple):
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """The lines of stderr without bars of progress."""
        return [line for line in self.err.splitlines() if line.strip() and "it/s]" not in line]


def call(words: Sequence[str | Path]) -> Told:
    """A command in this process; an exception that leaves it is a failure of the test."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace", write_through=True)
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main([str(word) for word in words])
        except SystemExit as stopped:
            code = int(stopped.code or 0)
    streams: list[Any] = [out.buffer, err.buffer]
    return Told(code, *(stream.getvalue().decode() for stream in streams))


def start(words: Sequence[str | Path], **options: Any) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "damro", *map(str, words)],
        env=environment,
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def check_refused(told: Told, what: str) -> None:
    """Whether a command that must fail said so as promised: exit code 2, one line of ours on stderr, no traceback."""
    assert told.code == 2, (what, told)
    assert "Traceback" not in told.err, (what, told.err)
    ours = [line for line in told.lines if line.startswith("damro")]
    assert len(ours) == 1 and ours[0] == told.lines[-1] and len(ours[0]) > 30, (what, told.err)
