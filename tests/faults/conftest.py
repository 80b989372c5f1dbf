"""Runs that faults are done to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.commands import call

RUN = "run pope --model tiny --scenes 4 --max-new-tokens 2 --device cpu --batch-size 4"
"""A run of a second: 24 questions about four scenes."""


@pytest.fixture(scope="session")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two whole runs, of `greedy` and `no-image`; copy it before it is changed."""
    folder = tmp_path_factory.mktemp("whole_runs")
    told = call([*RUN.split(), "--methods", "greedy", "no-image", "--out", folder])
    assert told.code == 0, told.err
    return folder
