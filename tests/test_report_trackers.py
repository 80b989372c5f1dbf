"""eval/report/trackers.py: what wandb, TensorBoard and MLflow are told, by fakes of theirs; TensorBoard's own files."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from test_report_comparison import compare_answers

from damro.eval.errors import EvalError
from damro.eval.report.trackers import TRACKERS, check_tracker, parameters_of, track

RUN: dict[str, Any] = {
    "request": {"benchmark": "pope", "model": "m", "seed": 3, "limit": None, "data": {"split": ["a", "b"]}},
    "resolved": {"method": {"parameters": {"alpha": 2.0, "variant": "reference", "seed": None}}},
}
PARAMETERS = {
    **{"benchmark": "pope", "model": "m", "seed": 3, "method/alpha": 2.0, "method/variant": "reference"},
    "data/split": "a b",
}


def module(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> None:
    fake = ModuleType(name)
    fake.__dict__.update(contents)
    monkeypatch.setitem(sys.modules, name, fake)


def test_parameters_are_plain_values() -> None:
    assert parameters_of(RUN) == PARAMETERS


def test_wandb_is_told_a_run_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: list[Any] = []

    def init(**options: Any) -> Any:
        summary: dict[str, float] = {}
        return SimpleNamespace(summary=summary, finish=lambda: told.append((options, summary)))

    module(monkeypatch, "wandb", init=init)
    track("wandb", compare_answers(), {"greedy": RUN, "damro": RUN}, tmp_path)
    assert [options["name"] for options, _ in told] == ["pope greedy", "pope damro"]
    assert told[1][0] == {"project": "damro", "name": "pope damro", "config": PARAMETERS, "dir": str(tmp_path)}
    assert told[1][1]["s/accuracy"] == pytest.approx(50 / 60)
    assert set(told[1][1]) == {f"s/{name}" for name in ("accuracy", "precision", "recall", "f1", "yes_ratio")}


def test_mlflow_is_told_a_run_each_of_this_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: list[Any] = []

    @contextmanager
    def start_run(run_name: str) -> Any:
        told.append(run_name)
        yield
        told.append("end")

    names = ("set_experiment", "log_params", "log_metrics")
    module(monkeypatch, "mlflow", start_run=start_run, **dict.fromkeys(names, told.append))
    track("mlflow", compare_answers(), {"damro": RUN}, tmp_path)
    assert told[:3] == ["damro", "pope damro", PARAMETERS] and told[4] == "end" and len(told) == 5
    assert told[3]["s/accuracy"] == pytest.approx(50 / 60)


def test_tensorboard_is_told_a_folder_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: list[Any] = []

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            told.append(folder)

        def add_hparams(self, parameters: Any, scores: Any, run_name: str) -> None:
            told.append((parameters, scores["s/accuracy"], run_name))

        def close(self) -> None:
            told.append("closed")

    module(monkeypatch, "torch.utils.tensorboard", SummaryWriter=SummaryWriter)
    track("tensorboard", compare_answers(), {"damro": RUN}, tmp_path)
    assert told == [*(str(tmp_path / "tensorboard/pope_damro"), (PARAMETERS, pytest.approx(50 / 60), "."), "closed")]


def test_tensorboard_reads_its_files(tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs damro[tensorboard]"
    )
    track("tensorboard", compare_answers(), {"damro": RUN}, tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard/pope_damro"))
    events.Reload()
    assert events.Scalars("s/accuracy")[0].value == pytest.approx(50 / 60)
    assert len(list((tmp_path / "tensorboard/pope_damro").iterdir())) == len(
        [path for path in (tmp_path / "tensorboard").rglob("*") if path.is_file()]
    )


@pytest.mark.parametrize("name", TRACKERS)
def test_what_is_not_installed_is_told_before_a_run(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for one in ("wandb", "torch.utils.tensorboard", "mlflow"):
        monkeypatch.setitem(sys.modules, one, None)  # which makes an import fail
    with pytest.raises(EvalError, match=rf"--report-to {name} needs the package {name}.*pip install 'damro\[{name}\]'"):
        check_tracker(name)


def test_a_refusal_says_where_the_scores_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def init(**options: Any) -> Any:
        raise ConnectionError("no network")

    module(monkeypatch, "wandb", init=init)
    with pytest.raises(EvalError, match="wandb failed with ConnectionError: no network; they are in"):
        track("wandb", compare_answers(), {"greedy": RUN}, tmp_path)
