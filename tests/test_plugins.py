"""Another package adds a method, a benchmark and a model family: installed, and used through every entrance."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from damro.tiny.scenes import scene

ROOT = Path(__file__).parents[1]
PLUGIN = Path(__file__).parent / "data/plugin"
# Not find_spec: to look for pip that way has setuptools take back its own distutils, in this process and for good.
missing = [name for name in ("pip", "hatchling") if name not in packages_distributions()]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}: pip install 'damro[dev]'"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed package."""
    place = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--target", str(place), str(PLUGIN)], check=True, timeout=300)
    return place


def run(place: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(place), str(ROOT)])
    done = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        cwd=place,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == code, done.stderr
    return done


def test_what_it_adds_is_listed(place: Path) -> None:
    methods = json.loads(run(place, "-m", "damro", "methods", "--json").stdout)
    assert list(methods)[:2] == ["greedy", "damro"] and methods["blur"]["parameters"]["side"]["default"] == 8
    assert methods["blur"]["parameters"]["side"]["help"] == "pixels a side that are left."
    benchmarks = json.loads(run(place, "-m", "damro", "benchmarks", "--json").stdout)
    assert list(benchmarks) == ["pope", "chair", "mme", "amber", "counting"]
    assert "--side" in run(place, "-m", "damro", "run", "--help").stdout


def test_its_method_runs_over_its_benchmark(place: Path, tmp_path: Path) -> None:
    lines = []
    for number in range(3):
        picture = scene("test", number)
        picture.image.save(tmp_path / f"{number}.png")
        asked = {"image": f"{number}.png", "question": "How many objects?", "number": len(picture.objects)}
        lines.append(json.dumps(asked))
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    files = ["--questions", str(tmp_path / "questions.jsonl"), "--images", str(tmp_path)]
    more = ["--methods", "greedy", "blur:side=4", "blur:side=16@1", "--max-new-tokens", "4", "--device", "cpu"]
    command = ["-m", "damro", "run", "counting", *files, *more, "--out", str(tmp_path / "out"), "--json"]
    found = json.loads(run(place, *command).stdout)
    assert list(found["methods"]) == ["greedy", "blur", "blur@1"]
    assert found["methods"]["blur"]["scores"]["questions"]["n"] == 3
    pinned = json.loads((tmp_path / "out/blur_side=4/run.json").read_text())
    assert pinned["request"]["method"] == "blur:side=4"
    assert pinned["resolved"]["method"]["parameters"] == {"alpha": 1.0, "beta": 0.1, "side": 4}
    assert "mean error" in (tmp_path / "out/report.html").read_text()
    refused = run(place, *command[:4], "--objects", "x", *files, code=2)
    assert "counting must have parameters of questions, got 'objects'" in refused.stderr


FAMILY = """
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration
import damro
from damro.loading import load_model, prepare_inputs
from damro.tiny import scene

class ExampleConfig(LlavaConfig):
    model_type = "llava_example"

class Example(LlavaForConditionalGeneration):
    config_class = ExampleConfig

known, processor = load_model("tiny", device="cpu")
told = {key: value for key, value in known.config.to_dict().items() if key != "model_type"}
model = Example(ExampleConfig(**told)).eval()
model.load_state_dict(known.state_dict())
model.generation_config = known.generation_config
inputs = prepare_inputs(processor, [scene("test", 0).image], ["Describe this image."], known)
told = {"max_new_tokens": 8, "do_sample": False}
ids = [damro.generate(one, inputs, "damro:alpha=1,beta=0.1,top_k=4", **told) for one in (known, model)]
assert model.config.model_type == "llava_example" and torch.equal(*ids)
stock = model.generate(**inputs, logits_processor=damro.contrast_processor(model, inputs, "blur:side=4"), **told)
assert torch.equal(stock, damro.generate(model, inputs, "blur:side=4", **told))
"""


def test_its_family_is_served(place: Path) -> None:
    run(place, "-c", FAMILY)


def test_a_package_that_wants_a_taken_name_is_refused(place: Path, tmp_path: Path) -> None:
    info = tmp_path / "greedy_people-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: greedy-people\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[damro.methods]\nvcd = somewhere:Else\n")
    done = run(tmp_path, "-m", "damro", "methods", code=2)
    assert "method 'vcd' is taken by damro itself; uninstall greedy-people, which wants it too" in done.stderr
    assert "Traceback" not in done.stderr
