"""Scores and parameters of runs, told to what keeps track of experiments: an extra each, imported when it is used."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from damro.eval.errors import EvalError
from damro.eval.report.comparison import Comparison
from damro.eval.runs.record import folder_name

PROJECT = "damro"
"""What experiments are called there."""
_MODULES = {"wandb": "wandb", "tensorboard": "torch.utils.tensorboard", "mlflow": "mlflow"}
TRACKERS: tuple[str, ...] = tuple(_MODULES)
"""Names of what can be told."""
Parameters = Mapping[str, str | float | bool]
Scores = Mapping[str, float]


def check_tracker(name: str) -> None:
    """Refuse what is not installed; a run of hours shall not end with that.

    Raises:
        EvalError: It cannot be imported.
    """
    try:
        import_module(_MODULES[name])
    except ImportError as error:
        raise EvalError(
            f"--report-to {name} needs the package {name}, which cannot be imported ({error}): pip install "
            f"'damro[{name}]'"
        ) from error


def track(name: str, comparison: Comparison, runs: Mapping[str, Mapping[str, Any]], out: Path) -> None:
    """Tell scores and parameters, an experiment a run.

    Args:
        name: One of `TRACKERS`.
        comparison: The scores, of which those of the comparison's own samples are told, fractions as they are.
        runs: The ``run.json`` of runs, by their names in the comparison; others are not told.
        out: Folder of what is written here: ``tensorboard`` in it, or wandb's own files.

    Raises:
        EvalError: It refuses.
    """
    tell: Callable[[str, Parameters, Scores, Path], None] = _TELL[name]
    rows = comparison.rows()
    for entry in comparison.entries:
        if entry.name not in runs:
            continue
        scores = {
            f"{_plain(row.group)}/{_plain(row.metric)}": row.value.estimate
            for row in rows
            if row.method == entry.name and row.value is not None
        }
        try:
            tell(f"{comparison.benchmark} {entry.name}", parameters_of(runs[entry.name]), scores, out)
        except Exception as error:  # of any kind: the network's, the account's, the package's
            raise EvalError(
                f"--report-to must take the scores, {name} failed with {type(error).__name__}: {error}; they are in "
                f"{out}, and the same command tells them again"
            ) from error


def parameters_of(run: Mapping[str, Any]) -> dict[str, str | float | bool]:
    """Return what a run was asked for, and the parameters of its method, as plain values."""
    method = (run.get("resolved") or {}).get("method") or {}
    told = {**run["request"], **{f"method/{key}": value for key, value in (method.get("parameters") or {}).items()}}
    told |= {f"data/{key}": value for key, value in (told.pop("data", None) or {}).items()}
    return {
        key: value if isinstance(value, str | int | float) else " ".join(map(str, value))
        for key, value in told.items()
        if value is not None
    }


def _plain(name: str) -> str:
    """A name of the letters that all of them take."""
    return re.sub(r"[^\w\-. ]", "_", name)


def _tell_wandb(title: str, parameters: Parameters, scores: Scores, out: Path) -> None:
    wandb = import_module(_MODULES["wandb"])
    run = wandb.init(project=PROJECT, name=title, config=dict(parameters), dir=str(out))
    run.summary.update(dict(scores))
    run.finish()


def _tell_tensorboard(title: str, parameters: Parameters, scores: Scores, out: Path) -> None:
    writer = import_module(_MODULES["tensorboard"]).SummaryWriter(str(out / "tensorboard" / folder_name(title)))
    # Its own name for the run would be the time of day, in a folder of its own.
    writer.add_hparams(dict(parameters), dict(scores), run_name=".")
    writer.close()


def _tell_mlflow(title: str, parameters: Parameters, scores: Scores, out: Path) -> None:
    mlflow = import_module(_MODULES["mlflow"])
    mlflow.set_experiment(PROJECT)
    with mlflow.start_run(run_name=title):
        mlflow.log_params(dict(parameters))
        mlflow.log_metrics(dict(scores))


_TELL = {"wandb": _tell_wandb, "tensorboard": _tell_tensorboard, "mlflow": _tell_mlflow}
