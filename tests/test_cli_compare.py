"""damro compare of a folder of runs, scores as LaTeX, and what damro run reports to others."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from run_cli import call
from test_cli_run import pope
from test_cli_run import world as world


def test_a_folder_of_runs_is_compared_and_told_in_other_forms(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    fake = ModuleType("wandb")
    fake.init = lambda **options: SimpleNamespace(  # type: ignore[attr-defined]
        summary={}, finish=lambda: told.append(options["name"])
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    assert call(*pope(world, tmp_path, "--methods", "damro", "greedy", "--top-k", "4", "--report-to", "wandb")) == 0
    assert told == ["pope damro", "pope greedy"]
    capsys.readouterr()
    assert call("compare", str(tmp_path), "--json") == 0
    assert list(json.loads(capsys.readouterr().out)["methods"]) == ["greedy", "damro"]  # plain decoding first
    assert call("compare", str(tmp_path), "--latex", "--out", str(tmp_path / "compared")) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("\\begin{table}") and printed.rstrip().endswith("\\end{table}")
    page = (tmp_path / "compared/report.html").read_text()
    assert page.count('"data:image/webp;base64,') == 5  # the run's own images
    (world / "images").rename(world / "moved")
    try:
        assert call("compare", str(tmp_path), "--out", str(tmp_path / "compared")) == 0
    finally:
        (world / "moved").rename(world / "images")
    assert "data:image/webp" not in (tmp_path / "compared/report.html").read_text()
