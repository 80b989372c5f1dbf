"""eval/runs/formats.py: run folders of format 1 are compared as the version that wrote them did, and gone on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from damro import tiny
from damro.cli import main
from damro.eval.errors import DataFormatError
from damro.eval.runs.formats import FORMAT, upgrade
from damro.eval.runs.record import differences, load_run, package_versions
from damro.eval.runs.request import to_request
from damro.eval.runs.resolve import digest_of_weights

RUNS = Path(__file__).parent / "data/runs_format_1"
POPE = ["greedy", "damro@1", "random-k", "vcd", "icd", "m3id", "no-image"]
CHAIR = ["sample", "damro", "least-k"]


@pytest.mark.parametrize(
    ("benchmark", "methods", "options"), [("pope", POPE, []), ("chair", CHAIR, ["--matcher", "builtin"])]
)
def test_old_runs_are_compared_with_the_same_result(
    benchmark: str, methods: list[str], options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(RUNS / benchmark / method) for method in methods]
    assert main(["compare", *folders, "--json", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    written = json.loads((RUNS / benchmark / "scores.json").read_text())
    names = [f"{name}, 32 tokens" for name in methods] if benchmark == "chair" else methods
    assert list(found["methods"]) == names
    for now, before in zip(found["methods"].values(), written["methods"].values(), strict=True):
        told = before["scores"]  # the mean of the splits was not told then
        assert set(now["scores"]) - set(told) <= {"mean of splits"}
        scores = {group: known(now["scores"][group], values) for group, values in told.items()}
        if benchmark == "pope":  # six questions about one image
            told = {group: without_ends(values) for group, values in told.items()}
        assert {**now, "scores": scores} == {**before, "scores": told}


def known(now: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """What the older version told too."""
    return {
        name: known(value, before[name]) if isinstance(value, dict) else value
        for name, value in now.items()
        if name in before
    }


def without_ends(before: dict[str, Any]) -> dict[str, Any]:
    """Scores of one image: it has no interval any more."""
    changes = {name: value and [value[0], None, None] for name, value in before.get("difference", {}).items()}
    return {
        **before,
        "ci": dict.fromkeys(before["ci"]),
        **({"difference": changes} if "difference" in before else {}),
    }


def test_parameters_of_a_method_stand_in_its_text() -> None:
    asked = {path.parent.name: to_request(load_run(path)).method for path in RUNS.glob("pope/*/run.json")}
    assert asked == {
        "greedy": "greedy",
        "damro@1": "damro:alpha=1.5@1",
        "random-k": "random-k:alpha=1.5",
        "vcd": "vcd:alpha=1.5,noise_step=300",
        "icd": "icd:alpha=1.5",
        "m3id": "m3id",
        "no-image": "no-image:alpha=1.5",
    }
    resolved = load_run(RUNS / "pope/vcd")["resolved"]["method"]
    assert resolved["parameters"] == {"alpha": 1.5, "beta": 0.1, "noise_step": 300, "seed": 42}
    assert load_run(RUNS / "pope/vcd")["format"] == FORMAT


def test_data_of_a_benchmark_stand_under_its_own_key() -> None:
    record = json.loads((RUNS / "pope/greedy/run.json").read_text())
    record["request"] |= {"splits": ["coco/random"], "questions": "a.jsonl"}
    assert upgrade(record)["request"]["data"] == {"split": ["coco/random"], "questions": "a.jsonl"}
    assert "splits" not in upgrade(record)["request"]


def of_this_machine(folder: Path) -> None:
    """Gives an old run the versions of this machine's packages: only its form shall be old."""
    record = json.loads((folder / "run.json").read_text())
    record["resolved"]["packages"] = package_versions()
    record["resolved"]["generation"]["transformers_version"] = package_versions()["transformers"]
    record["resolved"]["model"]["fingerprint"] = f"sha256 {digest_of_weights(tiny.load()[0])}"  # not of then
    (folder / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize("method", POPE)
def test_old_runs_are_gone_on_with(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / method
    shutil.copytree(RUNS / "pope" / method, folder)
    of_this_machine(folder)
    file = folder / "records.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:5]))
    flags = {"vcd": ["--noise-step", "300", "--alpha", "1.5"], "greedy": [], "m3id": []}.get(method, ["--alpha", "1.5"])
    command = ["run", "pope", "--limit", "6", "--scenes", "12", "--method", method, *flags, "--device", "cpu"]
    # The device stood at its default, which names none.
    record = json.loads((folder / "run.json").read_text())
    record["request"]["device"] = "cpu"
    (folder / "run.json").write_text(json.dumps(record))
    assert main([*command, "--out", str(tmp_path)]) == 0, capsys.readouterr().err
    after = file.read_text().splitlines(keepends=True)
    assert after[:5] == lines[:5] and len(after) == len(lines) == 18
    capsys.readouterr()
    assert main([*command, "--seed", "43", "--out", str(tmp_path)]) == 2
    assert "request.seed: 42 -> 43" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("request", {"method": "magic"}, "method must be one of"),
        ("request", {"alpha": "x"}, "alpha must be a finite number"),
        ("resolved", {"method": {}}, "run.json must hold what format 1 has, lacks 'contrast'"),
        ("resolved", {"method": 3}, "run.json must hold what format 1 has"),
    ],
)
def test_what_cannot_be_read_is_said(part: str, change: dict[str, Any], message: str) -> None:
    record = json.loads((RUNS / "pope/damro@1/run.json").read_text())
    record[part] |= change
    with pytest.raises((DataFormatError, ValueError), match=message):
        upgrade(record)


def test_what_an_older_version_did_not_resolve_is_no_mismatch() -> None:
    before = {"request": {}, "resolved": {"model": {"family": "llava"}}}
    after = {"request": {}, "resolved": {"model": {"family": "llava", "parameters": 7}}}
    assert differences(before, after) == []
    other = {"request": {}, "resolved": {"model": {"family": "llava", "parameters": 8}}}
    assert differences(after, other) == ["resolved.model.parameters: 7 -> 8"]
    assert differences(after, before) == ["resolved.model.parameters: 7 -> nothing"]
    pruned = {"request": {}, "resolved": {"model": {"family": "llava"}, "method": {"keep_tokens": 3}}}
    assert differences(before, pruned) == ["resolved.method.keep_tokens: nothing -> 3"]
