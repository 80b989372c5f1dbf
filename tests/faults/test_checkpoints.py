"""Broken checkpoints: every command that loads one refuses it in one line, or works."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from golden_models import save_golden

from damro.tiny.scenes import scene
from tests.faults.checkpoint_faults import Fault, faults
from tests.faults.commands import call, check_refused

EVERY = 9
FAULTS, SLOW_FAULTS = len(list(faults())[::EVERY]), len(faults())
"""Broken checkpoints that the two tests make: one in nine for `answer`, and all of them for the commands in turn."""

COMMANDS = {
    "answer": "answer IMAGE Hi --alpha 1 --beta 0.1 --top-k 2 --max-new-tokens 2",
    "attention": "attention IMAGE --prompt What --max-new-tokens 2 --out PLACE/map.png",
    "explain": "explain IMAGE Hi --out PLACE/report.html --max-new-tokens 2",
    "run": "run chair --images PLACE/images --objects PLACE/objects.json --matcher builtin --max-new-tokens 2 "
    "--out PLACE/run --method damro",
    "bench": "bench --image-tokens 64 --repeats 1 --new-tokens 1 --batch 1 --no-pruning --no-questions",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint, and what commands want beside one."""
    folder = tmp_path_factory.mktemp("checkpoints")
    save_golden("llava", folder / "whole")
    (folder / "images").mkdir()
    scene("test", 1).image.save(folder / "images/1.png")
    (folder / "objects.json").write_text(json.dumps({"1": ["cat"]}))
    return folder


def attempt(place: Path, name: str, fault: Fault, command: str) -> int:
    """The exit code of a command with a broken checkpoint; 0 where the fault does not matter to it."""
    model = place / "model"
    shutil.rmtree(model) if model.is_dir() else model.unlink(missing_ok=True)
    shutil.rmtree(place / "run", ignore_errors=True)
    shutil.copytree(place / "whole", model)
    fault(model)
    line = COMMANDS[command].replace("IMAGE", str(place / "images/1.png")).replace("PLACE", str(place))
    words = [*line.split(), "--device", "cpu", "--config" if command == "bench" else "--model", model]
    told = call(words)
    if told.code:
        check_refused(told, f"{command} with {name}")
    return told.code


def attempt_all(place: Path, chosen: Iterable[tuple[str, Fault, str]]) -> Counter[int]:
    return Counter(attempt(place, *one) for one in chosen)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "bench"])
def test_a_whole_checkpoint_works(place: Path, command: str) -> None:
    assert attempt(place, "nothing", lambda folder: None, command) == 0


def test_a_broken_checkpoint_is_refused_in_one_line(place: Path) -> None:
    codes = attempt_all(place, [(name, fault, "answer") for name, fault in list(faults().items())[::EVERY]])
    assert set(codes) <= {0, 2} and codes[2] > codes.total() * 0.8


@pytest.mark.slow
def test_broken_checkpoints_with_commands_in_turn(place: Path) -> None:
    commands = list(COMMANDS)
    chosen = [(name, fault, commands[number % len(commands)]) for number, (name, fault) in enumerate(faults().items())]
    codes = attempt_all(place, chosen)
    assert set(codes) <= {0, 2} and codes[2] > codes.total() * 0.8


def test_the_cause_is_named(place: Path) -> None:
    """Where the files themselves tell what is wrong, the file is named."""
    known = faults()
    for name, cause in {
        "config.json is null": "config.json must hold a JSON object, holds NoneType",
        "tokenizer.json cut in half": "tokenizer.json is not JSON",
        "model.safetensors cut in half": "model.safetensors is cut short: [0-9]+ bytes are missing",
        "an index that names missing shards": "index.json names gone.safetensors, which is missing",
        "an empty folder": "config.json is missing",
        "config.json with text_config null": "config.json describes 6,755.6 million weights, the files beside it have",
        "a file": "it is a file; give the folder of a checkpoint",
        "a template that raises": "raises TemplateError: no images, please",
    }.items():
        model = place / "model"
        shutil.rmtree(model) if model.is_dir() else model.unlink(missing_ok=True)
        shutil.copytree(place / "whole", model)
        known[name](model)
        told = call(["answer", place / "images/1.png", "Hi", "--model", model, "--device", "cpu"])
        assert cause.partition("[")[0] in told.lines[-1], told.err
