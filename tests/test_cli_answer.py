from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from golden_models import FAMILIES, save_golden
from PIL import Image
from run_cli import code_of

from damro import DAMROProcessor
from damro.cli import main
from damro.loading import load_image, load_model, prepare_inputs
from tests.told import generate


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.effect_mandelbrot((80, 60), (-2, -1.5, 1, 1.5), 20).convert("RGB").save(path)
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_compare_prints_what_generate_gives(
    family: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_golden(family, tmp_path)
    arguments = ["answer", str(photo), "What is this?", "--model", str(folder), "--device", "cpu"]
    options = ["--compare", "--json", "--max-new-tokens", "6", "--top-k", "4", "--alpha", "1.5"]
    assert main([*arguments, *options]) == 0
    shown = json.loads(capsys.readouterr().out)["methods"]

    model, processor = load_model(folder, device="cpu")
    inputs = prepare_inputs(processor, [load_image(photo)], ["What is this?"], model)
    contrast = DAMROProcessor(model, inputs, alpha=1.5, top_k=4)
    for method, extra in (("greedy", {}), ("damro", {"logits_processor": contrast})):
        ids = model.generate(**inputs, max_new_tokens=6, do_sample=False, **extra)
        text = processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert shown[method]["answer"] == text.strip()
    assert shown["damro"]["outliers"] == contrast.outliers.tolist()
    assert shown["damro"]["alpha"] == 1.5


def test_one_method_prints_the_answer_alone(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_golden("llava", tmp_path)
    arguments = ["answer", str(photo), "What", "--model", str(folder), "--method", "greedy", "--max-new-tokens", "3"]
    assert main(arguments) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (["--alpha", "-1"], "alpha must be"),
        (["--beta", "0"], "beta must be in (0, 1]"),
        (["--top-k", "17"], "top_k must be a whole number from 1 to the 16 patches"),
        (["--model", "no/such/model"], "no/such/model"),
    ],
)
def test_bad_options_are_named(
    change: list[str], reason: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_golden("llava", tmp_path)
    assert main(["answer", str(photo), "What", "--model", str(folder), *change]) == 2
    assert reason in capsys.readouterr().err


def test_a_file_that_is_no_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff not an image")
    assert main(["answer", str(broken), "What", "--model", "unused"]) == 2
    assert "broken.jpg" in capsys.readouterr().err


METHOD_OPTIONS = {
    "vcd": {"noise_step": 300},
    "icd": {"disturbance": "What is a cat."},
    "m3id": {"forgetting": 0.5, "confidence": 0.9},
    "random-k": {"top_k": 4},
    "greedy": {},
}


@pytest.mark.parametrize("method", METHOD_OPTIONS)
def test_every_method_answers_as_generate_does(
    method: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, named = save_golden("llava", tmp_path), METHOD_OPTIONS[method]
    options = [text for name, value in named.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    options += ["--method", method, "--keep-tokens", "5", "--max-new-tokens", "6", "--device", "cpu", "--json"]
    assert main(["answer", str(photo), "What is this?", "--model", str(folder), *options]) == 0
    shown = json.loads(capsys.readouterr().out)["methods"]

    model, processor = load_model(folder, device="cpu")
    inputs = prepare_inputs(processor, [load_image(photo)], ["What is this?"], model)
    ids = generate(
        model, inputs, method=method, processor=processor, keep_tokens=5, max_new_tokens=6, do_sample=False, **named
    )
    text = processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert list(shown) == [method]
    assert shown[method]["answer"] == text.strip()
    assert ("outliers" in shown[method]) == (method == "random-k")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--noise-step", "3"], "--noise-step must come with vcd, got '3' with damro"),
        (["--method", "vcd", "--disturbance", "no"], "--disturbance must come with icd, got 'no' with vcd"),
        (["--method", "icd", "--forgetting", "1"], "--forgetting must come with m3id, got '1' with icd"),
        (["--method", "icd", "--confidence", "1"], "--confidence must come with m3id, got '1' with icd"),
        (["--method", "m3id", "--alpha", "1"], "--alpha must come with damro or .* or icd.*, got '1' with m3id"),
        (["--method", "vcd", "--variant", "corrected"], "--variant must come with .*, got 'corrected' with vcd"),
        (["--method", "vcd", "--noise-step", "5000"], "noise_step must be a whole number from 0 to 999, got 5000"),
        (["--alpha", "-1"], "alpha must be a finite number >= 0, got -1.0"),
        (["--keep-tokens", "0"], "--keep-tokens must be a whole number of at least 1, got '0'"),
    ],
)
def test_what_is_refused_before_the_model_is_loaded(
    options: list[str], reason: str, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of(["answer", str(photo), "What", "--model", "unused", *options]) == 2
    assert re.search(reason, capsys.readouterr().err)
