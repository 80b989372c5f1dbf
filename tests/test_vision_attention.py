"""[CLS] attention against what the model's own eager attention returns."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

import damro.decoding.families.llava as llava_family
from damro import cls_attention
from damro.errors import ParameterError
from damro.vision.query_keys import ClsQueryKeys, cls_weights, record_cls
from tests.golden_cases import FAMILIES, fresh_model, inputs_of, model_of
from tests.stateless import merged_or_mean_weights


def vision_tower(model):
    return model.vision_model if model.config.model_type == "instructblip" else model.model.vision_tower


def tiles(model, inputs):
    """Pixels as the tower reads them; the golden LLaVA-NeXT images fill all their tiles."""
    pixels = inputs["pixel_values"]
    return pixels.flatten(0, 1) if pixels.ndim == 5 else pixels


def hooks_of(model) -> int:
    """Hooks at hand; transformers hangs up its own where hidden states are asked for, so ask first."""
    config = model.config.vision_config
    with torch.no_grad():
        vision_tower(model)(torch.zeros(1, 3, config.image_size, config.image_size), output_hidden_states=True)
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("layer", range(4))
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_eager_attention_of_every_layer(family, layer):
    model, inputs = model_of(family, "eager"), inputs_of(f"{family}_img0")
    with torch.no_grad():
        output = vision_tower(model)(tiles(model, inputs), output_attentions=True)
    heads = output.attentions[layer][:, :, 0, 1:]  # (tiles, heads, patches)
    for name, expected in (("mean", heads.mean(dim=1)), ("max", heads.amax(dim=1))):
        for implementation in ("eager", "sdpa"):
            attention = cls_attention(model_of(family, implementation), inputs, layer=layer, heads=name)
            torch.testing.assert_close(attention.weights, expected, atol=1e-6, rtol=0)
            assert (attention.layer, attention.heads) == (layer, name)


@pytest.mark.parametrize("family", FAMILIES)
def test_default_layer_and_heads_equal_the_formula_from_hidden_states(family):
    model, inputs = model_of(family), inputs_of(f"{family}_batch2")
    attention = cls_attention(model, inputs)
    with torch.no_grad():
        torch.testing.assert_close(attention.weights, merged_or_mean_weights(model, inputs), atol=1e-6, rtol=0)
    assert attention.layer == 2
    assert attention.heads == ("mean" if family == "instructblip" else "merged")
    assert attention.grid == (4, 4)
    assert attention.weights.dtype == torch.float32


@pytest.mark.parametrize("family", FAMILIES)
def test_eager_and_sdpa_agree(family):
    inputs = inputs_of(f"{family}_batch2")
    eager, sdpa = (cls_attention(model_of(family, name), inputs) for name in ("eager", "sdpa"))
    torch.testing.assert_close(eager.weights, sdpa.weights, atol=1e-6, rtol=0)


def test_negative_layers_count_from_the_end():
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    for layer in range(4):
        first, last = cls_attention(model, inputs, layer), cls_attention(model, inputs, layer - 4)
        assert last.layer == layer
        assert torch.equal(first.weights, last.weights)


def test_a_softmax_over_all_tokens_leaves_cls_its_share():
    model, inputs = model_of("llava"), inputs_of("llava_batch2")
    for heads in ("merged", "mean"):
        total = cls_attention(model, inputs, heads=heads).weights.sum(dim=-1)
        assert ((total > 0) & (total < 1)).all()


def test_merged_heads_worked_by_hand():
    # Two heads of width 1; C = 2. [CLS] query (1, 2); keys of [CLS] (0, 0) and of one patch (2, 1).
    # Merged: (1*2 + 2*1) / sqrt(2) = 2.828 against 0. Mean: softmax of 2 and of 2, each against 0.
    recorded = ClsQueryKeys(torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[[0.0], [2.0]], [[0.0], [1.0]]]]))
    assert cls_weights(recorded, "merged")[0].tolist() == pytest.approx([0.05581, 0.94419], abs=1e-5)
    assert cls_weights(recorded, "mean")[0].tolist() == pytest.approx([0.11920, 0.88080], abs=1e-5)
    assert cls_weights(recorded, "max")[0].tolist() == pytest.approx([0.11920, 0.88080], abs=1e-5)


def test_rows_and_tiles_of_a_llava_next_batch():
    inputs = inputs_of("llava_next_batch2")
    attention = cls_attention(model_of("llava_next"), inputs)
    assert attention.row.tolist() == [0] * 5 + [1] * 5
    assert attention.tile.tolist() == [0, 1, 2, 3, 4] * 2


def test_rows_and_tiles_where_images_have_different_numbers_of_tiles():
    """A wide image of two tiles after one of four: the processor pads it with empty tiles, which are not read."""
    square, wide = inputs_of("llava_next_img0"), inputs_of("llava_next_grid1x2")
    empty = torch.zeros(1, 2, 3, 56, 56)
    pixels = torch.cat([square["pixel_values"], torch.cat([wide["pixel_values"], empty], dim=1)])
    columns = square["input_ids"].shape[1]
    padding = torch.zeros(1, columns - wide["input_ids"].shape[1], dtype=torch.long)
    inputs = {
        "pixel_values": pixels,
        "image_sizes": torch.cat([square["image_sizes"], wide["image_sizes"]]),
        "input_ids": torch.cat([square["input_ids"], torch.cat([padding, wide["input_ids"]], dim=1)]),
        "attention_mask": torch.cat([square["attention_mask"], torch.cat([padding, wide["attention_mask"]], dim=1)]),
    }
    model = model_of("llava_next")
    attention = cls_attention(model, inputs)
    assert attention.row.tolist() == [0] * 5 + [1] * 3
    assert attention.tile.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    alone = torch.cat([cls_attention(model, square).weights, cls_attention(model, wide).weights])
    torch.testing.assert_close(attention.weights, alone, atol=1e-6, rtol=0)


def test_several_images_in_a_prompt_belong_to_its_row():
    inputs = inputs_of("llava_batch2")
    first, second = inputs["input_ids"][0], inputs["input_ids"][1][inputs["attention_mask"][1].bool()]
    inputs = {"pixel_values": inputs["pixel_values"], "input_ids": torch.cat([first, second])[None]}
    attention = cls_attention(model_of("llava"), inputs)
    assert attention.row.tolist() == [0, 0]
    assert attention.tile.tolist() == [0, 0]


def test_images_that_are_not_square_have_a_grid_of_their_own():
    """A tower that interpolates reads 42 x 70 pixels as 3 x 5 patches."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    tower = CLIPVisionModel._from_config(config, attn_implementation="eager").eval()
    pixels = torch.randn(1, 3, 42, 70)
    with torch.no_grad(), record_cls(tower, [1]) as recorded:
        output = tower(pixels, interpolate_pos_encoding=True, output_attentions=True)
    weights = cls_weights(recorded[1], "mean")
    torch.testing.assert_close(weights, output.attentions[1].mean(dim=1)[:, 0], atol=1e-6, rtol=0)
    assert weights.shape == (1, 1 + 15)


def test_the_grid_follows_the_pixels(monkeypatch):
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    monkeypatch.setattr(model.model, "get_image_features", interpolating(model))
    monkeypatch.setattr("damro.decoding.families._check_tables", lambda *args: None)  # CLIP as it is cannot do that
    ids = inputs["input_ids"]
    one_less = (ids == 199).nonzero()[0, 1]
    inputs["input_ids"] = torch.cat([ids[:, :one_less], ids[:, one_less + 1 :]], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["pixel_values"] = torch.randn(1, 3, 42, 70)
    attention = cls_attention(model, inputs)
    assert attention.grid == (3, 5)
    assert attention.weights.shape == (1, 15)


def interpolating(model):
    """`get_image_features` as it is, told to interpolate positions."""
    plain = type(model.model).get_image_features
    return lambda pixels, **options: plain(model.model, pixels, interpolate_pos_encoding=True, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_vision_tower_runs_once_and_keeps_no_hook(family):
    model, inputs = model_of(family), inputs_of(f"{family}_batch2")
    before, runs = hooks_of(model), []
    handle = vision_tower(model).register_forward_hook(lambda *_: runs.append(1))
    cls_attention(model, inputs)
    handle.remove()
    assert len(runs) == 1
    assert hooks_of(model) == before


def test_hooks_are_gone_when_the_tower_fails(monkeypatch):
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    before = hooks_of(model)

    def fail(*_):
        assert hooks_of(model) == before + 2
        raise RuntimeError("no memory")

    monkeypatch.setattr(llava_family, "encode", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        cls_attention(model, inputs)
    assert hooks_of(model) == before


def test_hooks_are_gone_when_a_layer_does_not_exist():
    model = model_of("llava")
    before = hooks_of(model)
    with pytest.raises(IndexError), record_cls(vision_tower(model), [0, 9]):
        pass
    assert hooks_of(model) == before


def test_a_tower_that_did_not_run_records_nothing():
    with record_cls(vision_tower(model_of("llava")), [1]) as recorded:
        pass
    assert recorded == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_gives_float32_weights_close_to_the_exact_ones(family, dtype):
    inputs = inputs_of(f"{family}_img0")
    exact = cls_attention(model_of(family), inputs).weights
    rough = cls_attention(fresh_model(family, dtype=dtype), inputs).weights
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, atol=0.02, rtol=0.1)


@pytest.mark.parametrize("layer", [4, -5, 1.5, True, "1"])
def test_a_layer_that_does_not_exist(layer):
    with pytest.raises(ParameterError, match=r"layer must name one of the ViT's 4 layers \(0 to 3.*got"):
        cls_attention(model_of("llava"), inputs_of("llava_img0"), layer=layer)


def test_unknown_heads():
    with pytest.raises(ParameterError, match="heads must be one of merged, mean, max, got 'median'"):
        cls_attention(model_of("llava"), inputs_of("llava_img0"), heads="median")
