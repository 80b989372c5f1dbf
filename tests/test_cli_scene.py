"""``damro scene``, embedded scenes as images of every command, and prompts that an embedded model does not know."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageChops

from damro import tiny
from damro.cli import main
from damro.images import load_image
from damro.tiny.captions import DETAIL_PROMPTS, ENDINGS, QUESTION_FORMS, SHORT_PROMPTS
from damro.tiny.known import unknown_words


def test_a_scene_is_written_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "scene.png"
    assert main(["scene", "0", "--out", str(target)]) == 0
    assert capsys.readouterr().out == f"wrote {target}: cat, couch, tv, vase\n"
    written = Image.open(target).convert("RGB")
    assert ImageChops.difference(written, tiny.scene("test", 0).image).getbbox() is None


def test_scenes_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scene", "-1"]) == 2
    assert "N must be the number of a scene" in capsys.readouterr().err
    assert main(["scene", "1", "--out", str(tmp_path)]) == 2
    assert "--out must be a file" in capsys.readouterr().err


def test_a_scene_is_an_image_unless_a_file_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ImageChops.difference(load_image("tiny:3"), tiny.scene("test", 3).image).getbbox() is None
    Image.new("RGB", (5, 4)).save(tmp_path / "tiny:3", format="png")
    assert load_image("tiny:3").size == (5, 4)
    for name in ("tiny:", "tiny:x", "tiny:-1", "tiny", "scene:3"):
        with pytest.raises(ValueError, match="no such file"):
            load_image(name)


def test_every_taught_prompt_is_known() -> None:
    processor = tiny.load()[1]
    asked = [form.format("a dog") + ending for form in QUESTION_FORMS for ending in ENDINGS]
    for prompt in [*SHORT_PROMPTS, *DETAIL_PROMPTS, *asked]:
        assert unknown_words(processor, prompt) == []


def test_unknown_words_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    told = ["answer", "tiny:3", "--model", "tiny", "--max-new-tokens", "2"]
    assert main([*told, "How many yetis?"]) == 0
    error = capsys.readouterr().err
    assert "does not know 'How', 'many', 'yetis'; it knows 'Generate a short caption of this image.'" in error
    assert main([*told, "Describe this image."]) == 0
    assert "does not know" not in capsys.readouterr().err
