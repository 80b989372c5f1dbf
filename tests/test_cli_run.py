import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from run_cli import call

from damro.decoding.errors import ParameterError
from damro.eval.errors import EvalError
from damro.eval.mme import HALLUCINATION
from damro.eval.runs.loop import FailedSampleError
from damro.eval.runs.record import RunMismatchError
from damro.tiny.model import build_model, build_processor
from damro.tiny.scenes import scene

RUN_CLI = Path(__file__).with_name("run_cli.py")
SENTENCE = "You are a confused objects detector to provide a fuzzy overview or impression of the image."
ICD_FORM = {"question_only": False, "form": "released", "place": "front"}
FAST = ["--max-new-tokens", "3", "--batch-size", "4", "--device", "cpu"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that knows nothing, five images under COCO's names, ten questions about them, their objects."""
    place = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    model = build_model("llava")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embed" not in name:
                weight.normal_(0, 2 * weight.shape[1] ** -0.5)
    model.save_pretrained(place / "model")
    build_processor("llava").save_pretrained(place / "model")
    (place / "images").mkdir()
    lines, objects = [], {}
    for number in range(1, 6):
        name = f"COCO_val2014_{number:012d}.png"
        picture = scene("test", number)
        picture.image.save(place / "images" / name)
        objects[str(number)] = sorted({thing.name for thing in picture.objects})
        for label, noun in (("yes", objects[str(number)][0]), ("no", "unicorn")):
            fields = {"question_id": len(lines) + 1, "image": name, "text": f"Is there a {noun} in the image?"}
            lines.append(json.dumps({**fields, "label": label}))
    (place / "questions.jsonl").write_text("\n".join(lines))
    (place / "objects.json").write_text(json.dumps(objects))
    return place


def pope(world: Path, out: Path, *more: str) -> list[str]:
    files = ["--questions", str(world / "questions.jsonl"), "--images", str(world / "images")]
    return ["run", "pope", "--model", str(world / "model"), *files, "--out", str(out), *FAST, *more]


def records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "records.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def test_a_comparison_writes_records_scores_and_report(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*pope(world, tmp_path, "--methods", "greedy", "damro", "random-k@1", "--json", "--top-k", "4")) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "scores.json").read_text())
    assert list(printed["methods"]) == ["greedy", "damro", "random-k@1"]
    assert printed["methods"]["damro"]["scores"]["questions.jsonl"]["n"] == 10
    assert set(printed["methods"]["damro"]["scores"]["questions.jsonl"]["difference"]) == {
        *("accuracy", "precision", "recall", "f1", "yes_ratio")
    }
    pinned = json.loads((tmp_path / "damro/run.json").read_text())
    assert pinned["resolved"]["method"] == {
        **{"name": "damro", "method": "damro", "temperature": 0.0, "top_p": 1.0},
        "parameters": {"alpha": 2.0, "beta": 0.1, "top_k": 4, "variant": "reference"},
    }
    assert pinned["resolved"]["model"]["fingerprint"].startswith("sha256 ")
    weights = dict(build_model("llava").named_parameters()).values()
    assert pinned["resolved"]["model"]["parameters"] == sum(weight.numel() for weight in weights)
    assert [len(record["outliers"][0]) for record in records(tmp_path / "damro")] == [4] * 10
    csv = (tmp_path / "scores.csv").read_text().splitlines()
    assert csv[0].startswith("group,method,metric,value,low,high,difference")
    assert len(csv) == 1 + 3 * 5
    assert "## questions.jsonl" in (tmp_path / "scores.md").read_text()
    assert "<title>POPE" in (tmp_path / "report.html").read_text()


def test_run_json_alone_is_enough_to_run_again(world: Path, tmp_path: Path) -> None:
    call(*pope(world, tmp_path / "one", "--method", "damro@1", "--seed", "3"))
    call("run", "--from", str(tmp_path / "one/damro@1/run.json"), "--out", str(tmp_path / "two"))
    assert records(tmp_path / "two/damro@1") == records(tmp_path / "one/damro@1")
    call(*pope(world, tmp_path / "three", "--method", "damro@1", "--seed", "4"))
    assert records(tmp_path / "three/damro@1") != records(tmp_path / "one/damro@1")


def test_another_run_in_the_folder_is_refused_with_what_differs(world: Path, tmp_path: Path) -> None:
    call(*pope(world, tmp_path, "--seed", "1"))
    with pytest.raises(RunMismatchError, match=r"differs in 1: request.seed: 1 -> 2"):
        call(*pope(world, tmp_path, "--seed", "2"))
    with pytest.raises(EvalError, match="must hold no records with --no-resume"):
        call(*pope(world, tmp_path, "--seed", "1", "--no-resume"))


def test_bad_images_are_counted_aloud_or_stop_a_strict_run(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in (world / "images").iterdir():
        (images / path.name).write_bytes(path.read_bytes())
    (images / "COCO_val2014_000000000001.png").write_bytes(b"no image")
    (images / "COCO_val2014_000000000002.png").unlink()
    arguments = pope(world, tmp_path / "out", "--images", str(images))
    assert call(*arguments) == 0
    printed = capsys.readouterr()
    assert "4 of 10 samples failed and are not scored" in " ".join(printed.out.split())
    assert f"damro: 1 images are not in {str(images)!r} (COCO_val2014_000000000002.png): their samples" in printed.err
    assert "damro: 4 of 10 samples failed, the first with: image must be" in printed.err
    assert "--retry-failed" in printed.err
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert scores["methods"]["greedy"]["failed"] == 4
    assert scores["methods"]["greedy"]["scores"]["questions.jsonl"]["n"] == 6
    assert "no such file" in records(tmp_path / "out/greedy")[2]["error"]
    with pytest.raises(FailedSampleError, match="under --strict"):
        call(*pope(world, tmp_path / "strict", "--images", str(images), "--strict"))


def test_a_missing_folder_of_images_poisons_no_run(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    arguments = pope(world, tmp_path / "out", "--images", str(images))
    with pytest.raises(EvalError, match=r"lacks 5 of 5 \(COCO_val2014_000000000001.png, .*: give the folder"):
        call(*arguments, "--model", "no such model")  # told before a model is looked for
    assert not (tmp_path / "out").exists()
    files = sorted((world / "images").iterdir())
    for path in files[:3]:
        (images / path.name).write_bytes(path.read_bytes())
    assert call(*arguments) == 0
    assert sum("error" in record for record in records(tmp_path / "out/greedy")) == 4
    for path in files[3:]:
        (images / path.name).write_bytes(path.read_bytes())
    capsys.readouterr()
    assert call(*arguments) == 0  # the same command, and no --retry-failed
    assert "failed" not in capsys.readouterr().err
    call(*pope(world, tmp_path / "whole"))
    assert records(tmp_path / "out/greedy") == records(tmp_path / "whole/greedy")


def test_the_embedded_model_is_named_where_none_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for model, told in (([], True), (["--model", "tiny"], False)):
        asked = ["run", "pope", *model, "--scenes", "10", "--limit", "1", "--split", "random", *FAST]
        assert call(*asked, "--out", "out") == 0
        assert ("no --model given, so it is 'tiny', the embedded one" in capsys.readouterr().err) is told
    for data in (["--questions", "/nope.jsonl"], ["--split", "coco/random"]):
        with pytest.raises(EvalError, match=f"{data[0]} must .* for the embedded scenes.*, got '{data[1]}'"):
            call("run", "pope", *data, "--out", "refused", *FAST)
    assert not Path("refused").exists()


@pytest.mark.parametrize("name", ["../../secret.png", "/etc/passwd", "a/../../b.png", "..\\b.png", "C:/b.png"])
def test_an_image_outside_the_folder_is_refused(world: Path, tmp_path: Path, name: str) -> None:
    question = {"question_id": 1, "image": name, "text": "Is there a cat in the image?", "label": "no"}
    (tmp_path / "questions.jsonl").write_text(json.dumps(question))
    with pytest.raises(EvalError, match="must stay inside the images folder"):
        call(*pope(world, tmp_path / "out", "--questions", str(tmp_path / "questions.jsonl")))
    assert not (tmp_path / "out").exists()


def test_captions(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--objects", str(world / "objects.json"), "--images", str(world / "images")]
    arguments = ["--methods", "greedy", "least-k", "--matcher", "builtin", "--out", str(tmp_path), "--json"]
    assert call("run", "chair", "--model", str(world / "model"), *files, *arguments, *FAST) == 0
    scores = json.loads(capsys.readouterr().out)["methods"]["least-k"]["scores"]["captions"]
    assert scores["n_captions"] == 5
    assert scores["matcher"] == "builtin"
    assert {record["prompt"] for record in records(tmp_path / "greedy")} == {"Generate a short caption of this image."}


@pytest.mark.parametrize(
    ("method", "asked", "parameters"),
    [
        ("vcd", ["--alpha", "0.5"], {"alpha": 0.5, "beta": 0.1, "noise_step": 500, "seed": 42}),
        ("icd", ["--alpha", "0.5"], {"alpha": 0.5, "beta": 0.1, "disturbance": SENTENCE, **ICD_FORM}),
        ("m3id", [], {"forgetting": 0.02, "confidence": 0.3}),
    ],
)
def test_other_methods_are_run_and_recorded(
    world: Path, tmp_path: Path, method: str, asked: list[str], parameters: dict[str, Any]
) -> None:
    assert call(*pope(world, tmp_path, "--method", method, *asked)) == 0
    assert len(records(tmp_path / method)) == 10
    assert not [record for record in records(tmp_path / method) if "error" in record]
    recorded = json.loads((tmp_path / method / "run.json").read_text())["resolved"]["method"]
    assert recorded == {
        "name": method,
        "method": method,
        "temperature": 0.0,
        "top_p": 1.0,
        "parameters": parameters,
    }


def test_mme_in_the_official_layout(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mme/existence"
    folder.mkdir(parents=True)
    scene("test", 1).image.save(folder / "0001.png")
    (folder / "0001.txt").write_text(
        "Is there a cat? Please answer yes or no.\tNo\nIs there a dog? Please answer yes or no.\tYes\n"
    )
    arguments = ["--images", str(tmp_path / "mme"), "--out", str(tmp_path / "out"), "--json", *FAST]
    assert call("run", "mme", "--model", str(world / "model"), *arguments) == 0
    scores = json.loads(capsys.readouterr().out)["methods"]["greedy"]["scores"]["existence"]
    assert (scores["n_questions"], scores["n_images"]) == (2, 1)


def test_mme_adds_up_the_categories(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in HALLUCINATION:
        folder = tmp_path / "mme" / name
        folder.mkdir(parents=True)
        scene("test", 1).image.save(folder / "0001.png")
        (folder / "0001.txt").write_text(f"Is there a {name}?\tNo\nIs there no {name}?\tYes\n")
    arguments = ["--images", str(tmp_path / "mme"), "--out", str(tmp_path / "out"), *FAST]
    assert call("run", "mme", "--model", str(world / "model"), *arguments) == 0
    assert "hallucination" in capsys.readouterr().out
    scores = json.loads((tmp_path / "out/scores.json").read_text())["methods"]["greedy"]["scores"]
    expected = sum(scores[name]["score"] for name in HALLUCINATION)
    assert scores["all categories"]["total"] == scores["all categories"]["hallucination"] == expected
    assert "hallucination" in (tmp_path / "out/report.html").read_text()


def test_compare_tells_recorded_runs_apart(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(*pope(world, tmp_path / "a"))
    call(*pope(world, tmp_path / "b", "--method", "no-image"))
    capsys.readouterr()
    assert call("compare", str(tmp_path / "a/greedy"), str(tmp_path / "b/no-image"), "--rules", "all", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["methods"]) == ["greedy", "no-image"]
    assert [name.partition(" ")[2] for name in found["methods"]["greedy"]["scores"]] == [
        *("", "(opera)", "(vcd)", "(lmms)", "(vlmeval)")
    ]


def test_a_method_that_fails_on_every_sample_hides_nothing_of_the_others(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = pope(world, tmp_path, "--methods", "greedy", "no-image", "vcd")
    assert call(*arguments) == 0
    file = tmp_path / "vcd/records.jsonl"
    failed = [{**record, "error": "out of [red]luck"} for record in records(tmp_path / "vcd")]
    file.write_text("".join(json.dumps({k: v for k, v in one.items() if k != "answer"}) + "\n" for one in failed))
    capsys.readouterr()
    folders = [str(tmp_path / name) for name in ("greedy", "no-image", "vcd")]
    for command in (arguments, ["compare", *folders, "--out", str(tmp_path / "compared")]):
        assert call(*command) == 2
        told = capsys.readouterr()
        assert "vcd: all 10 samples failed, the first with: out of [red]luck" in told.err
        assert "no-image" in told.out and "WARNING: vcd: all 10 samples failed" in told.out
    for place in (tmp_path, tmp_path / "compared"):
        methods = json.loads((place / "scores.json").read_text())["methods"]
        assert methods["no-image"]["scores"]["questions.jsonl"]["n"] == 10
        assert (methods["vcd"]["scores"], methods["vcd"]["failed"]) == ({}, 10)
        assert "out of [red]luck" in (place / "report.html").read_text()


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="needs the images, none are downloaded: give --images"):
        call("run", "pope", "--model", "somebody/llava", "--out", str(tmp_path))
    with pytest.raises(ParameterError, match="method must be one of greedy, damro, .*, got 'magic'"):
        call("run", "pope", "--method", "magic", "--out", str(tmp_path))
    with pytest.raises(EvalError, match="either a benchmark"):
        call("run", "--out", str(tmp_path))


@pytest.mark.slow
def test_an_interrupt_ends_cleanly_and_the_run_goes_on(world: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(RUN_CLI.parents[1])}
    slow = ["--max-new-tokens", "200", "--batch-size", "1"]
    command = [sys.executable, str(RUN_CLI), *pope(world, tmp_path / "cut", *slow)]
    # Started in the background of a shell, tests and all their children ignore interrupts.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    file = tmp_path / "cut/greedy/records.jsonl"
    while process.poll() is None and not (file.exists() and file.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "give the same command again to go on" in told
    assert 0 < len(records(tmp_path / "cut/greedy")) < 10
    call(*pope(world, tmp_path / "cut", *slow))
    call(*pope(world, tmp_path / "whole", *slow))
    assert records(tmp_path / "cut/greedy") == records(tmp_path / "whole/greedy")


@pytest.mark.slow
@pytest.mark.parametrize("device", [["--device", "cpu"], []], ids=["cpu", "default"])
def test_two_processes_equal_one(device: list[str], world: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(RUN_CLI.parents[1]), "WORKER_LOG": str(tmp_path / "log")}
    (tmp_path / "log").mkdir()
    methods = ("greedy", "damro@1")

    def arguments(out: str) -> list[str]:
        asked = pope(world, tmp_path / out, "--methods", *methods, "--batch-size", "2")
        place = asked.index("--device")
        return [*asked[:place], *asked[place + 2 :], *device]

    command = [*launcher, str(RUN_CLI.with_name("run_worker.py")), *arguments("two")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("written to") == 1  # the leader alone tells
    call(*arguments("one"))
    for method in methods:
        assert records(tmp_path / "two" / method) == records(tmp_path / "one" / method)
        assert not (tmp_path / "two" / method / "parts").exists()
        parts = [(tmp_path / f"log/{method}-records-{rank}.jsonl").read_text().split() for rank in (0, 1)]
        assert all(parts)  # both had something to do
        ids = [record["id"] for record in records(tmp_path / "one" / method)]
        assert sorted(parts[0] + parts[1]) == sorted(ids)  # and none did what the other did


def test_recorded_captions_are_compared_and_put_beside_the_paper(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--objects", str(world / "objects.json"), "--images", str(world / "images")]
    arguments = ["--methods", "greedy", "damro", "--matcher", "builtin", "--out", str(tmp_path), "--top-k", "4"]
    call("run", "chair", "--model", str(world / "model"), *files, *arguments, *FAST)
    runs = [str(tmp_path / "greedy"), str(tmp_path / "damro")]
    capsys.readouterr()
    assert call("compare", *runs, "--matcher", "builtin", "--json", "--out", str(tmp_path / "compared")) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "scores.json").read_text())
    assert (tmp_path / "compared/report.html").exists()
    assert call("reproduce", "chair", *runs, "--matcher", "builtin", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["method"], row["metric"], row["published"]) for row in found["rows"]] == [
        ("greedy", "chair_s", 0.124),
        ("greedy", "chair_i", 0.072),
        ("damro", "chair_s", 0.06),
        ("damro", "chair_i", 0.036),
    ]
    assert {row["outcome"] for row in found["rows"]} == {"not comparable"}
    assert "decoding: greedy; the paper samples at temperature 1" in found["not_comparable"]["damro"]
    assert "objects: of objects.json; the paper has COCO's" in found["not_comparable"]["greedy"]
    assert set(found["not_comparable"]["damro"]) <= set(found["protocol_differences"]["damro"])
    assert call("reproduce", "chair", *runs, "--matcher", "builtin") == 0
    assert "greedy: not comparable with the paper, since these differ" in capsys.readouterr().out
    with pytest.raises(EvalError, match="runs must be of pope, got runs of chair"):
        call("reproduce", "pope", *runs)
