"""What a family module says of a model, against the model itself."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from damro.decoding.errors import InputsError, UnsupportedModelError
from damro.decoding.families import FAMILIES, family_of
from damro.decoding.families.base import attention_mask_of, clip_feature_layer, rows_of_images
from damro.decoding.families.generic import support
from damro.speed.shapes import SHAPES, random_model
from tests.family_models import MORE_FAMILIES, family_model
from tests.golden_cases import FAMILIES as NAMES
from tests.golden_cases import inputs_of, model_of

EVERY_FAMILY = pytest.mark.parametrize("name", NAMES)


def test_there_is_a_module_for_each_supported_model():
    more = {family_model(name).config.model_type for name in MORE_FAMILIES}
    assert set(FAMILIES) == set(NAMES) | more | {"llava_next_video"}  # see tests/test_families_llava_next_video.py
    for name in NAMES:
        assert family_of(model_of(name)) is FAMILIES[name]


@EVERY_FAMILY
@torch.no_grad()
def test_the_full_prompt_is_what_the_model_reads(name):
    """Embeds and mask, given to the bare decoder, give the model's own logits."""
    model, inputs, family = model_of(name), inputs_of(f"{name}_batch2"), FAMILIES[name]
    prompt = family.full_prompt(model, inputs, family.encode(model, inputs))
    assert torch.equal(prompt.image_mask, inputs["input_ids"] == 199)
    ours = family.decoder(model)(
        inputs_embeds=prompt.inputs_embeds,
        attention_mask=prompt.attention_mask,
        position_ids=prompt.position_ids,
        logits_to_keep=1,
    ).logits[:, -1]
    theirs = model.generate(
        **inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
    ).logits[0]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@EVERY_FAMILY
@torch.no_grad()
def test_every_patch_in_image_order_is_the_full_prompt(name):
    """InstructBLIP's Q-Former reads [CLS] too, so there it is patch -1."""
    model, inputs, family = model_of(name), inputs_of(f"{name}_batch2"), FAMILIES[name]
    encoding = family.encode(model, inputs)
    full = family.full_prompt(model, inputs, encoding)
    tiles = sum(encoding.tiles)
    first = -1 if name == "instructblip" else 0
    negative = family.prompt_of_patches(model, inputs, encoding, torch.arange(first, 16).expand(tiles, -1))
    if name == "llava_next":  # the base tile and one newline
        assert [int(row.sum()) for row in negative.image_mask] == [17, 17]
        image = full.inputs_embeds[0][full.image_mask[0]]
        expected = torch.cat([image[:16], model.model.image_newline[None]])
        torch.testing.assert_close(negative.inputs_embeds[0][negative.image_mask[0]], expected)
        return
    read = full.attention_mask.bool()
    assert torch.equal(negative.attention_mask.bool(), read)
    torch.testing.assert_close(negative.inputs_embeds[read], full.inputs_embeds[read], atol=1e-5, rtol=0)


@torch.no_grad()
def test_llava_next_without_a_grid_ends_in_a_newline_too():
    """The last column of an image is a newline however the image was cut."""
    for name in ("llava_next_img0", "llava_next_batch2", "llava_next_grid1x2"):
        model, inputs, family = model_of("llava_next"), inputs_of(name), FAMILIES["llava_next"]
        for feature in family.encode(model, inputs).features:
            torch.testing.assert_close(feature[-1], model.model.image_newline)


@EVERY_FAMILY
def test_patches_keep_the_order_they_are_given_in(name):
    model, inputs, family = model_of(name), inputs_of(f"{name}_img0"), FAMILIES[name]
    with torch.no_grad():
        encoding = family.encode(model, inputs)
        tiles = sum(encoding.tiles)
        prompt = family.prompt_of_patches(model, inputs, encoding, torch.tensor([[7, 2, 11]]).expand(tiles, -1))
    if name == "instructblip":
        assert int(prompt.image_mask.sum()) == 6  # always the queries
        return
    columns = prompt.inputs_embeds[prompt.image_mask][:3]
    torch.testing.assert_close(columns, encoding.features[0][[7, 2, 11]])


@pytest.mark.parametrize(
    ("chosen", "layer"),
    [(-1, 3), (-2, 2), (-4, 0), (1, 0), (4, 3), ([-2, -3], 2), ([-4, 2, 3], 2)],
)
def test_the_layer_that_produces_the_features(chosen, layer):
    config = SimpleNamespace(vision_config=SimpleNamespace(num_hidden_layers=4), vision_feature_layer=chosen)
    assert clip_feature_layer(SimpleNamespace(config=config)) == layer


@pytest.mark.parametrize("chosen", [0, -5, 5])
def test_features_that_no_layer_produces(chosen):
    config = SimpleNamespace(vision_config=SimpleNamespace(num_hidden_layers=4), vision_feature_layer=chosen)
    with pytest.raises(InputsError, match=f"one of the ViT's 4 layers, got {chosen}"):
        clip_feature_layer(SimpleNamespace(config=config))


def model_with(**generation) -> SimpleNamespace:
    defaults = {"pad_token_id": None, "eos_token_id": None}
    return SimpleNamespace(
        config=SimpleNamespace(image_token_id=9), generation_config=SimpleNamespace(**defaults | generation)
    )


@pytest.mark.parametrize(
    ("generation", "mask"),
    [
        ({"pad_token_id": 0}, [0, 0, 1, 1]),
        ({"pad_token_id": 0, "eos_token_id": 2}, [0, 0, 1, 1]),
        ({"pad_token_id": 0, "eos_token_id": [2, 3]}, [0, 0, 1, 1]),
        ({"pad_token_id": 5}, [1, 1, 1, 1]),
        ({}, [1, 1, 1, 1]),
        ({"pad_token_id": 0, "eos_token_id": 0}, [1, 1, 1, 1]),
        ({"pad_token_id": 0, "eos_token_id": [2, 0]}, [1, 1, 1, 1]),
    ],
)
def test_a_missing_mask_is_inferred_as_generate_does(generation, mask):
    assert attention_mask_of(model_with(**generation), {"input_ids": torch.tensor([[0, 0, 9, 4]])}).tolist() == [mask]


def features(*columns: int) -> list[torch.Tensor]:
    return [torch.zeros(count, 2) for count in columns]


def rows(ids: list[list[int]], *columns: int) -> tuple[int, ...]:
    return rows_of_images(model_with(), {"input_ids": torch.tensor(ids)}, features(*columns))


def test_rows_of_images_follow_from_the_numbers_of_columns():
    assert rows([[1, 9, 9, 4, 9, 9], [1, 4, 4, 4, 9, 9]], 2, 2, 2) == (0, 0, 1)
    assert rows([[1, 1, 9, 9, 9], [9, 9, 9, 9, 9]], 3, 4, 1) == (0, 1, 1)
    assert rows([[1, 4, 4], [1, 9, 9]], 2) == (1,)
    assert rows([[1, 9, 9, 9, 9]], 2, 2) == (0, 0)


def test_images_that_do_not_fit_the_rows():
    with pytest.raises(InputsError, match="no room for the 3 columns of image 1"):
        rows([[9, 9, 9, 1], [9, 9, 4, 1]], 3, 3)
    with pytest.raises(InputsError, match="got 2 tokens without an image"):
        rows([[9, 9], [9, 9]], 2)
    with pytest.raises(InputsError, match="no room for the 2 columns of image 2"):
        rows([[9, 9], [9, 9]], 2, 2, 2)


def test_before_5_20_models_without_a_module_are_refused_by_name(monkeypatch):
    """As the models of transformers 5.19 take no image features that are computed already."""
    monkeypatch.setattr(support, "older_than", lambda version: version == "5.20")
    sentence = "needs transformers 5.20 or newer; pip install 'transformers>=5.20'"
    assert support.why_not(Qwen2_5_VLForConditionalGeneration) == sentence
    model = random_model(SHAPES["micro-qwen2.5-vl"], device="meta")
    with pytest.raises(UnsupportedModelError, match=f"got model_type 'qwen2_5_vl', which {re.escape(sentence)}"):
        family_of(model)
    assert family_of(model_of("llava")) is FAMILIES["llava"]  # has a module
