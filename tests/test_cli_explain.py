from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from golden_models import save_golden
from PIL import Image

from damro.cli import explain
from damro.errors import ParameterError


def call(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    explain.add_parser(parser.add_subparsers())
    args = parser.parse_args(["explain", *arguments])
    return int(args.run(args))


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.effect_mandelbrot((80, 60), (-2, -1.5, 1, 1.5), 20).convert("RGB").save(path)
    return path


def test_writes_a_page_and_tells_both_answers(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_golden("llava", tmp_path / "some-model")
    target = tmp_path / "report.html"
    options = ["--alpha", "2", "--top-k", "3", "--max-new-tokens", "5", "--layers", "-1", "0"]
    assert call(str(photo), "What is this?", "--model", f"{folder}/", "--out", str(target), *options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].strip() for line in lines[:2]] == ["greedy", "damro"]
    assert all(len(line.split(":")[1].split()) == 5 for line in lines[:2])
    assert lines[2] == f"wrote {target}"
    page = target.read_text("utf-8")
    assert "some-model · alpha 2, beta 0.1, 3 outlier patches" in page
    # No more of the machine than the model's name goes into a page that is sent around.
    assert str(tmp_path) not in page and str(photo) not in page


def test_a_folder_that_is_missing_is_told_before_the_model_is_loaded(photo: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="--out must lie in a folder that exists"):
        call(str(photo), "What", "--model", "absent", "--out", str(tmp_path / "no" / "report.html"))


def test_a_layer_that_is_missing_is_told(photo: Path, tmp_path: Path) -> None:
    folder = save_golden("llava", tmp_path / "model")
    target = tmp_path / "report.html"
    with pytest.raises(ParameterError, match="language model's 3 layers"):
        call(str(photo), "What", "--model", str(folder), "--layers", "3", "--out", str(target))
    assert not target.exists()
