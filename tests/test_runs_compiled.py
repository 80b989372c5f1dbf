"""Runs with a compiled step: the same answers, told in run.json, refused where nothing would come of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from damro.cli import main
from damro.decoding.errors import ParameterError
from damro.eval.errors import EvalError
from damro.eval.runs.record import RunMismatchError, load_run
from damro.eval.runs.request import RunRequest
from damro.eval.runs.run import prepare, run_benchmark
from tests.test_branches_compiled import interpreted

__all__ = ["interpreted"]  # a fixture

TINY = {"scenes": 3, "limit": 6, "device": "cpu"}


@pytest.mark.parametrize("method", ["greedy", "damro", "damro@0.7"])
def test_answers_are_those_of_the_uncompiled_step(interpreted: list[Any], tmp_path: Path, method: str) -> None:
    told = {}
    for compiled in (True, False):
        request = RunRequest("chair", "tiny", method, compile=compiled, **TINY)
        records = run_benchmark(request, tmp_path / f"{compiled}")
        told[compiled] = [(key, fields["answer"], fields["outliers"]) for key, fields in records.items()]
        assert load_run(tmp_path / f"{compiled}")["request"]["compile"] is compiled
    assert told[True] == told[False]
    assert interpreted  # the compiler was asked


def test_the_rest_of_a_run_is_decoded_as_its_beginning(interpreted: list[Any], tmp_path: Path) -> None:
    run_benchmark(RunRequest("chair", "tiny", "greedy", **TINY), tmp_path)
    with pytest.raises(RunMismatchError, match="request.compile: false -> true"):
        run_benchmark(RunRequest("chair", "tiny", "greedy", compile=True, **TINY), tmp_path)


def test_what_cannot_be_compiled_is_told_before_the_first_sample(interpreted: list[Any]) -> None:
    with pytest.raises(ParameterError, match="compile must be left out with a method that"):
        prepare(RunRequest("chair", "tiny", "opera", compile=True, **TINY))


def test_logits_that_are_read_take_no_step() -> None:
    with pytest.raises(EvalError, match="--compile must be left out with --read logits"):
        RunRequest("pope", "tiny", data={"read": "logits"}, compile=True, **TINY)


def test_passes_of_a_graph_are_not_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "chair", "--model", "tiny", "--compile", "--cost"]) == 2
    assert "--cost must be left out with --compile" in capsys.readouterr().err
