"""Pruning of videos: every frame by the attention of the tower that reads videos."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from damro.decoding.families import family_of
from damro.errors import UnsupportedModelError
from damro.pruning import Pruning, prune
from damro.vision.features import patch_features
from tests.family_models import FRAMES, PATCHES, VIDEO, Inputs, family_inputs, family_model
from tests.told import generate

NAME = "video_llava_video"
COLUMNS = 1 + PATCHES  # of a frame: [CLS] and its patches
GREEDY: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}


def frames_of(inputs: Inputs) -> Tensor:
    """(videos * frames, 3, H, W)."""
    return inputs["pixel_values_videos"].flatten(0, 1)


@torch.no_grad()
def head_mean(inputs: Inputs, layer: int) -> Tensor:
    """(videos, frames, patches): [CLS] attention as transformers itself returns it under eager attention."""
    tower = family_model(NAME, "eager").model.video_tower
    attention = tower(frames_of(inputs), output_attentions=True).attentions[layer]
    return attention[:, :, 0, 1:].mean(dim=1).view(-1, FRAMES, PATCHES)


@torch.no_grad()
def image_vectors(inputs: Inputs) -> Tensor:
    """(videos, frames, [CLS] and patches, D): what the model itself puts into the columns."""
    features = family_model(NAME).model.get_video_features(pixel_values_videos=inputs["pixel_values_videos"])
    return features.pooler_output.view(-1, FRAMES, COLUMNS, 32)


@pytest.mark.parametrize("keep", [1, 5, PATCHES])
@pytest.mark.parametrize("options", [{}, {"by": "layers", "start_layer": 1}])
def test_each_frame_keeps_its_most_attended_patches_and_its_cls(keep: int, options: dict[str, Any]) -> None:
    model, inputs = family_model(NAME), family_inputs(NAME)
    weights = sum(head_mean(inputs, layer) for layer in ((1, 2) if options else (2,)))
    pruned, vectors = prune(model, inputs, keep, **options), image_vectors(inputs)
    for video in range(2):
        expected = []
        for frame in range(FRAMES):
            best = weights[video, frame].topk(keep).indices.sort().values
            expected.append(vectors[video, frame, [0, *(1 + best).tolist()]])
        found = pruned.inputs_embeds[video, pruned.image_mask[video]]
        torch.testing.assert_close(found, torch.cat(expected))


def test_the_tower_of_images_is_not_asked() -> None:
    """Its weights are others, so a choice made by it would be another one."""
    model, inputs = family_model(NAME), family_inputs(NAME)
    with torch.no_grad():
        of_images = family_model(NAME, "eager").model.image_tower(frames_of(inputs), output_attentions=True)
    theirs = of_images.attentions[2][:, :, 0, 1:].mean(dim=1)
    ours = head_mean(inputs, 2).view(-1, PATCHES)
    assert not torch.equal(theirs.topk(5).indices.sort().values, ours.topk(5).indices.sort().values)
    runs: list[str] = []
    towers = {"images": model.model.image_tower, "videos": model.model.video_tower}
    handles = [tower.register_forward_hook(lambda *_, name=name: runs.append(name)) for name, tower in towers.items()]
    generate(model, inputs, alpha=1.0, beta=0.1, top_k=3, keep_tokens=5, **GREEDY)
    for handle in handles:
        handle.remove()
    assert runs == ["videos"]


@pytest.mark.parametrize("strategy", ["fused", "lazy"])
def test_decoding_reads_the_pruned_prompt(strategy: str) -> None:
    model, inputs = family_model(NAME), family_inputs(NAME)
    prompt = prune(model, inputs, 5)
    stock = model.generate(inputs_embeds=prompt.inputs_embeds, attention_mask=prompt.attention_mask, **GREEDY)
    start = inputs["input_ids"].shape[1]
    plain = generate(model, inputs, method="greedy", keep_tokens=5, strategy=strategy, **GREEDY)
    assert torch.equal(plain[:, start:], stock)
    # alpha 0 with every token plausible is plain decoding over the same prompt
    even = generate(model, inputs, alpha=0.0, beta=1e-30, top_k=3, keep_tokens=5, strategy=strategy, **GREEDY)
    assert torch.equal(even, plain)


def test_questions_about_one_video() -> None:
    model, inputs = family_model(NAME), family_inputs(NAME)
    both = {key: value[:1].repeat(2, *[1] * (value.ndim - 1)) for key, value in inputs.items()}
    both["input_ids"][1, -1] = 9
    options = {"alpha": 1.0, "beta": 0.1, "top_k": 3, "keep_tokens": Pruning(5, "correlation"), **GREEDY}
    shared = generate(model, both, shared_prefix=True, **options)
    assert torch.equal(shared, generate(model, both, strategy="lazy", **options))


def test_features_are_those_of_the_tower_of_videos() -> None:
    model, inputs = family_model(NAME), family_inputs(NAME)
    layer = family_of(model).feature_layer(model, reference=True)
    with torch.no_grad():
        hidden = model.model.video_tower(frames_of(inputs), output_hidden_states=True).hidden_states[layer + 1]
    found = patch_features(model, inputs)
    torch.testing.assert_close(found.patches, hidden[:, 1:])
    torch.testing.assert_close(found.cls, hidden[:, 0])
    assert found.row.tolist() == [0] * FRAMES + [1] * FRAMES
    assert found.tile.tolist() == [*range(FRAMES)] * 2


@pytest.mark.parametrize("images", [True, False])
def test_videos_of_a_family_that_reads_images_are_refused(images: bool) -> None:
    model, inputs = family_model("llava_onevision"), family_inputs("llava_onevision")
    inputs["pixel_values_videos"] = torch.zeros(1, FRAMES, 3, 56, 56)
    inputs["input_ids"][:, -1] = VIDEO
    if not images:
        del inputs["pixel_values"], inputs["image_sizes"]
    message = "no videos unless the model is of video_llava, got 'pixel_values_videos' for llava_onevision; pass frames"
    with pytest.raises(UnsupportedModelError, match=message):
        prune(model, inputs, 3)
    with pytest.raises(UnsupportedModelError, match=message):
        generate(model, inputs, method="greedy", **GREEDY)
