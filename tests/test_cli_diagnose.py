from __future__ import annotations

import json
from pathlib import Path

import pytest
from golden_models import save_golden

from damro.cli import build_parser, main
from damro.diagnosis.settings import Settings
from damro.parameters import parameters
from damro.tiny.coco_files import write_coco

QUICK = ["--matcher", "builtin", "--alpha", "0.5", "1", "--beta", "0.1", "--top-k", "6", "--max-new-tokens", "32"]


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco"), "test", 4)


def test_scenes_are_diagnosed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", "tiny:llava", "--limit", "3", "--out", str(tmp_path / "found"), *QUICK]) == 0
    out, err = capsys.readouterr()
    assert "DAMRO on this model: cannot be told from so few images." in out
    assert "What do the outliers know?" in out and "Head room" in out
    assert str(tmp_path / "found" / "diagnosis.html") in err
    told = json.loads((tmp_path / "found" / "diagnosis.json").read_text())
    assert (told["model"], told["images"], told["outliers"]["top_k"]) == ("tiny:llava", 3, 6)
    assert told["settings"]["alpha"] == [0.5, 1.0] and told["outliers"]["placed"] == 3
    page = (tmp_path / "found" / "diagnosis.html").read_text()
    assert "damro diagnose: tiny:llava" in page and str(tmp_path) not in page


def test_a_folder_of_images_is_diagnosed(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--images", str(coco / "images"), "--objects", str(coco / "instances_test.json"), "--limit", "3"]
    assert main(["diagnose", "tiny", *arguments, "--json", "--out", str(tmp_path), "--layer", "0", *QUICK]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["images"] == 3 and told["outliers"]["placed"] == 3 and told["outliers"]["other"] == 0
    assert told == json.loads((tmp_path / "diagnosis.json").read_text())


def test_without_places_the_background_is_not_told(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objects = tmp_path / "objects.json"
    objects.write_text(json.dumps({f"test_{n:06d}.png": ["cat", "dog", "bus"][n % 2 :] for n in range(3)}))
    arguments = ["--images", str(coco / "images"), "--objects", str(objects)]
    assert main(["diagnose", "tiny", *arguments, "--out", str(tmp_path / "found"), *QUICK]) == 0
    assert "Where flagged patches lie is not told: where objects are is not known" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["elsewhere/model"], "--images must be the folder of annotated images"),
        (["tiny", "--objects", "x.json"], "--objects must come with --images, got 'x.json' alone"),
        (["tiny", "--vocabulary", "x.txt"], "--vocabulary must come with --images"),
        (["tiny", "--images", "absent"], "--images must be a folder, got 'absent'"),
        (["tiny", "--alpha", "-1"], "alpha must be in (0, 100]"),
        (["tiny", "--limit", "1"], "samples must be at least two images, got 1"),
        (["tiny:nobody", "--limit", "2"], "model must be one of tiny:llava, "),
    ],
)
def test_what_cannot_be_is_told_in_a_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diagnose", *arguments, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_objects_for_other_images_are_told(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", "tiny", "--images", str(coco / "images"), "--out", str(tmp_path)]) == 2
    assert "--images must hold annotated images" in capsys.readouterr().err


def test_every_setting_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["diagnose", "--help"])
    shown = capsys.readouterr().out
    assert all(f"{one.flag} " in shown for one in parameters(Settings))


def test_an_untrained_checkpoint_is_diagnosed(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_golden("llava", tmp_path / "model")
    arguments = ["--images", str(coco / "images"), "--objects", str(coco / "instances_test.json"), "--top-k", "3"]
    assert main(["diagnose", str(folder), *arguments, "--limit", "2", "--out", str(tmp_path / "found")]) == 0
    out = capsys.readouterr().out
    assert "cannot be told" in out and "token that spells yes" in out
