"""``damro steer``: what it writes is what the function computes, and the method takes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from golden_models import save_golden
from PIL import Image

from damro.cli import main
from damro.loading import load_image, load_model
from damro.methods.directions import Demonstration, compute_directions, load_directions

ANSWERS = ["What is a cat.", "a cat is What.", "is a cat"]


@pytest.fixture
def world(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    lines = []
    for number, answer in enumerate(ANSWERS):
        Image.effect_mandelbrot((80, 60), (-2 + number / 4, -1.5, 1, 1.5), 20).convert("RGB").save(
            tmp_path / f"images/{number}.png"
        )
        told = {"image": f"{number}.png", "question": "What is this?", "value": answer, "h_value": ANSWERS[number - 1]}
        lines.append(json.dumps(told | {"co_objects": ["cat"]}))
    (tmp_path / "demos.jsonl").write_text("\n".join(lines) + "\n\n")
    return tmp_path


def test_the_file_is_that_of_the_function(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = save_golden("llava", world / "model"), world / "llava.safetensors"
    command = ["steer", "--model", str(folder), "--device", "cpu", "--data", str(world / "demos.jsonl")]
    command += ["--images", str(world / "images"), "--trials", "2", "--mask-ratio", "0.5", "--seed", "3"]
    assert main([*command, "--out", str(out)]) == 0
    assert f"vti:directions={out}" in capsys.readouterr().out
    model, processor = load_model(folder, device="cpu")
    demonstrations = [
        Demonstration(load_image(world / f"images/{number}.png"), "What is this?", answer, ANSWERS[number - 1])
        for number, answer in enumerate(ANSWERS)
    ]
    expected = compute_directions(model, processor, demonstrations, trials=2, mask_ratio=0.5, seed=3)
    found = load_directions(out)
    assert torch.equal(found.text, expected.text)
    assert found.vision is not None
    assert expected.vision is not None
    assert torch.equal(found.vision, expected.vision)
    assert found[2:] == expected[2:]
    answer = ["answer", str(world / "images/0.png"), "What is this?", "--model", str(folder), "--device", "cpu"]
    assert main([*answer, "--method", f"vti:directions={out}", "--max-new-tokens", "3", "--json"]) == 0
    assert main([*command, "--text-only", "--count", "2", "--out", str(out)]) == 0
    assert load_directions(out).vision is None
    assert load_directions(out).recipe["demonstrations"] == 2


@pytest.mark.parametrize("text", ["{}", "[1]", "no json", '{"image": "a", "question": "b", "value": "c"}'])
def test_lines_that_are_none_are_told_before_the_model_is_loaded(
    text: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = world / "demos.jsonl"
    path.write_text(path.read_text() + text)
    command = ["steer", "--model", "nowhere", "--data", str(path), "--images", str(world), "--out", str(world / "o")]
    assert main(command) == 2
    assert "--data must have image, question, value, h_value as texts in every line" in capsys.readouterr().err
    command[4] = str(world / "none.jsonl")
    assert main(command) == 2
    assert "--data must be a file of JSON lines" in capsys.readouterr().err
