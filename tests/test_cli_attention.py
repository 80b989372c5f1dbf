from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from golden_models import FAMILIES, save_golden
from PIL import Image

import damro.figures
from damro import cls_attention, find_outliers
from damro.cli import main
from damro.loading import load_image, load_model, prepare_inputs


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.effect_mandelbrot((80, 60), (-2, -1.5, 1, 1.5), 20).convert("RGB").save(path)
    return path


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_golden("llava", tmp_path_factory.mktemp("llava"))


@pytest.mark.parametrize("family", FAMILIES)
def test_json_holds_what_the_functions_return(
    family: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_golden(family, tmp_path)
    assert main(["attention", str(photo), "--model", str(folder), "--device", "cpu", "--top-k", "3", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    model, processor = load_model(folder, device="cpu")
    inputs = prepare_inputs(processor, [load_image(photo)], ["Describe the image."], model)
    attention = cls_attention(model, inputs)
    found = find_outliers(attention, top_k=3)
    torch.testing.assert_close(torch.tensor(shown["weights"]), attention.weights, atol=1e-6, rtol=0)
    assert (shown["layer"], shown["heads"], tuple(shown["grid"])) == (attention.layer, attention.heads, (4, 4))
    assert (shown["row"], shown["tile"]) == (attention.row.tolist(), attention.tile.tolist())
    assert shown["outliers"]["indices"] == found.indices.tolist()
    assert shown["outliers"]["positions"] == [[[i // 4, i % 4] for i in row] for row in found.indices.tolist()]
    # Share and entropy from the printed weights alone.
    weights = [value / sum(shown["weights"][0]) for value in shown["weights"][0]]
    assert shown["outliers"]["share"][0] == pytest.approx(sum(sorted(weights)[-3:]), abs=1e-5)
    assert shown["outliers"]["entropy"][0] == pytest.approx(-sum(w * math.log(w) for w in weights), abs=1e-5)


def test_layer_heads_and_rule_are_passed_on(photo: Path, llava: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--layer", "0", "--heads", "max", "--rule", "mad", "--json"]
    assert main(["attention", str(photo), "--model", str(llava), *options]) == 0
    shown = json.loads(capsys.readouterr().out)
    model, processor = load_model(llava)
    inputs = prepare_inputs(processor, [load_image(photo)], ["Describe the image."], model)
    found = find_outliers(cls_attention(model, inputs, layer=0, heads="max"), rule="mad")
    assert (shown["layer"], shown["heads"], shown["rule"]) == (0, "max", "mad")
    assert shown["outliers"]["count"] == found.count.tolist()


def test_a_prompt_adds_one_map_a_word(
    photo: Path, llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(damro.figures, "save_figure", lambda figure, path: drawn.append(figure))
    options = ["--prompt", "What is this?", "--max-new-tokens", "4", "--json", "--out", str(tmp_path / "a.png")]
    assert main(["attention", str(photo), "--model", str(llava), *options]) == 0
    shown = json.loads(capsys.readouterr().out)
    words = [word["text"] for word in shown["words"]]
    assert shown["answer"] == " ".join(words) and len(words) == 4
    assert torch.tensor([word["map"] for word in shown["words"]]).shape == (4, 4, 4)
    assert [axes.get_title() for axes in drawn[0].axes[:4]] == words


def test_a_picture_is_written_and_the_outliers_are_told(
    photo: Path, llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "map.svg"
    assert main(["attention", str(photo), "--model", str(llava), "--top-k", "2", "--out", str(target)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("[CLS] of layer 2, heads merged, 4 x 4 patches a tile")
    assert lines[1].startswith("tile 0: 2 patches hold ") and lines[1].count("(") == 2
    assert target.read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (["--layer", "4"], "layer must name one of the ViT's 4 layers"),
        (["--top-k", "0"], "top_k must be a whole number from 1 to the 16 patches"),
        (["--out", "map.bmp"], "file must end in .png, .svg or .pdf"),
        (["--out", "no/such/folder/map.png"], "no/such/folder"),
    ],
)
def test_bad_options_are_named(
    change: list[str], reason: str, photo: Path, llava: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["attention", str(photo), "--model", str(llava), *change]) == 2
    assert reason in capsys.readouterr().err


def test_without_matplotlib_the_extra_is_named(
    photo: Path, llava: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(__import__("sys").modules, "damro.figures")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.axes", None)
    assert main(["attention", str(photo), "--model", str(llava), "--out", "map.png"]) == 2
    assert "pip install 'damro[figures]'" in capsys.readouterr().err
