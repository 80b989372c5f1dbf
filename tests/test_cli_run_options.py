"""Options of ``damro run`` that only some methods or models have: taken, recorded, compared, or refused in time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from golden_models import save_golden, word_tokenizer
from PIL import Image
from run_cli import call
from transformers import Blip2Processor, PreTrainedTokenizerFast
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from damro.cli import main
from damro.errors import ParameterError, UnsupportedModelError
from damro.eval.errors import EvalError
from damro.eval.runs.record import RunMismatchError
from tests.family_models import QUERIES, family_model

FAST = ["--max-new-tokens", "3", "--batch-size", "2", "--device", "cpu"]
NEW = ("variant", "question_only", "noise_step", "disturbance", "forgetting", "confidence", "keep_tokens")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random checkpoints, two images, a question about each."""
    place = tmp_path_factory.mktemp("world")
    (place / "images").mkdir()
    lines = []
    for number in (1, 2):
        name = f"COCO_val2014_{number:012d}.png"
        Image.effect_mandelbrot((80, 60), (-2, -1.5, number, 1.5), 20).convert("RGB").save(place / "images" / name)
        label = ("yes", "no")[number - 1]
        lines.append(json.dumps({"question_id": number, "image": name, "text": "What is this?", "label": label}))
    (place / "questions.jsonl").write_text("\n".join(lines))
    for family in ("llava", "instructblip"):
        save_golden(family, place / family)
    family_model("blip-2").save_pretrained(place / "blip-2")
    words = PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(200).backend_tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    pixels = BlipImageProcessorPil(size={"height": 56, "width": 56})
    Blip2Processor(pixels, words, num_query_tokens=QUERIES).save_pretrained(place / "blip-2")
    return place


def pope(world: Path, out: Path, *more: str, model: str = "llava") -> list[str]:
    files = ["--questions", str(world / "questions.jsonl"), "--images", str(world / "images")]
    return ["run", "pope", "--model", str(world / model), *files, "--out", str(out), *FAST, *more]


def recorded(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of a run.json, what was asked for and the method it resolved to."""
    record = json.loads((folder / "run.json").read_text())
    return record["request"], record["resolved"]["method"]


def answers(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    assert not [record for record in found if "error" in record]
    return found


def test_options_are_recorded_with_the_methods_that_have_them(world: Path, tmp_path: Path) -> None:
    options = ["--noise-step", "300", "--disturbance", "What is a cat.", "--forgetting", "0.5", "--confidence", "0.9"]
    call(*pope(world, tmp_path, "--methods", "greedy", "vcd", "icd", "m3id", *options, "--beta", "0.2"))
    expected: dict[str, dict[str, Any]] = {
        "greedy": {},
        "vcd": {"noise_step": 300},
        "icd": {"disturbance": "What is a cat.", "question_only": False},
        "m3id": {"forgetting": 0.5, "confidence": 0.9},
    }
    texts = {
        "greedy": "greedy",
        "vcd": "vcd:beta=0.2,noise_step=300",
        "icd": 'icd:beta=0.2,disturbance="What is a cat."',
        "m3id": "m3id:forgetting=0.5,confidence=0.9,beta=0.2",
    }
    for method, own in expected.items():
        request, resolved = recorded(tmp_path / method)
        assert request["method"] == texts[method]
        parameters = resolved["parameters"]
        assert {name: parameters[name] for name in NEW if name in parameters} == own
        assert parameters.get("beta") == (None if method == "greedy" else 0.2)
        assert len(answers(tmp_path / method)) == 2
    message = (
        'request.method: "vcd:beta=0.2,noise_step=300" -> "vcd:beta=0.2,noise_step=301"; '
        "resolved.method.parameters.noise_step: 300 -> 301"
    )
    with pytest.raises(RunMismatchError, match=message):
        call(*pope(world, tmp_path, "--method", "vcd", "--noise-step", "301", "--beta", "0.2"))


def test_pruning_is_recorded_and_compared(world: Path, tmp_path: Path) -> None:
    pruned = pope(world, tmp_path, "--methods", "greedy", "damro", "--top-k", "4", "--keep-tokens", "5")
    call(*pruned)
    for method in ("greedy", "damro"):
        request, resolved = recorded(tmp_path / method)
        assert request["keep_tokens"] == resolved["keep_tokens"] == 5
    call(*pruned)  # goes on
    message = "request.keep_tokens: 5 -> null; resolved.method.keep_tokens: 5 -> nothing"
    with pytest.raises(RunMismatchError, match=message):
        call(*pope(world, tmp_path, "--methods", "greedy", "damro", "--top-k", "4"))
    call("run", "--from", str(tmp_path / "damro"), "--out", str(tmp_path / "again"))
    again = answers(tmp_path / "again/damro")
    assert [record["answer"] for record in again] == [record["answer"] for record in answers(tmp_path / "damro")]


def test_pruned_runs_are_compared_with_whole_ones(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(*pope(world, tmp_path / "whole", "--method", "greedy"))
    call(*pope(world, tmp_path / "pruned", "--method", "greedy", "--keep-tokens", "5"))
    capsys.readouterr()
    folders = [str(tmp_path / name / "greedy") for name in ("whole", "pruned")]
    assert call("compare", *folders, "--json") == 0
    assert list(json.loads(capsys.readouterr().out)["methods"]) == ["greedy", "greedy, 5 tokens"]


def test_the_variant_is_recorded_and_compared(world: Path, tmp_path: Path) -> None:
    arguments = pope(world, tmp_path, "--methods", "greedy", "damro", "icd", model="instructblip")
    call(*arguments, "--variant", "corrected", "--question-only")
    assert recorded(tmp_path / "damro")[1]["parameters"]["variant"] == "corrected"
    assert recorded(tmp_path / "icd")[1]["parameters"]["question_only"] is True
    assert recorded(tmp_path / "greedy")[1]["parameters"] == {}
    with pytest.raises(RunMismatchError, match="parameters.variant: .corrected. -> .reference."):
        call(*arguments)


def test_a_run_of_a_version_without_the_options_goes_on(world: Path, tmp_path: Path) -> None:
    arguments = pope(world, tmp_path, "--method", "damro", "--top-k", "4")
    call(*arguments)
    file = tmp_path / "damro/run.json"
    record = json.loads(file.read_text())
    request, resolved = record["request"], record["resolved"]
    del request["keep_tokens"]
    request |= {"method": "damro", "top_k": 4, "splits": [], **request.pop("data")}
    strengths = {"alpha": 2.0, "beta": 0.1, "top_k": 4}
    resolved["method"] = {"name": "damro", "contrast": "damro", "temperature": 0.0, "top_p": 1.0, **strengths}
    assert not set(NEW) & {*request, *resolved["method"]}
    file.write_text(json.dumps({**record, "format": 1}))
    before = answers(tmp_path / "damro")
    records = tmp_path / "damro/records.jsonl"
    records.write_text(records.read_text().splitlines(keepends=True)[0])
    call(*arguments)
    assert [one["answer"] for one in answers(tmp_path / "damro")] == [one["answer"] for one in before]
    with pytest.raises(RunMismatchError, match="request.keep_tokens: null -> 5"):
        call(*arguments, "--keep-tokens", "5")
    call("run", "--from", str(file), "--out", str(tmp_path / "again"))
    assert recorded(tmp_path / "again/damro")[0]["keep_tokens"] is None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            ["--methods", "greedy", "damro", "--noise-step", "3"],
            "--noise-step must come with vcd, got '3' with greedy",
        ),
        (["--method", "vcd@1", "--disturbance", "x"], "--disturbance must come with icd, got 'x' with vcd"),
        (["--methods", "greedy", "damro", "--question-only"], "--question-only must come with icd"),
        (["--method", "icd", "--forgetting", "1"], "--forgetting must come with m3id"),
        (["--method", "sample", "--confidence", "1"], "--confidence must come with m3id"),
        (["--method", "no-image", "--variant", "corrected"], "--variant must come with damro or random-k or least-k"),
        (["--method", "m3id", "--alpha", "1"], "--alpha must come with damro or"),
        (["--methods", "greedy", "damro", "--alpha", "-1"], "alpha must be a finite number >= 0, got -1.0"),
        (["--methods", "greedy", "damro", "--alpha", "nan"], "alpha must be a finite number >= 0, got nan"),
        (["--method", "random-k", "--beta", "0"], "beta must be in (0, 1], got 0.0"),
        (["--method", "damro", "--top-k", "0"], "top_k must be a whole number of at least 1, got 0"),
        (["--method", "vcd", "--noise-step", "1000"], "noise_step must be a whole number from 0 to 999, got 1000"),
        (["--method", "m3id", "--forgetting", "-1"], "forgetting must be a finite number >= 0"),
        (["--method", "m3id", "--confidence", "0"], "confidence must be in (0, 1]"),
        (["--keep-tokens", "0"], "keep_tokens must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_run_is_refused_before_the_model_is_loaded(
    options: list[str], reason: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(pope(world, tmp_path / "out", *options, model="no such model")) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [["--keep-tokens", "5"], ["--methods", "vcd"], ["--seed", "1"], ["--question-only"]])
def test_a_run_that_is_repeated_takes_no_other_settings(option: list[str], world: Path, tmp_path: Path) -> None:
    call(*pope(world, tmp_path, "--method", "greedy"))
    with pytest.raises(EvalError, match=f"{option[0]} must be left out with --from, got "):
        call("run", "--from", str(tmp_path / "greedy"), "--out", str(tmp_path / "again"), *option)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        ("llava", ["--top-k", "17"], "top_k must be a whole number from 1 to the 16 patches"),
        ("llava", ["--keep-tokens", "17", "--top-k", "4"], "keep_tokens must not exceed the 16 patches of a tile"),
        ("instructblip", ["--keep-tokens", "3"], "columns are queries of its Q-Former"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_the_first_record(
    model: str, options: list[str], reason: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(pope(world, tmp_path / "out", "--methods", "greedy", "damro", *options, model=model)) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("method", "given", "remedy"),
    [
        (
            "damro",
            [],
            "told alpha, beta, top_k .* got none for 'blip-2'; pass alpha, beta, top_k, such as ",
        ),
        ("random-k@1", ["--alpha", "1"], "told beta, top_k .*; pass beta, top_k"),
        ("no-image", ["--alpha", "1"], "told beta .*; pass beta, such as no-image:beta="),
    ],
)
def test_a_family_without_a_preset_has_to_be_told(
    method: str, given: list[str], remedy: str, world: Path, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=f"{method.partition('@')[0]} must be {remedy}"):
        call(*pope(world, tmp_path / "out", "--methods", "greedy", method, *given, model="blip-2"))
    assert not (tmp_path / "out").exists()


def test_a_family_without_a_preset_is_run(world: Path, tmp_path: Path) -> None:
    told = ["--alpha", "1", "--beta", "0.1", "--top-k", "3"]
    methods = ["greedy", "damro", "random-k", "least-k", "no-image"]
    assert call(*pope(world, tmp_path, "--methods", *methods, *told, model="blip-2")) == 0
    for method in methods:
        assert len(answers(tmp_path / method)) == 2
    assert [len(record["outliers"][0]) for record in answers(tmp_path / "damro")] == [3, 3]
    assert call(*pope(world, tmp_path, "--methods", "vcd", "m3id", model="blip-2")) == 0
    with pytest.raises(ParameterError, match="top_k must be a whole number from 1 to the 16 patches"):
        call(*pope(world, tmp_path / "out", "--method", "damro", *told[:4], "--top-k", "17", model="blip-2"))


def test_the_same_method_under_other_parameters_is_a_sweep(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = ["greedy", "damro:alpha=0.5", "damro:alpha=2,top_k=4", "damro:alpha=0.5@1"]
    capsys.readouterr()
    assert call(*pope(world, tmp_path, "--methods", *methods, "--beta", "0.3", "--json")) == 0
    labels = ["greedy", "damro:alpha=0.5,top_k=none", "damro:alpha=2,top_k=4", "damro@1"]
    assert list(json.loads(capsys.readouterr().out)["methods"]) == labels
    folders = ["greedy", "damro_alpha=0.5", "damro_alpha=2,top_k=4", "damro_alpha=0.5@1"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == sorted(folders)
    asked = [recorded(tmp_path / folder)[0]["method"] for folder in folders]
    assert asked[1:3] == ["damro:alpha=0.5,beta=0.3", "damro:alpha=2,beta=0.3,top_k=4"]
    # Recorded runs are told apart the same way, by what they resolved to.
    assert call("compare", *(str(tmp_path / folder) for folder in folders), "--json") == 0
    names = list(json.loads(capsys.readouterr().out)["methods"])
    assert names == ["greedy", "damro:alpha=0.5,top_k=10", "damro:alpha=2,top_k=4", "damro@1"]
    for same in (["damro", "damro"], ["damro:alpha=1", "damro:alpha=1.0"], ["vcd", "vcd:noise_step=500"]):
        with pytest.raises(EvalError, match="--methods must be different, got"):
            call(*pope(world, tmp_path / "same", "--methods", *same))
    with pytest.raises(EvalError, match="--methods must be different, got damro damro:alpha=1"):
        call(*pope(world, tmp_path / "same", "--methods", "damro", "damro:alpha=1", "--alpha", "1"))


def test_an_option_of_another_benchmark_is_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="pope must have parameters of split, questions, .*, got 'objects'"):
        call(*pope(world, tmp_path / "out", "--objects", "objects.json"))
    with pytest.raises(EvalError, match="scoring of pope must have parameters of rules, labels, .*, got 'matcher'"):
        call(*pope(world, tmp_path / "out", "--matcher", "builtin"))
    with pytest.raises(EvalError, match="rules must be one of pope, opera, .* each, got 'pop'"):
        call(*pope(world, tmp_path / "out", "--rules", "pop"))
    assert not (tmp_path / "out").exists()


def test_captions_of_any_images_with_any_words(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From files alone: pictures of any name, objects that COCO does not know, their words."""
    images = tmp_path / "images"
    images.mkdir()
    for name in ("kitchen.png", "yard 7.jpg", "unknown.png"):
        Image.new("RGB", (56, 56), "red").save(images / name)
    (tmp_path / "objects.json").write_text(json.dumps({"kitchen": ["kettle"], "yard 7.jpg": ["hedge", "garden gnome"]}))
    (tmp_path / "words.txt").write_text("kettle, teapot\nhedge\ngarden gnome, gnome\n")
    files = ["--objects", str(tmp_path / "objects.json"), "--vocabulary", str(tmp_path / "words.txt")]
    command = ["run", "chair", "--model", str(world / "llava"), "--images", str(images), *files, "--out", str(tmp_path)]
    capsys.readouterr()
    assert call(*command, *FAST, "--max-new-tokens", "4", "--matcher", "builtin", "--json") == 0
    found = json.loads(capsys.readouterr().out)["methods"]["greedy"]["scores"]["captions"]
    assert (found["n_captions"], found["n_truth"]) == (2, 3)
    file = tmp_path / "greedy/records.jsonl"
    records = {record["image_id"]: record for record in answers(tmp_path / "greedy")}
    assert set(records) == {"kitchen", "yard 7.jpg"}
    records["kitchen"]["answer"] = "Two teapots by a hedge and a dog."
    records["yard 7.jpg"]["answer"] = "Garden gnomes."
    file.write_text("".join(json.dumps(record) + "\n" for record in records.values()))
    assert call("compare", str(tmp_path / "greedy"), "--matcher", "builtin", "--json") == 0
    found = json.loads(capsys.readouterr().out)["methods"]["greedy"]["scores"]["captions"]
    # Mentions teapots, hedge*, gnomes, in one of two captions a hallucinated one; of 3 objects 2 are named.
    assert (found["n_mentions"], found["n_hallucinated"]) == (3, 1)
    assert (found["chair_s"], found["recall"]) == (0.5, pytest.approx(2 / 3))
    (tmp_path / "words.txt").write_text("kettle\n")
    assert main([*command[:-1], str(tmp_path / "again"), *FAST, "--matcher", "builtin"]) == 2
    assert "objects: must be names or their synonyms (words.txt), got 'hedge'" in capsys.readouterr().err
