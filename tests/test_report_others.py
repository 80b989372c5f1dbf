"""eval/report/others.py: another method in the same folder keeps the scores of before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from damro.cli import main

TINY = ["run", "pope", "--limit", "2", "--scenes", "8", "--max-new-tokens", "2", "--device", "cpu"]


def scores(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "scores.json").read_text())["methods"])


def test_another_method_keeps_the_earlier_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*TINY, "--model", "tiny", "--out", str(tmp_path)]
    assert main([*command, "--methods", "greedy", "no-image"]) == 0
    before = scores(tmp_path)
    assert list(before) == ["greedy", "no-image"]
    capsys.readouterr()
    assert main([*command, "--method", "vcd", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["methods"] == scores(tmp_path)
    # What the command names comes first, and the others are compared with it.
    assert list(printed["methods"]) == ["vcd", "greedy", "no-image"]
    assert printed["baseline"] == "vcd"
    for name in ("greedy", "no-image"):
        now, then = (
            {group: without(values, "difference") for group, values in of[name]["scores"].items()}
            for of in (printed["methods"], before)
        )
        assert now == then
    for file in ("scores.md", "scores.csv", "report.html"):
        assert "no-image" in (tmp_path / file).read_text()
    # The same command again changes nothing; nor does the first, but for the order.
    assert main([*command, "--method", "vcd"]) == 0
    assert scores(tmp_path) == printed["methods"]
    assert main([*command, "--methods", "greedy", "no-image"]) == 0
    assert list(scores(tmp_path)) == ["greedy", "no-image", "vcd"]


def without(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


def test_runs_that_cannot_stand_beside_it_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*TINY, "--model", "tiny", "--out", str(tmp_path)]
    assert main([*command, "--method", "no-image"]) == 0
    assert (
        main([*TINY[:2], "--limit", "1", *TINY[4:], "--model", "tiny", "--out", str(tmp_path), "--method", "icd"]) == 0
    )
    assert "no-image is not in the scores" in capsys.readouterr().err
    assert list(scores(tmp_path)) == ["icd"]
    file = tmp_path / "no-image/records.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:3]))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/run.json").write_text("{")
    (tmp_path / "judged").mkdir()
    (tmp_path / "judged/run.json").write_text('{"format": 2, "request": {"judge": "a"}, "resolved": {}}')
    assert main([*command, "--method", "greedy"]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "is not in the scores" in line]
    assert len(told) == 3
    assert "broken/run.json" in told[0] and "not JSON" in told[0]
    assert "icd is not in the scores" in told[1] and "other samples" in told[1]
    assert "no-image is not in the scores" in told[2] and "it has 3 of 6 samples, give its command again" in told[2]
    assert list(scores(tmp_path)) == ["greedy"]
    assert main([*command, "--method", "greedy", "--partial"]) == 0
    found = scores(tmp_path)
    assert {name: (one["samples"], one.get("samples_planned")) for name, one in found.items()} == {
        "greedy": (6, None),
        "no-image": (3, 6),
    }


def test_one_method_under_two_texts_is_told_apart(tmp_path: Path) -> None:
    command = [*TINY, "--model", "tiny", "--out", str(tmp_path)]
    assert main([*command, "--method", "no-image:alpha=0.5"]) == 0
    assert main([*command, "--method", "no-image", "--alpha", "0.5"]) == 0
    assert list(scores(tmp_path)) == ["no-image (no-image)", "no-image (no-image_alpha=0.5)"]
