"""Runs that answer every sample by itself: neither order nor what else is asked changes a bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from damro.cli import main
from damro.decoding.families import family_of
from damro.eval.errors import EvalError
from damro.eval.runs.record import RunMismatchError, load_run
from damro.eval.runs.request import RunRequest
from damro.eval.runs.run import Asked, Prepared, prepare, run_benchmark, run_benchmarks

METHODS = ["greedy", "damro", "vcd@0.7"]


def asked(method: str = "greedy", *, exact: bool = True, **options: Any) -> RunRequest:
    told = {"scenes": 4, "max_new_tokens": 8, "device": "cpu"}
    return RunRequest("pope", "tiny", method, exact=exact, **{**told, **options})


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    """Questions, several about an image."""
    return prepare(asked())


def reordered(prepared: Prepared, numbers: Sequence[int]) -> Prepared:
    samples = prepared.dataset.samples
    return prepared._replace(dataset=replace(prepared.dataset, samples=[samples[number] for number in numbers]))


def told(records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What was answered, and P(yes)."""
    kept = ("answer", "p_yes", "outliers", "error")
    return {key: {name: fields.get(name) for name in kept} for key, fields in records.items()}


@contextmanager
def watched(prepared: Prepared) -> Iterator[tuple[Counter[bytes], list[int]]]:
    """Every bit of the logits that the language model returns while open, and how many rows it returns at once."""
    seen: Counter[bytes] = Counter()
    rows: list[int] = []

    def look(module: Any, args: Any, logits: Tensor) -> None:
        rows.append(len(logits))
        seen[logits[:, -1].numpy().tobytes()] += 1

    model = prepared.loaded.model
    hook = family_of(model).decoder(model).get_output_embeddings().register_forward_hook(look)
    try:
        yield seen, rows
    finally:
        hook.remove()


@pytest.mark.parametrize("method", METHODS)
def test_logits_are_the_same_to_the_bit_in_any_order_and_company(
    prepared: Prepared, tmp_path: Path, method: str
) -> None:
    count = len(prepared.dataset.samples)
    with watched(prepared) as (whole, rows):
        records = run_benchmark(asked(method), tmp_path / "whole", prepared=prepared)
    with watched(prepared) as (backwards, _):
        turned = run_benchmark(asked(method), tmp_path / "backwards", prepared=reordered(prepared, range(count)[::-1]))
    with watched(prepared) as (part, _):
        some = run_benchmark(asked(method), tmp_path / "part", prepared=reordered(prepared, range(1, count, 3)))
    assert whole == backwards and part < whole
    assert told(turned) == told(records)
    assert told(some).items() <= told(records).items()
    assert max(rows) <= 2  # the full prompt and the other one
    with watched(prepared) as (_, rows):
        run_benchmark(asked(method, exact=False), tmp_path / "batches", prepared=prepared)
    assert max(rows) > 2


def test_p_yes_is_the_same_to_the_bit(prepared: Prepared, tmp_path: Path) -> None:
    count = len(prepared.dataset.samples)
    request = asked("damro", data={"read": "logits"}, max_new_tokens=None)
    records = run_benchmark(request, tmp_path / "whole", prepared=prepared)
    turned = run_benchmark(request, tmp_path / "backwards", prepared=reordered(prepared, range(count)[::-1]))
    assert told(turned) == told(records)
    assert all(isinstance(fields["p_yes"], float) for fields in records.values())


def test_methods_of_one_command_have_the_records_of_each_alone(prepared: Prepared, tmp_path: Path) -> None:
    together = run_benchmarks(
        [Asked(asked(method), tmp_path / "together" / method) for method in METHODS], prepared=prepared
    )
    for method, records in zip(METHODS, together, strict=True):
        alone = run_benchmark(asked(method), tmp_path / "alone" / method, prepared=prepared)
        assert told(records) == told(alone)
        assert load_run(tmp_path / "together" / method)["request"]["exact"] is True


def test_a_sample_that_fails_fails_alone(prepared: Prepared, tmp_path: Path) -> None:
    first = prepared.dataset.samples[0].image

    def open_image(name: str) -> Any:
        if name == first:
            raise OSError(f"{name}: no such file")
        return prepared.dataset.open_image(name)

    broken = prepared._replace(dataset=replace(prepared.dataset, open_image=open_image))
    records = run_benchmark(asked(), tmp_path / "broken", prepared=broken)
    whole = told(run_benchmark(asked(), tmp_path / "whole", prepared=prepared))
    failed = {key for key, fields in records.items() if "error" in fields}
    assert failed == {sample.sample_id for sample in prepared.dataset.samples if sample.image == first}
    assert {key: value for key, value in told(records).items() if key not in failed} == {
        key: value for key, value in whole.items() if key not in failed
    }


def test_a_folder_holds_the_one_or_the_other(prepared: Prepared, tmp_path: Path) -> None:
    run_benchmark(asked(exact=False), tmp_path, prepared=prepared)
    with pytest.raises(RunMismatchError, match="request.exact: false -> true"):
        run_benchmark(asked(), tmp_path, prepared=prepared)


def test_what_does_not_go_together_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EvalError, match="--exact must come without --continuous"):
        asked(continuous=True)
    assert main(["run", "pope", "--model", "tiny", "--exact", "--batch-size", "4"]) == 2
    assert "--exact must come without --batch-size" in capsys.readouterr().err
