"""Bare ViTs against the attention weights that transformers itself returns under eager attention."""

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from damro import cls_attention
from damro.decoding.families import Encoding
from damro.errors import InputsError, NoClsTokenError, ParameterError, UnsupportedModelError
from damro.vision.attention import cls_attentions
from damro.vision.features import patch_features
from damro.vision.query_keys import encoder_layers, record_cls
from damro.vision.vit import encode

SHARED = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 28, "patch_size": 7}
# For each model: its summary tokens before the patches.
MODELS = {
    "clip": (CLIPVisionModel, CLIPVisionConfig(intermediate_size=48, **SHARED), 1),
    "vit": (ViTModel, ViTConfig(intermediate_size=48, **SHARED), 1),
    "deit": (DeiTModel, DeiTConfig(intermediate_size=48, **SHARED), 2),
    "dinov2": (Dinov2Model, Dinov2Config(mlp_ratio=2, **SHARED), 1),
    "registers": (Dinov2WithRegistersModel, Dinov2WithRegistersConfig(mlp_ratio=2, num_register_tokens=3, **SHARED), 4),
}


def make(name: str, attention: str = "eager"):
    torch.manual_seed(0)
    kind, config, extra = MODELS[name]
    model = kind._from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)  # fresh weights are so small that every map would be even
    return model, extra


def pixels(height: int = 28, width: int = 28) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_weights_are_the_row_of_cls(name: str, layer: int) -> None:
    model, extra = make(name)
    found = cls_attention(model, pixels(), layer=layer)
    with torch.no_grad():
        eager = model(**pixels(), output_attentions=True).attentions[layer]  # (images, heads, tokens, tokens)
    assert eager.shape[-1] == extra + 16
    torch.testing.assert_close(found.weights, eager[:, :, 0, extra:].mean(dim=1))
    assert (found.grid, found.layer, found.heads) == ((4, 4), layer, "mean")
    assert found.row.tolist() == [0, 1] and found.tile.tolist() == [0, 0]


@pytest.mark.parametrize("name", MODELS)
def test_last_layer_is_the_default_and_sdpa_gives_the_same(name: str) -> None:
    model, _ = make(name, "sdpa")
    eager, _ = make(name)
    default = cls_attention(model, pixels())
    torch.testing.assert_close(default.weights, cls_attention(eager, pixels(), layer=-1).weights)
    assert default.layer == 2


@pytest.mark.parametrize("name", MODELS)
def test_other_sizes_have_other_grids(name: str) -> None:
    model, extra = make(name)
    found = cls_attention(model, pixels(35, 42), layer=1)
    fixed = name in ("clip", "vit", "deit")
    with torch.no_grad():
        options = {"interpolate_pos_encoding": True} if fixed else {}
        eager = model(**pixels(35, 42), output_attentions=True, **options).attentions[1]
    assert found.grid == (5, 6)
    torch.testing.assert_close(found.weights, eager[:, :, 0, extra:].mean(dim=1))


@pytest.mark.parametrize("name", MODELS)
def test_features_are_the_hidden_states(name: str) -> None:
    model, extra = make(name)
    found = patch_features(model, pixels(), layer=1)
    with torch.no_grad():
        hidden = model(**pixels(), output_hidden_states=True).hidden_states[2]  # the embeddings stand in front
    torch.testing.assert_close(found.patches, hidden[:, extra:])
    torch.testing.assert_close(found.cls, hidden[:, 0])
    assert (found.grid, found.layer, found.patches.shape) == ((4, 4), 1, (2, 16, 24))


def test_heads_are_joined_as_asked() -> None:
    model, extra = make("deit")
    with torch.no_grad():
        rows = model(**pixels(), output_attentions=True).attentions[2][:, :, 0, extra:]
    torch.testing.assert_close(cls_attention(model, pixels(), heads="max").weights, rows.amax(dim=1))


def test_several_layers_take_one_run() -> None:
    model, _ = make("registers")
    runs = []
    handle = model.register_forward_hook(lambda *_: runs.append(1))
    several = cls_attentions(model, pixels(), [2, 0, -1])
    handle.remove()
    assert len(runs) == 1
    assert [found.layer for found in several] == [2, 0, 2]
    torch.testing.assert_close(several[1].weights, cls_attention(model, pixels(), layer=0).weights)


@pytest.mark.parametrize("name", MODELS)
def test_no_hook_stays(name: str) -> None:
    model, _ = make(name)
    cls_attention(model, pixels())
    patch_features(model, pixels())
    with pytest.raises(RuntimeError, match="stop"), record_cls(model, [0]):
        raise RuntimeError("stop")
    assert not any(module._forward_hooks for module in model.modules())


def test_layers_are_found_wherever_they_lie() -> None:
    assert [len(encoder_layers(make(name)[0])) for name in MODELS] == [3] * len(MODELS)


@pytest.mark.parametrize("inputs", [{}, {"pixel_values": torch.zeros(3, 28, 28)}, {"pixel_values": [1]}, None])
def test_inputs_without_images_are_refused(inputs: object) -> None:
    with pytest.raises(InputsError, match="pixel_values of shape"):
        cls_attention(make("vit")[0], inputs)


def test_layer_out_of_range_is_refused() -> None:
    with pytest.raises(ParameterError, match="0 to 2"):
        cls_attention(make("dinov2")[0], pixels(), layer=3)


def test_model_of_another_kind_is_refused() -> None:
    config = SiglipVisionConfig(intermediate_size=48, **SHARED)
    with pytest.raises(UnsupportedModelError, match="siglip_vision_model"):
        cls_attention(SiglipVisionModel(config), pixels())


def test_a_tower_without_cls_has_no_row_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_patch_more(model: object, inputs: dict[str, torch.Tensor]) -> Encoding:
        whole = encode(model, inputs)
        return Encoding(whole.outputs, (), whole.rows, whole.tiles, (1, 17))

    monkeypatch.setattr("damro.vision.vit.encode", one_patch_more)
    with pytest.raises(NoClsTokenError, match="1x17 patches, got 17 tokens"):
        cls_attention(make("vit")[0], pixels())
    with pytest.raises(NoClsTokenError, match="1x17 patches, got 17 tokens"):
        patch_features(make("vit")[0], pixels())
