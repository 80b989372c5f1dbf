"""eval/runs/run.py: a run goes on with its own model, images and records alone, and says what it lacks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_models import save_golden
from PIL import Image
from safetensors.torch import load_file, save_file

from damro.cli import main
from damro.eval.runs import engine
from damro.eval.runs.fingerprint import first_bytes_of_folder
from damro.eval.runs.sharding import Workers, records_path

FAST = ["--max-new-tokens", "3", "--batch-size", "2", "--device", "cpu"]
IMAGES, QUESTIONS = 6, 12


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint, six images, two questions about each."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "images").mkdir()
    lines = []
    for number in range(1, IMAGES + 1):
        name = f"COCO_val2014_{number:012d}.png"
        Image.effect_mandelbrot((80, 60), (-2, -1.5, number, 1.5), 20).convert("RGB").save(folder / "images" / name)
        for label in ("yes", "no"):
            fields = {"question_id": len(lines) + 1, "image": name, "text": f"What is {label}?", "label": label}
            lines.append(json.dumps(fields))
    (folder / "questions.jsonl").write_text("\n".join(lines))
    save_golden("llava", folder / "model")
    return folder


@pytest.fixture
def world(place: Path, tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    return Path(shutil.copytree(place, tmp_path / "world"))


def pope(world: Path, out: Path, *more: str) -> list[str]:
    files = ["--questions", str(world / "questions.jsonl"), "--images", str(world / "images")]
    return ["run", "pope", "--model", str(world / "model"), *files, "--out", str(out), *FAST, *more]


def lines(folder: Path) -> list[str]:
    return (folder / "records.jsonl").read_text().splitlines(keepends=True)


def answers(folder: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines(folder)]


def cut(folder: Path, count: int) -> None:
    """Leaves the first records, as a run that was killed does."""
    (folder / "records.jsonl").write_text("".join(lines(folder)[:count]))


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command line that must end with a code, and returns the last line of stderr."""

    def run(words: list[str], code: int = 2) -> str:
        capsys.readouterr()
        assert main(words) == code
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return (captured.err.splitlines() or [""])[-1] if code else captured.out

    return run


def test_a_run_tells_its_samples_and_carries_digests(world: Path, tmp_path: Path) -> None:
    assert main(pope(world, tmp_path / "out")) == 0
    record = json.loads((tmp_path / "out/greedy/run.json").read_text())
    assert (record["format"], record["samples"]) == (3, QUESTIONS)
    assert record["resolved"]["model"]["fingerprint"].startswith("sha256 files:")
    assert all(len(one["digest"]) == len(one["image_digest"]) == 16 for one in answers(tmp_path / "out/greedy"))


def test_one_weight_behind_the_first_mebibyte_is_another_model(
    world: Path, tmp_path: Path, told: Callable[..., str]
) -> None:
    file = world / "model/model.safetensors"
    tensors = load_file(file)
    tensors["z"] = torch.zeros(1 << 19)  # 2 MiB, so that what follows is not at the file's beginning
    save_file(tensors, file, {"format": "pt"})
    assert main(pope(world, tmp_path / "out")) == 0
    cut(tmp_path / "out/greedy", 6)
    before = first_bytes_of_folder(world / "model")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert first_bytes_of_folder(world / "model") == before
    assert "resolved.model.fingerprint:" in told(pope(world, tmp_path / "out"))
    assert len(lines(tmp_path / "out/greedy")) == 6
    content[-1] ^= 1
    file.write_bytes(content)
    assert main(pope(world, tmp_path / "out")) == 0


def test_a_changed_image_is_named(world: Path, tmp_path: Path, told: Callable[..., str]) -> None:
    assert main(pope(world, tmp_path / "out")) == 0
    cut(tmp_path / "out/greedy", 6)
    names = sorted(path.name for path in (world / "images").iterdir())
    Image.new("RGB", (80, 60)).save(world / "images" / names[4])  # none has asked about it yet
    assert main(pope(world, tmp_path / "out")) == 0
    Image.new("RGB", (80, 60)).save(world / "images" / names[1])
    assert f"image '{names[1]}' must be the file that the recorded answers are about" in told(
        pope(world, tmp_path / "out")
    )
    # Another method, on the images as they are now, cannot stand beside it.
    assert main(pope(world, tmp_path / "out", "--method", "no-image", "--beta", "0.1", "--alpha", "1")) == 0
    assert list(json.loads((tmp_path / "out/scores.json").read_text())["methods"]) == ["no-image"]
    folders = [str(tmp_path / "out" / name) for name in ("greedy", "no-image")]
    assert "must be the same file in all runs to be compared" in told(["compare", *folders])


def test_records_of_another_run_are_named(world: Path, tmp_path: Path, told: Callable[..., str]) -> None:
    assert main(pope(world, tmp_path / "a")) == 0
    assert main(pope(world, tmp_path / "b", "--max-new-tokens", "2")) == 0
    mixed = "".join(lines(tmp_path / "a/greedy")[:5] + lines(tmp_path / "b/greedy")[5:])
    (tmp_path / "a/greedy/records.jsonl").write_text(mixed)
    message = "records.jsonl, line 6: record 'questions.jsonl/6' must carry the digest of this run, contradicts"
    assert message in told(pope(world, tmp_path / "a"))
    assert message in told(["compare", str(tmp_path / "a/greedy")])
    assert (tmp_path / "a/greedy/records.jsonl").read_text() == mixed


def test_a_run_file_that_was_changed_is_noticed(world: Path, tmp_path: Path, told: Callable[..., str]) -> None:
    assert main(pope(world, tmp_path / "out", "--seed", "1")) == 0
    file = tmp_path / "out/greedy/run.json"
    file.write_text(file.read_text().replace('"seed": 1', '"seed": 2'))
    cut(tmp_path / "out/greedy", 6)
    assert "must carry the digest of this run" in told(pope(world, tmp_path / "out", "--seed", "2"))


def test_records_without_a_run_file_are_adopted_on_request_alone(
    world: Path, tmp_path: Path, told: Callable[..., str]
) -> None:
    command = pope(world, tmp_path / "out")
    assert main(command) == 0
    whole = answers(tmp_path / "out/greedy")
    cut(tmp_path / "out/greedy", 5)
    (tmp_path / "out/greedy/run.json").unlink()
    assert "must hold run.json, which says how its records came about, got records without it" in told(command)
    assert "--adopt-records" in told(command)
    assert not (tmp_path / "out/greedy/run.json").exists()
    assert "must carry the digest" in told([*command, "--seed", "7", "--adopt-records"])
    (tmp_path / "out/greedy/run.json").unlink()
    assert main([*command, "--adopt-records"]) == 0
    assert answers(tmp_path / "out/greedy") == whole
    assert main(command) == 0


def older(folder: Path, model: Path) -> None:
    """Makes of a run what a version of format 2 would have left."""
    record = json.loads((folder / "run.json").read_text())
    del record["samples"]
    record["format"] = 2
    record["resolved"]["model"]["fingerprint"] = first_bytes_of_folder(model)
    (folder / "run.json").write_text(json.dumps(record))
    kept = [json.loads(line) for line in lines(folder)]
    for fields in kept:
        for name in ("digest", "image_digest"):
            fields.pop(name, None)
    (folder / "records.jsonl").write_text("".join(json.dumps(fields) + "\n" for fields in kept))


def test_a_run_of_format_2_goes_on_and_is_brought_up_to_date(
    world: Path, tmp_path: Path, told: Callable[..., str]
) -> None:
    command, folder = pope(world, tmp_path / "out"), tmp_path / "out/greedy"
    assert main(command) == 0
    whole = answers(folder)
    older(folder, world / "model")
    old = lines(folder)
    (folder / "records.jsonl").write_text("".join(old[:4]))
    (folder / "records-1.jsonl").write_text("".join(old[6:8]))
    assert main(command) == 0
    assert lines(folder)[:4] + lines(folder)[6:8] == old[:4] + old[6:8]
    assert answers(folder)[4:6] + answers(folder)[8:] == whole[4:6] + whole[8:]
    assert sorted(path.name for path in folder.iterdir() if path.name != ".lock") == [
        *("records-1.jsonl.merged", "records.jsonl", "run.json")
    ]
    record = json.loads((folder / "run.json").read_text())
    assert (record["format"], record["samples"]) == (3, QUESTIONS)
    assert record["resolved"]["model"]["fingerprint"].startswith("sha256 files:")
    assert main(command) == 0
    # A model that differs where the older fingerprint looked is refused as before.
    older(folder, world / "model")
    config = world / "model/config.json"
    config.write_text(config.read_text() + " ")
    assert "resolved.model.fingerprint:" in told(command)


@pytest.mark.parametrize("command", ["compare", "reproduce pope"])
def test_a_run_that_lacks_samples_is_no_result(
    command: str, world: Path, tmp_path: Path, told: Callable[..., str]
) -> None:
    assert main(pope(world, tmp_path / "out")) == 0
    cut(tmp_path / "out/greedy", 4)
    words = [*command.split(), str(tmp_path / "out/greedy")]
    assert f"greedy must hold all samples of its run to be a result, holds 4 of {QUESTIONS} samples" in told(words)
    shown = told([*words, "--partial"], 0)
    assert f"WARNING: greedy: 4 of {QUESTIONS} samples are recorded" in " ".join(shown.split())
    found = json.loads(told([*words, "--partial", "--json"], 0))
    if command == "compare":
        assert (found["methods"]["greedy"]["samples"], found["methods"]["greedy"]["samples_planned"]) == (4, QUESTIONS)
        out = tmp_path / "compared"
        told([*words, "--partial", "--out", str(out)], 0)
        assert f"4 of {QUESTIONS} samples" in (out / "scores.csv").read_text()
        assert f"4 of {QUESTIONS} samples" in (out / "report.html").read_text()
        assert f"4 of {QUESTIONS} samples" in (out / "scores.md").read_text()
    else:
        assert found["partial"] == {"greedy": f"4 of {QUESTIONS} samples"}


def test_parts_are_records_too(world: Path, tmp_path: Path, told: Callable[..., str]) -> None:
    assert main(pope(world, tmp_path / "out")) == 0
    folder = tmp_path / "out/greedy"
    whole = answers(folder)
    part = records_path(folder, Workers(1, 2))
    part.write_text("".join(lines(folder)[4:8]))
    (folder / "records.jsonl").unlink()
    assert "must hold no records with --no-resume" in told(pope(world, tmp_path / "out", "--no-resume"))
    (folder / "run.json").rename(tmp_path / "run.json")
    assert "must hold run.json" in told(pope(world, tmp_path / "out"))
    (tmp_path / "run.json").rename(folder / "run.json")
    assert main(pope(world, tmp_path / "out")) == 0
    assert answers(folder) == whole
    assert not part.parent.exists()


def test_a_torn_end_hides_no_result(world: Path, tmp_path: Path, told: Callable[..., str]) -> None:
    assert main(pope(world, tmp_path / "out")) == 0
    whole = lines(tmp_path / "out/greedy")
    for end in (whole[4][:20], "\0" * 500):
        (tmp_path / "out/greedy/records.jsonl").write_text("".join(whole[:4]) + end)
        words = ["compare", str(tmp_path / "out/greedy")]
        assert f"holds 4 of {QUESTIONS} samples" in told(words)
        assert json.loads(told([*words, "--partial", "--json"], 0))["methods"]["greedy"]["samples"] == 4


def test_a_dead_device_ends_the_command_and_it_goes_on(
    world: Path, tmp_path: Path, told: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(pope(world, tmp_path / "whole")) == 0
    decode, calls = engine.decode, []

    def dying(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) > 2:
            raise torch.AcceleratorError("CUDA error: unspecified launch failure")
        return decode(*args, **options)

    monkeypatch.setattr(engine, "decode", dying)
    message = told(pope(world, tmp_path / "out"))
    assert "got 5 in a row that failed alike" in message and "CUDA error: unspecified launch failure" in message
    assert not any("error" in one for one in answers(tmp_path / "out/greedy"))
    assert not (tmp_path / "out/scores.json").exists()
    monkeypatch.setattr(engine, "decode", decode)
    assert main(pope(world, tmp_path / "out")) == 0
    assert answers(tmp_path / "out/greedy") == answers(tmp_path / "whole/greedy")
