"""Runs of the methods that change what is seen: one that was interrupted ends with the records of one that was not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from golden_models import save_golden
from PIL import Image

from damro.cli import main

METHODS = (
    "drop-outliers:top_k=4", "drop-random:top_k=4", "registers:outliers=attention,top_k=4,neurons=6",
    "crop:patches=4", "crop:patches=4,way=branch@1",
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint, three images, two questions about each."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "images").mkdir()
    lines = []
    for number in range(1, 4):
        name = f"COCO_val2014_{number:012d}.png"
        Image.effect_mandelbrot((80, 60), (-2, -1.5, number, 1.5), 20).convert("RGB").save(folder / "images" / name)
        for label in ("yes", "no"):
            fields = {"question_id": len(lines) + 1, "image": name, "text": f"What is {label}?", "label": label}
            lines.append(json.dumps(fields))
    (folder / "questions.jsonl").write_text("\n".join(lines))
    save_golden("llava", folder / "model")
    return folder


def answers(folder: Path) -> list[dict[str, Any]]:
    lines = records_of(folder).read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def records_of(folder: Path) -> Path:
    (found,) = folder.rglob("records.jsonl")
    return found


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_run_ends_with_the_same_records(method: str, world: Path, tmp_path: Path) -> None:
    files = ["--questions", str(world / "questions.jsonl"), "--images", str(world / "images"), "--device", "cpu"]
    told = ["run", "pope", "--model", str(world / "model"), *files, "--method", method, "--max-new-tokens", "3"]
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    assert main([*told, "--out", str(whole), "--batch-size", "6"]) == 0
    assert main([*told, "--out", str(parted), "--batch-size", "2"]) == 0
    assert answers(parted) == answers(whole)  # a batch changes nothing
    records = records_of(parted)
    records.write_text("".join(records.read_text().splitlines(keepends=True)[:3]))
    assert main([*told, "--out", str(parted), "--batch-size", "2"]) == 0
    assert answers(parted) == answers(whole)
