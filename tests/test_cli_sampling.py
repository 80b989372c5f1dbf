"""The options of loading and sampling: one name in every command that has them, and what they do."""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from golden_models import save_golden
from PIL import Image
from run_cli import code_of

from damro.cli import main
from damro.cli.options import load_from, read_sampling
from damro.cli.plan import plan
from damro.decoding.drawing import Sampling, SeededSampling
from damro.decoding.errors import ParameterError
from damro.loading import load_model, prepare_inputs

COMMANDS = ("answer", "explain", "app", "run")
SHARED = ("--device", "--device-map", "--dtype", "--quantization", "--attn-implementation", "--revision")
DRAWING = ("--temperature", "--top-p", "--seed")


def options_of(command: str) -> dict[str, argparse.Action]:
    commands = argparse.ArgumentParser().add_subparsers()
    import_module(f"damro.cli.{command}").add_parser(commands)
    return dict(commands.choices[command]._option_string_actions)


@pytest.mark.parametrize("name", [*SHARED, *DRAWING])
def test_an_option_is_the_same_in_every_command(name: str) -> None:
    found = [options_of(command)[name] for command in COMMANDS]
    assert len({(one.dest, str(one.choices), one.type, one.default) for one in found}) == 1


def test_a_model_is_loaded_as_the_options_say(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr("damro.loading.load_model", lambda name, **options: told.update(options, name=name))
    values = {"dtype": "float16", "attn_implementation": "eager", "revision": "v1", "quantization": "4bit"}
    load_from(argparse.Namespace(model="m", device=None, device_map="auto", **values))
    assert told == {"name": "m", "device": "auto", **values}
    with pytest.raises(ParameterError, match="--device must be left out with --device-map, got 'cpu'"):
        load_from(argparse.Namespace(model="m", device="cpu", device_map="auto", **values))


@pytest.mark.parametrize(
    ("options", "temperature", "reason"),
    [
        ((0.0, 1.0), 0.0, "--temperature must be a number above 0 and below 100, got 0"),
        ((float("nan"), 1.0), 0.0, "--temperature must be a number above 0 and below 100, got nan"),
        ((0.5, 1.0), 0.7, "--temperature must be left out where the method says it, got 0.5 with @0.7"),
        ((0.5, 0.0), 0.0, r"--top-p must lie in \(0, 1\], got 0"),
        ((None, 0.9), 0.0, "--top-p must come with sampling, got 0.9: add --temperature 1"),
    ],
)
def test_what_does_not_go_together_is_refused(options: Any, temperature: float, reason: str) -> None:
    args = argparse.Namespace(temperature=options[0], top_p=options[1], seed=1)
    with pytest.raises(ParameterError, match=reason):
        read_sampling(args, temperature)


def test_the_method_or_the_option_says_the_temperature() -> None:
    args = argparse.Namespace(temperature=None, top_p=0.9, seed=7)
    assert read_sampling(args, 0.5) == Sampling(0.5, 0.9, 7)
    args.temperature, args.top_p = 0.25, 1.0
    assert read_sampling(args) == Sampling(0.25, 1.0, 7)
    assert Sampling().processors() == []


def test_runs_take_the_temperature_for_methods_that_say_none() -> None:
    parser = argparse.ArgumentParser()
    import_module("damro.cli.run").add_parser(parser.add_subparsers())
    words = ["run", "pope", "--temperature", "0.5", "--top-p", "0.9", "--attn-implementation", "eager"]
    planned = plan(parser.parse_args([*words, "--methods", "greedy", "damro:top_k=3", "damro@1"]))
    assert [one.request.method for one in planned] == ["sample@0.5", "damro:top_k=3@0.5", "damro@1"]
    assert [one.folder for one in planned] == ["sample@0.5", "damro_top_k=3@0.5", "damro@1"]
    assert {(one.request.top_p, one.request.attn_implementation) for one in planned} == {(0.9, "eager")}


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.effect_mandelbrot((80, 60), (-2, -1.5, 1, 1.5), 20).convert("RGB").save(path)
    return path


def test_an_answer_is_drawn_as_a_run_draws_it(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_golden("llava", tmp_path)
    asked = ["answer", str(photo), "What is this?", "--model", str(folder), "--max-new-tokens", "6", "--device", "cpu"]
    said = []
    for options in (["--method", "sample@0.8"], ["--method", "greedy", "--temperature", "0.8"]):
        assert main([*asked, *options, "--top-p", "0.9", "--seed", "5", "--json"]) == 0
        said.append(json.loads(capsys.readouterr().out)["methods"]["sample@0.8"]["answer"])
    model, processor = load_model(folder, device="cpu")
    inputs = prepare_inputs(processor, [Image.open(photo)], ["What is this?"], model)
    ids = model.generate(
        **inputs, do_sample=False, num_beams=1, max_new_tokens=6, logits_processor=[SeededSampling([5], 0.8, 0.9)]
    )
    text = processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert said == [text, text]


def test_both_answers_of_a_page_are_drawn(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_golden("llava", tmp_path)
    asked = ["explain", str(photo), "What is this?", "--model", str(folder), "--device", "cpu", "--max-new-tokens", "6"]
    asked += ["--alpha", "2", "--top-k", "3", "--out", str(tmp_path / "page.html")]
    texts = []
    for seed in ("5", "5", "6"):
        assert main([*asked, "--temperature", "1", "--seed", seed]) == 0
        plain, contrasted, _ = capsys.readouterr().out.splitlines()
        assert plain.startswith("sample: ")
        texts.append((plain, contrasted))
    assert texts[0] == texts[1] != texts[2]
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "sampled at 1, top-p 1" in page and "Plain sampling" in page and "reedy search" not in page


def test_an_embedded_model_is_not_quantized(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("answer", "explain"):
        assert code_of([command, str(photo), "What?", "--model", "tiny", "--quantization", "4bit"]) == 2
        assert "quantization" in capsys.readouterr().err
