"""damro inside VLMEvalKit: the wrapper's options always, the rest where ms-vlmeval is installed."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import damro
from damro.errors import ParameterError
from damro.inputs import prepare_inputs
from damro.integrations.vlmeval.__main__ import main
from damro.integrations.vlmeval.options import read_options
from damro.loading import load_model
from damro.tiny import scene

SCENES = 8


def test_own_options_are_taken_out_and_all_others_left() -> None:
    told = read_options(["--data", "POPE", "MME", "--method", "vcd:alpha=2", "--pretrained", "x/y", "--mode", "infer"])
    assert told.model == {"pretrained": "x/y", "method": "vcd:alpha=2"}
    assert told.rest == ["--data", "POPE", "MME", "--mode", "infer", "--model", "damro"]
    assert read_options(["--pretrained", "x", "--model", "damro", "gpt"]).rest == ["--model", "damro", "gpt"]
    told = read_options(["--pretrained", "x", "--max-tokens", "5", "--max-new-tokens", "7"])
    assert told == ({"pretrained": "x", "max_new_tokens": 7}, ["--max-tokens", "5", "--model", "damro"])
    assert read_options(["--config", "a.json"]) == (None, ["--config", "a.json"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--data", "POPE"], "--pretrained must name the model, got none"),
        (["--config", "a.json", "--method", "vcd"], "--method must be left out with --config"),
        (["--config=a.json", "--max-new-tokens", "3"], "--max-new-tokens must be left out with --config"),
    ],
)
def test_a_model_that_is_told_twice_or_not_is_refused(argv: list[str], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        read_options(argv)


def test_where_it_is_missing_or_has_moved_the_version_that_works_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "vlmeval", None)
    assert main(["--pretrained", "tiny", "--data", "POPE"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("damro: VLMEvalKit switches off the verification of TLS certificates")
    assert second.startswith("damro: ms-vlmeval must have the interface of 0.0.20 with all that it imports, got ")
    assert main(["--data", "POPE"]) == 2
    assert "--pretrained must name the model" in capsys.readouterr().err


def write_data(folder: Path) -> list[tuple[int, str]]:
    """A data set of VLMEvalKit's: a table with images in base64. Returns the numbers of scenes and the questions."""
    asked = []
    with (folder / "scenes.tsv").open("w", newline="") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(["index", "image", "question", "answer", "category"])
        for number in range(SCENES):
            picture = scene("test", number)
            question = f"Is there a {picture.objects[0].name if number % 2 else 'zebra'} in the image?"
            stream = io.BytesIO()
            picture.image.save(stream, "PNG")
            text = base64.b64encode(stream.getvalue()).decode()
            table.writerow([number, text, question, "Yes" if number % 2 else "No", "scenes"])
            asked.append((number, question))
    return asked


def run(folder: Path, *arguments: str, module: str = "damro.integrations.vlmeval") -> subprocess.CompletedProcess[str]:
    ours = {"LMUData": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PRED_FORMAT": "tsv"}
    command = [sys.executable, "-m", module, *arguments, "--work-dir", str(folder / "out")]
    return subprocess.run(command, cwd=folder, env={**os.environ, **ours}, capture_output=True, text=True, timeout=900)


def predictions(folder: Path, model: str) -> list[str]:
    [file] = (folder / "out" / model).rglob(f"{model}_scenes.tsv")
    with file.open(newline="") as table:
        return [row["prediction"] for row in csv.DictReader(table, delimiter="\t")]


needs_vlmeval = pytest.mark.skipif(
    find_spec("vlmeval") is None, reason="ms-vlmeval is not installed: make test-vlmeval"
)


@pytest.mark.slow
@needs_vlmeval
def test_answers_in_vlmevalkit_are_those_of_generate(tmp_path: Path) -> None:
    csv.field_size_limit(10**9)
    asked = write_data(tmp_path)
    models = {
        "plain": {"class": "Damro", "pretrained": "tiny", "method": "greedy"},
        "ours": {"class": "Damro", "pretrained": "tiny", "method": "damro:alpha=3", "max_new_tokens": 8},
    }
    config = {"model": models, "data": {"scenes": {"class": "ImageYORNDataset", "dataset": "scenes"}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = run(tmp_path, "--config", "config.json", "--judge", "exact_matching")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "switches off the verification of TLS certificates" in done.stderr
    model, processor = load_model("tiny")
    for name, entry in models.items():
        expected = []
        for number, question in asked:
            inputs = prepare_inputs(processor, [scene("test", number).image], [question], model)
            ids = damro.generate(model, inputs, entry["method"], max_new_tokens=8, do_sample=False)
            expected.append(processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
        assert predictions(tmp_path, name) == expected
        assert list((tmp_path / "out" / name).rglob("*score*")), "VLMEvalKit has scored them"


@pytest.mark.slow
@needs_vlmeval
def test_an_error_of_the_model_is_no_success(tmp_path: Path) -> None:
    write_data(tmp_path)
    done = run(tmp_path, "--pretrained", "tiny", "--method", "damra", "--data", "scenes", "--mode", "infer")
    assert done.returncode == 1
    assert "errors of the model, the first of the model: ParameterError: method must be one of" in done.stderr


@pytest.mark.slow
@needs_vlmeval
def test_vlmevalkit_asks_the_endpoint(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    from serve_server import serving

    csv.field_size_limit(10**9)
    asked = write_data(tmp_path)
    model, processor = load_model("tiny")
    chats: list[Any] = []
    with serving(model, processor) as (address, endpoint):
        answer = endpoint._batcher._answer_together

        def recording(batch: Any) -> None:
            chats.extend(job.asked.chat for job in batch)
            answer(batch)

        endpoint._batcher._answer_together = recording  # type: ignore[method-assign]
        arguments = ["--model", "tiny", "--base-url", f"{address}/v1", "--max-tokens", "64", "--data", "scenes"]
        method = json.dumps({"method": "damro", "alpha": 3})
        done = run(tmp_path, *arguments, "--mode", "infer", "--extra-body", method, module="vlmeval.run")
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(chats) == SCENES
    shown = [small(scene("test", number).image) for number, _ in asked]
    heard: dict[tuple[int, str], str] = {}
    for chat in chats:  # VLMEvalKit sends images as JPEG, so what is to be answered is what has come
        [question] = [part["text"] for part in chat.messages[0]["content"] if part["type"] == "text"]
        inputs = prepare_inputs(processor, chat.images, [question], model)
        ids = damro.generate(model, inputs, "damro:alpha=3", max_new_tokens=64, do_sample=False)
        number = int(np.argmin([np.abs(small(chat.images[0]) - one).mean() for one in shown]))
        heard[number, question] = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert predictions(tmp_path, "tiny") == [heard[one] for one in asked]


def small(image: Image.Image) -> np.ndarray:
    """An image in few pixels, which tell it from others after JPEG too."""
    return np.asarray(image.convert("RGB").resize((16, 16)), float)
