from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_models import FAMILIES, load_golden, make_processor, save_golden
from PIL import Image

from damro.errors import InputsError, ParameterError, UnsupportedModelError
from damro.loading import ModelLoadError, load_model, prepare_inputs
from damro.vision.dinov2_small import MissingExtraError


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
    stub = types.ModuleType("damro.tiny")
    model, processor = load_golden("llava").train(), make_processor("llava")
    stub.load = lambda: (model, processor)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "damro.tiny", stub)
    monkeypatch.setattr("damro.tiny", stub, raising=False)
    loaded = load_model("tiny", device="cpu")
    assert loaded.model is model and not model.training
    assert loaded.processor.tokenizer.padding_side == "left"


def test_what_is_no_model_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="model must be .* got '.*absent'.*'tiny' needs no download"):
        load_model(tmp_path / "absent")
    with pytest.raises(ParameterError, match="dtype must be one of auto, float32, .* got 'int7'"):
        load_model("tiny", dtype="int7")


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
