"""Runs whose samples take each other's places: the answers of batches, recorded as they come, resumed to the bit."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from damro.cli import main
from damro.decoding.families import family_of
from damro.eval.errors import EvalError
from damro.eval.runs.kept import Kept, KeptBatch
from damro.eval.runs.loop import FailedSampleError, Loop, Tally
from damro.eval.runs.record import RunMismatchError, load_run
from damro.eval.runs.request import RunRequest
from damro.eval.runs.run import Asked, Prepared, prepare, run_benchmark, run_benchmarks
from damro.eval.samples import Sample

METHODS = ["greedy", "damro", "m3id@0.7"]


def asked(method: str = "damro", **options: Any) -> RunRequest:
    told = {"scenes": 18, "max_new_tokens": 16, "batch_size": 3, "device": "cpu"}
    return RunRequest("chair", "tiny", method, **{**told, **options})


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(asked())


def told(records: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in fields.items() if key not in ("seconds", "digest")} for fields in records.values()
    ]


def test_answers_are_those_of_batches(prepared: Prepared, tmp_path: Path) -> None:
    runs = [Asked(asked(method, continuous=True), tmp_path / method) for method in METHODS]
    for method, records in zip(METHODS, run_benchmarks(runs, prepared=prepared), strict=True):
        batches = run_benchmark(asked(method), tmp_path / f"{method}-batches", prepared=prepared)
        assert told(records) == told(batches)
        assert load_run(tmp_path / method)["request"]["continuous"] is True


def test_methods_have_turns_and_look_at_an_image_once(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, order, sizes = [], [], []
    tower = family_of(prepared.loaded.model).vision_tower(prepared.loaded.model)
    hook = tower.register_forward_hook(lambda *args: looked.append(None))
    of = KeptBatch.of

    def watched(self: KeptBatch, samples: Sequence[Sample]) -> Kept:
        kept = of(self, samples)
        sizes.append(sum(map(len, self._kept)))
        return kept

    monkeypatch.setattr(KeptBatch, "of", watched)
    try:
        alone = run_benchmark(asked("greedy", continuous=True), tmp_path / "alone", prepared=prepared)
        once = len(looked)
        runs = [
            Asked(asked(method, continuous=True), tmp_path / method, lambda _, name=method: order.append(name))
            for method in ("greedy", "damro", "random-k")
        ]
        monkeypatch.setattr("damro.eval.runs.loop._SYNC", 0.0)
        looked.clear()
        together = run_benchmarks(runs, prepared=prepared)
    finally:
        hook.remove()
    # Of three places one sample is read at a time. Before that each method may look at a blank image twice, and the
    # first samples are looked at again by the first method that wants attention.
    assert len(alone) <= once <= len(alone) + 2
    assert len(alone) <= len(looked) <= len(alone) + 3 * 2 + 3
    assert told(together[0]) == told(alone)
    assert max(sizes) <= 3
    turns = "".join(name[0] for name in order)
    assert re.search("gdr.*gdr", turns) and turns.count("g") > len(alone)


def test_what_is_written_is_on_the_disk_and_is_not_asked_for_again(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("damro.eval.runs.loop._SYNC", 0.0)
    whole = run_benchmark(asked(continuous=True), tmp_path / "whole", prepared=prepared)

    def stop(tally: Tally) -> None:
        if tally.done >= 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_benchmark(asked(continuous=True), tmp_path / "cut", loop=Loop(progress=stop), prepared=prepared)
    lines = [json.loads(line) for line in (tmp_path / "cut" / "records.jsonl").read_text().splitlines()]
    assert 5 <= len(lines) < len(whole)
    again = run_benchmark(asked(continuous=True), tmp_path / "cut", prepared=prepared)
    assert told(again) == told(whole)
    assert [again[fields["id"]] for fields in lines] == lines


def test_batches_and_places_are_not_mixed_in_a_folder(prepared: Prepared, tmp_path: Path) -> None:
    run_benchmark(asked(), tmp_path, prepared=prepared)
    with pytest.raises(RunMismatchError, match="request.continuous: false -> true"):
        run_benchmark(asked(continuous=True), tmp_path, prepared=prepared)


def test_a_sample_that_fails_ends_a_strict_run(prepared: Prepared, tmp_path: Path) -> None:
    def nowhere(name: str) -> Any:
        raise OSError(f"{name}: no such file")

    broken = prepared._replace(dataset=replace(prepared.dataset, open_image=nowhere))
    with pytest.raises(FailedSampleError, match="must be answered under --strict"):
        run_benchmark(asked(continuous=True), tmp_path, loop=Loop(strict=True), prepared=broken)


@pytest.mark.parametrize("method", ["opera", "dola"])
def test_methods_that_need_batches_are_refused_before_the_first_sample(prepared: Prepared, method: str) -> None:
    with pytest.raises(
        EvalError, match=f"--continuous must be left out with {method}, whose answers .* batch by batch"
    ):
        prepare(asked(method, continuous=True))


def test_what_does_not_go_together_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EvalError, match="--continuous must be left out with --compile"):
        asked(continuous=True, compile=True)
    with pytest.raises(EvalError, match="--continuous must be left out with --read logits"):
        RunRequest("pope", "tiny", data={"read": "logits"}, continuous=True)
    assert main(["run", "chair", "--model", "tiny", "--continuous", "--cost"]) == 2
    assert "--cost must be left out with --continuous" in capsys.readouterr().err
