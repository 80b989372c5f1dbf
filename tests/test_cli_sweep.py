"""damro sweep: ordinary runs underneath, a table, a figure and a report on top."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from run_cli import call, code_of
from test_cli_run import FAST
from test_cli_run import world as world

from damro.eval.errors import EvalError

GRID = ["--alpha", "0", "1", "--top-k", "3", "6"]


def sweep(world: Path, out: Path, *more: str) -> list[str]:
    files = ["--questions", str(world / "questions.jsonl"), "--images", str(world / "images")]
    return ["sweep", "pope", "--model", str(world / "model"), *files, "--out", str(out), *FAST, *GRID, *more]


def test_a_sweep_is_of_runs_that_go_on(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*sweep(world, tmp_path, "--control", "no-image", "--method", "damro:beta=0.2")) == 0
    table = capsys.readouterr().out
    runs = sorted(path.parent.name for path in tmp_path.glob("*/run.json"))
    assert runs == [
        *("damro_alpha=0,beta=0.2,top_k=3", "damro_alpha=1,beta=0.2,top_k=3", "damro_alpha=1,beta=0.2,top_k=6"),
        *("greedy", "no-image_alpha=0", "no-image_alpha=1"),
    ]
    lines = [line for line in (tmp_path / "sweep.csv").read_text().splitlines()[1:]]
    assert [line.split(",")[:4] for line in lines] == [
        *(["damro", alpha, top_k, "accuracy"] for alpha in "01" for top_k in "36"),
        *(["no-image", alpha, "", "accuracy"] for alpha in "01"),
    ]
    whole = json.loads((tmp_path / "scores.json").read_text())["methods"]
    value = next(of for name, of in whole.items() if "alpha=1" in name and "top_k=6" in name)
    assert float(lines[3].split(",")[4]) == pytest.approx(value["scores"]["questions.jsonl"]["accuracy"], abs=1e-4)
    assert table.count("damro") == 4 and table.count("no-image") == 2
    assert (tmp_path / "sweep.md").read_text().count("| damro |") == 4
    assert ElementTree.parse(tmp_path / "sweep.svg").getroot().tag.endswith("svg")
    assert "over alpha and top-k" in (tmp_path / "report.html").read_text()

    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/records.jsonl")}
    assert call(*sweep(world, tmp_path, "--control", "no-image", "--method", "damro:beta=0.2", "--latex")) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before  # nothing was asked again
    assert r"\toprule" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--method", "greedy"], "a sweep must be of a method with alpha, got 'greedy'"),
        (["--control", "damro"], "--control must be another method than --method, got 'damro'"),
    ],
)
def test_what_cannot_be_swept_is_refused(world: Path, tmp_path: Path, options: list[str], reason: str) -> None:
    with pytest.raises(EvalError, match=reason):
        call(*sweep(world, tmp_path, *options))
    assert not list(tmp_path.iterdir())


def test_a_misspelt_number_of_patches_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(["sweep", "pope", "--top-k", "0", "--out", str(tmp_path)]) == 2
    assert "--top-k must be a whole number of at least 1, got '0'" in capsys.readouterr().err
