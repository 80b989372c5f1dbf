from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_models import FAMILIES, load_golden, make_processor, save_golden
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from damro import tiny
from damro.errors import InputsError, ParameterError, UnsupportedModelError
from damro.loading import ModelLoadError, load_model, prepare_inputs
from damro.vision.dinov2_small import MissingExtraError
from damro.vision.vit import is_bare_vit


def picture(width: int = 80, height: int = 60) -> Image.Image:
    pixels = np.random.default_rng(3).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, save_golden(request.param, tmp_path_factory.mktemp(request.param))


def test_loads_a_folder_and_generates_from_a_batch_of_prompts(saved: tuple[str, Path]) -> None:
    family, folder = saved
    model, processor = load_model(folder, device="cpu", dtype="float32")
    assert model.config.model_type == family and not model.training
    inputs = prepare_inputs(processor, [picture()] * 2, ["What is this?", "What"], model)
    assert bool(inputs["attention_mask"][:, -1].all())
    tokens = model.generate(**inputs, max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert tokens.shape[0] == 2
    # A row must not depend on the padding that its neighbour caused. (InstructBLIP's processor puts the padding
    # between image and text, and its Q-Former reads the text too: its rows agree as well.)
    alone = prepare_inputs(processor, [picture()], ["What"], model)
    single = model.generate(**alone, max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert single[0, -3:].tolist() == tokens[1, -3:].tolist()


def test_dtype_and_processor_fields_that_old_checkpoints_lack(tmp_path: Path) -> None:
    save_golden("llava", tmp_path)
    bare = make_processor("llava")
    bare.patch_size = bare.vision_feature_select_strategy = None
    bare.num_additional_image_tokens = 0
    bare.save_pretrained(tmp_path)
    model, processor = load_model(tmp_path, device="cpu", dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    assert (processor.patch_size, processor.vision_feature_select_strategy) == (14, "default")
    inputs = prepare_inputs(processor, [picture()], ["What"], model)
    assert inputs["pixel_values"].dtype == torch.bfloat16
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 16


def test_the_word_tiny_takes_the_embedded_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = load_golden("llava").train(), make_processor("llava")
    asked: list[str] = []
    monkeypatch.setattr("damro.tiny.load", lambda family: asked.append(family) or (model, processor))
    loaded = load_model("tiny", device="cpu")
    assert loaded.model is model and not model.training
    load_model("tiny:llava_next", device="cpu")
    assert asked == ["llava", "llava_next"]
    assert loaded.processor.tokenizer.padding_side == "left"


def test_what_is_no_model_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="model must be .* got '.*absent'.*'tiny' needs no download"):
        load_model(tmp_path / "absent")
    with pytest.raises(ParameterError, match="dtype must be one of auto, float32, .* got 'int7'"):
        load_model("tiny", dtype="int7")
    with pytest.raises(ModelLoadError, match="model must be one of tiny:llava, .* got 'tiny:huge'"):
        load_model("tiny:huge")


def changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """A golden checkpoint after a change to its weights."""
    save_golden("llava", folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


HEAD, NORM = "lm_head.weight", "model.language_model.norm.weight"
SAVED = {HEAD: "language_model.lm_head.weight", NORM: "language_model.model.norm.weight"}  # as files have it


def test_a_checkpoint_without_all_its_weights_is_refused(tmp_path: Path) -> None:
    folder = changed(tmp_path / "one", lambda weights: [weights.pop(SAVED[name]) for name in (HEAD, NORM)])
    with pytest.raises(ModelLoadError, match=rf"every weight, got '.*one' with 2 .*: {HEAD} \(missing\), {NORM} \(m"):
        load_model(folder, device="cpu")
    foreign = changed(tmp_path / "foreign", lambda weights: (weights.clear(), weights.update(other=torch.ones(2))))
    with pytest.raises(ModelLoadError, match=r"with \d\d+ missing or mismatched: .* \(missing\), \.\.\.; give"):
        load_model(foreign, device="cpu")
    narrow = changed(tmp_path / "narrow", lambda weights: weights.update({SAVED[NORM]: torch.ones(3)}))
    with pytest.raises(ModelLoadError, match=rf"with 1 .*: {NORM} \(of shape \(3,\), must be \(\d+,\)\); give"):
        load_model(narrow, device="cpu")


def test_weights_that_are_tied_are_not_missing() -> None:
    for family in ("llava", "llava_next", "instructblip"):
        saved = load_file(tiny.path(family) / "model.safetensors")
        assert not any(key.endswith(HEAD) for key in saved)
        assert load_model(tiny.path(family), device="cpu").model.config.model_type == family


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_checkpoint_with_a_weight_that_is_no_number_is_refused(tmp_path: Path, value: float) -> None:
    folder = changed(tmp_path, lambda weights: weights[SAVED[HEAD]].view(-1)[7].fill_(value))
    with pytest.raises(
        ModelLoadError, match=rf"must have finite weights, got NaN or infinity in 1 of '.*': {HEAD}; copy"
    ):
        load_model(folder, device="cpu")


def test_a_weight_that_overflows_in_the_dtype_asked_for_is_refused(tmp_path: Path) -> None:
    folder = changed(tmp_path, lambda weights: weights[SAVED[HEAD]].view(-1)[7].fill_(1e6))
    assert load_model(folder, device="cpu", dtype="float32")
    with pytest.raises(ModelLoadError, match="finite weights.* or load it with dtype='float32'"):
        load_model(folder, device="cpu", dtype="float16")


def test_a_broken_weight_of_the_embedded_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny.load()
    with torch.no_grad():
        model.get_input_embeddings().weight[3, 5] = math.nan
    monkeypatch.setattr("damro.tiny.load", lambda family: (model, processor))
    with pytest.raises(ModelLoadError, match="infinity in 1 of 'tiny'"):
        load_model("tiny", device="cpu")


def test_a_vit_may_lack_what_attention_does_not_read(tmp_path: Path) -> None:
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    size = {"image_size": 28, "patch_size": 14}
    ViTForImageClassification(ViTConfig(**small, **size)).save_pretrained(tmp_path / "vit")  # it has no pooler
    Dinov2Model(Dinov2Config(**small, **size, use_mask_token=False)).save_pretrained(tmp_path / "dino")
    config = json.loads((tmp_path / "dino" / "config.json").read_text())
    (tmp_path / "dino" / "config.json").write_text(json.dumps({**config, "use_mask_token": True}))
    CLIPModel(CLIPConfig(text_config={**small, "vocab_size": 9}, vision_config=small | size)).save_pretrained(
        tmp_path / "clip"
    )
    for name in ("vit", "dino", "clip"):
        CLIPImageProcessorPil().save_pretrained(tmp_path / name)
        assert is_bare_vit(load_model(tmp_path / name, device="cpu").model)
    file = tmp_path / "vit" / "model.safetensors"
    weights = load_file(file)
    del weights["vit.embeddings.cls_token"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"with 1 missing or mismatched: embeddings.cls_token \(missing\);"):
        load_model(tmp_path / "vit", device="cpu")


def test_no_memory_is_taken_for_weights_that_there_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_golden("llava", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "text_config": None}))  # then it is LLaMA 7B's

    def load(*_: object, **__: object) -> None:
        raise AssertionError("weights were to be made")

    monkeypatch.setattr("transformers.AutoModelForImageTextToText.from_pretrained", load)
    with pytest.raises(
        ModelLoadError, match=r"config.json describes 6,755.6 million weights, the files .* have 1.3 MB"
    ):
        load_model(folder, device="cpu")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "processor_config.json"])
def test_a_damaged_file_is_a_load_error(tmp_path: Path, name: str) -> None:
    save_golden("llava", tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(
        ModelLoadError, match="model must be a folder or a Hub name that transformers can load, got .*: .+"
    ):
        load_model(tmp_path, device="cpu")


def test_a_model_of_another_family_is_refused(tmp_path: Path) -> None:
    from transformers import BlipConfig, BlipForConditionalGeneration

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**small, "image_size": 28, "patch_size": 14}
    config = BlipConfig(vision_config=vision, text_config={**small, "vocab_size": 200, "encoder_hidden_size": 16})
    BlipForConditionalGeneration(config).save_pretrained(tmp_path)
    make_processor("llava").save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="model must be of a supported family"):
        load_model(tmp_path)


def test_a_template_that_writes_the_first_token_gets_no_second_one() -> None:
    processor = make_processor("llava")
    processor.chat_template = "<s>USER: <image> {{ messages[0].content[1].text }} ASSISTANT:"
    ids = prepare_inputs(processor, [picture()], ["What is"])["input_ids"]
    assert ids[0, :2].tolist() == [1, processor.tokenizer.convert_tokens_to_ids("▁USER:")]


def test_numbers_of_images_and_prompts_must_agree() -> None:
    processor = make_processor("llava")
    with pytest.raises(InputsError, match="same number, at least one, got 1 and 2"):
        prepare_inputs(processor, [picture()], ["a", "b"])
    with pytest.raises(InputsError, match="at least one, got 0 and 0"):
        prepare_inputs(processor, [], [])


def test_quantization_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ParameterError, match="quantization must be one of 4bit, 8bit"):
        load_model("somewhere", quantization="2bit")
    with pytest.raises(ParameterError, match="not embedded"):
        load_model("tiny", quantization="4bit")
    monkeypatch.setattr("damro.loading.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="bitsandbytes"):
        load_model("somewhere", quantization="4bit")
