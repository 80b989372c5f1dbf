"""LLaVA-NeXT-Video, asked about images: cut into tiles and packed as in LLaVA-NeXT, whose module serves it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

import damro
from damro.errors import UnsupportedModelError
from tests.family_models import Inputs, family_inputs
from tests.llava_models import IMAGE, TEXT, VIT
from tests.stateless import StatelessDAMRO
from tests.told import generate

STRENGTHS: dict[str, Any] = {"alpha": 2.0, "beta": 0.1, "top_k": 4}
GREEDY: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "suppress_tokens": [IMAGE, 198]}


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = LlavaNextVideoConfig(
        vision_config=VIT, text_config=TEXT, image_token_index=IMAGE, video_token_index=198, vision_feature_layer=-2,
        vision_feature_select_strategy="default", image_grid_pinpoints=[[56, 112], [112, 56], [112, 112]],
        spatial_pool_stride=2,
    )  # fmt: skip
    made = LlavaNextVideoForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1 or parameter.std() == 0 or parameter.shape == (32,):
                parameter.add_(0.25 * torch.randn(parameter.shape))
    return made


def inputs() -> Inputs:
    """One image of two tiles, one that leaves half of them empty; a base tile each."""
    tiled = family_inputs("llava_onevision")
    return {**tiled, "pixel_values": tiled["pixel_values"][:, :3]}


def test_tokens_are_those_of_prompts_read_anew(model: Any) -> None:
    rule = StatelessDAMRO(model, inputs(), **STRENGTHS)
    expected = model.generate(**inputs(), logits_processor=[rule], **GREEDY)
    assert not torch.equal(expected, model.generate(**inputs(), **GREEDY))
    processor = damro.DAMROProcessor(model, inputs(), **STRENGTHS)
    assert torch.equal(model.generate(**inputs(), logits_processor=processor, **GREEDY), expected)
    for strategy in ("lazy", "fused"):
        assert torch.equal(generate(model, inputs(), strategy=strategy, **STRENGTHS, **GREEDY), expected)


def test_videos_are_refused(model: Any) -> None:
    told = inputs() | {"pixel_values_videos": torch.zeros(2, 3, 3, 56, 56)}
    with pytest.raises(UnsupportedModelError, match="no videos unless the model is of video_llava"):
        damro.DAMROProcessor(model, told, **STRENGTHS)
