"""Attention of the further families against eager weights; without [CLS] what patches receive stands in its place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from damro import CLSAttention, DAMROProcessor, cls_attention, find_outliers, outlier_view, patch_features
from damro.decoding.families import family_of
from damro.errors import NoClsTokenError
from damro.inspection import inspect_vit
from damro.inspection.layout import encode_with_views
from tests.family_models import FRAMES, MORE_FAMILIES, PATCHES, Inputs, family_inputs, family_model

WITHOUT_CLS = ("llava_onevision", "llava_siglip", "paligemma")
QUERIED = ("blip-2", "instructblipvideo")
"""Families whose columns are no patches."""
EVERY_FAMILY = pytest.mark.parametrize("name", MORE_FAMILIES)


def tiles_of(name: str, inputs: Inputs) -> Tensor:
    """The images as the ViT reads them, one after the other."""
    if name == "llava_onevision":  # three tiles of either image; the rest is padding
        return torch.cat([image[:3] for image in inputs["pixel_values"]])
    [pixels] = [value for key, value in inputs.items() if key.startswith("pixel_values")]
    return pixels.reshape(-1, 3, 56, 56)


@torch.no_grad()
def eager(name: str, layer: int) -> Tensor:
    """`(tiles, heads, tokens, tokens)`, as the ViT itself returns it."""
    model, inputs = family_model(name, "eager"), family_inputs(name)
    tower: Any = family_of(model).vision_tower(model, inputs)
    weights: Tensor = tower(tiles_of(name, inputs), output_attentions=True).attentions[layer]
    return weights


def by_hand(weights: Tensor, heads: str, source: str) -> Tensor:
    rows = weights[:, :, 0, 1:] if source == "cls" else weights.mean(dim=2)
    return rows.mean(dim=1) if heads == "mean" else rows.amax(dim=1)


@EVERY_FAMILY
@pytest.mark.parametrize("heads", ["mean", "max"])
@pytest.mark.parametrize("layer", [0, 2, -1])
def test_weights_are_those_of_eager_attention(name: str, heads: Any, layer: int) -> None:
    model, inputs = family_model(name), family_inputs(name)
    source: Any = "received" if name in WITHOUT_CLS else "cls"
    attention = cls_attention(model, inputs, layer, heads, source=source)
    torch.testing.assert_close(attention.weights, by_hand(eager(name, layer), heads, source), atol=1e-6, rtol=1e-4)
    assert attention.source == source
    assert attention.layer == layer % 4


@torch.no_grad()
def merged_by_hand(name: str, number: int) -> Tensor:
    """From the layer's own input and projections: softmax over all heads' sum, mean over the queries."""
    model, inputs = family_model(name), family_inputs(name)
    tower = model.model.vision_tower
    layer = tower.encoder.layers[number]
    hidden = tower(tiles_of(name, inputs), output_hidden_states=True).hidden_states[number]
    normed = layer.layer_norm1(hidden)
    queries, keys = layer.self_attn.q_proj(normed), layer.self_attn.k_proj(normed)
    return torch.softmax(queries @ keys.transpose(1, 2) * 24**-0.5, dim=-1).mean(dim=1)


def test_heads_that_are_treated_as_one() -> None:
    attention = cls_attention(family_model("llava_siglip"), family_inputs("llava_siglip"), 1, "merged", "received")
    torch.testing.assert_close(attention.weights, merged_by_hand("llava_siglip", 1), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", WITHOUT_CLS)
def test_what_patches_receive_is_a_share(name: str) -> None:
    attention = cls_attention(family_model(name), family_inputs(name), source="received")
    torch.testing.assert_close(attention.weights.sum(-1), torch.ones(len(attention.weights)))
    assert attention.weights.shape[1] == PATCHES


@EVERY_FAMILY
def test_what_there_is_is_read_unless_another_is_asked_for(name: str) -> None:
    model, inputs = family_model(name), family_inputs(name)
    source: Any = "received" if name in WITHOUT_CLS else "cls"
    by_itself, asked = (cls_attention(model, inputs, source=one) for one in (None, source))
    assert by_itself.source == source and torch.equal(by_itself.weights, asked.weights)


@pytest.mark.parametrize("name", WITHOUT_CLS)
@torch.no_grad()
def test_maps_of_all_layers_are_those_of_eager_attention(name: str) -> None:
    seen = inspect_vit(family_model(name), family_inputs(name))
    assert (seen.source, seen.layers, seen.grid) == ("received", (0, 1, 2, 3), (4, 4))
    for layer in range(4):
        by_head = eager(name, layer).mean(dim=2).transpose(0, 1)  # (heads, tiles, patches)
        torch.testing.assert_close(seen.per_head[layer], by_head, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(seen.merged[layer], merged_by_hand(name, layer), atol=1e-6, rtol=1e-4)
    assert seen.to_json()["source"] == "received"


@EVERY_FAMILY
def test_patches_that_are_marked_are_those_damro_chooses(name: str) -> None:
    model, inputs = family_model(name), family_inputs(name)
    contrast = DAMROProcessor(model, inputs, alpha=1.0, beta=0.1, top_k=3)
    seen = inspect_vit(model, inputs, layers=[-1], top_k=3)
    assert (seen.source, seen.layer) == (contrast.attention.source, contrast.attention.layer)
    assert torch.equal(seen.outliers.indices, contrast.outliers)
    torch.testing.assert_close(seen.weights, contrast.attention.weights)
    # LLaVA's 10 where the paper has no preset.
    assert set(inspect_vit(model, inputs, layers=[-1]).outliers.count.tolist()) == {10}


@torch.no_grad()
def test_tiles_of_llava_onevision_are_joined_as_the_model_packs_them() -> None:
    model, inputs = family_model("llava_onevision"), family_inputs("llava_onevision")
    stitched = inspect_vit(model, inputs, layers=[-1]).stitched
    weights = torch.split(eager("llava_onevision", 3).mean(dim=(1, 2)), [3, 3])
    for image, (size, shape) in enumerate(zip(inputs["image_sizes"], [(4, 8), (4, 4)], strict=True)):
        # The model's own packing, of weights instead of features, with -1 for newlines.
        [packed], _ = model.model.pack_image_features(
            [weights[image][..., None]], size[None], image_newline=torch.tensor([-1.0])
        )
        lines = packed[PATCHES:, 0].view(shape[0], shape[1] + 1)
        assert (lines[:, -1] == -1).all()
        torch.testing.assert_close(stitched[image], lines[:, :-1], atol=1e-6, rtol=1e-4)


def test_frames_are_not_joined() -> None:
    model, inputs = family_model("video_llava_video"), family_inputs("video_llava_video")
    seen = inspect_vit(model, inputs, layers=[-1])
    assert seen.stitched == (None, None) and len(seen.weights) == 2 * FRAMES


@pytest.mark.parametrize("name", WITHOUT_CLS)
@torch.no_grad()
def test_rules_of_features_that_need_no_cls(name: str) -> None:
    model, inputs = family_model(name), family_inputs(name)
    hidden = model.model.vision_tower(tiles_of(name, inputs), output_hidden_states=True).hidden_states[2]
    features = patch_features(model, inputs, layer=1)
    assert features.cls is None
    torch.testing.assert_close(features.patches, hidden)
    for rule in ("norm", "redundancy"):
        found = find_outliers(cls_attention(model, inputs, 1, source=None), rule=rule, features=features, top_k=5)
        seen = inspect_vit(model, inputs, layer=1, rule=rule, top_k=5)
        assert torch.equal(seen.outliers.indices, found.indices)
    with pytest.raises(
        NoClsTokenError, match="rule 'cosine' .* got features of a ViT without; 'norm' and 'redundancy'"
    ):
        inspect_vit(model, inputs, rule="cosine")


@EVERY_FAMILY
def test_outliers_are_the_patches_with_most_attention(name: str) -> None:
    model, inputs = family_model(name), family_inputs(name)
    view = outlier_view(model, inputs, alpha=1.0, beta=0.1, top_k=3)
    # Of the layer whose output (or, of several, the deepest of whose outputs) the features are.
    layer = {"vipllava": 2, "video_llava": 2, "video_llava_video": 2}.get(name, 3)
    source = "received" if name in WITHOUT_CLS else "cls"
    assert (view.attention.layer, view.attention.source) == (layer, source)
    if view.attention.heads == "mean":
        expected = by_hand(eager(name, layer), "mean", source).topk(3).indices
        assert torch.equal(view.outliers, expected)
    assert torch.equal(view.outliers, view.attention.weights.topk(3).indices)
    assert torch.equal(DAMROProcessor(model, inputs, alpha=1.0, beta=0.1, top_k=3).outliers, view.outliers)


def test_frames_of_a_video_are_tiles() -> None:
    attention: CLSAttention = cls_attention(family_model("video_llava_video"), family_inputs("video_llava_video"))
    assert attention.row.tolist() == [0] * FRAMES + [1] * FRAMES
    assert attention.tile.tolist() == [*range(FRAMES)] * 2


@pytest.mark.parametrize("name", [name for name in MORE_FAMILIES if name not in QUERIED])
@torch.no_grad()
def test_views_of_images_hold_the_columns_of_their_patches(name: str) -> None:
    model, inputs = family_model(name), family_inputs(name)
    one = {key: value[:1] for key, value in inputs.items()}
    encoding, views = encode_with_views(model, one)
    assert [view.name for view in views] == (["frame 0", "frame 1", "frame 2"] if "_video" in name else ["image"])
    for frame, view in enumerate(views):
        first = frame * (1 + PATCHES) + 1 if "_video" in name else 0
        assert view.columns.tolist() == list(range(first, first + PATCHES))
        assert view.grid == encoding.grid == (4, 4)


def test_images_and_videos_have_a_vit_each() -> None:
    model = family_model("video_llava")
    family = family_of(model)
    towers = [family.vision_tower(model, family_inputs(name)) for name in ("video_llava", "video_llava_video")]
    assert towers == [model.model.image_tower, model.model.video_tower]
