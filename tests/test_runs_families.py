"""The engine of runs with families that have no preset, and names of their own for pixels."""

from __future__ import annotations

from typing import Any

import pytest
from golden_models import word_tokenizer
from transformers import BatchFeature, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from damro.eval.runs.engine import make_engine
from damro.eval.samples import Sample, open_scene
from damro.loading import Loaded, prepare_inputs
from damro.methods.patches import tiles_of_images
from tests.family_models import PATCHES, family_model
from tests.told import generate, request

TOLD: dict[str, Any] = {"alpha": 1.0, "beta": 0.1, "top_k": 3}


class VideoLlavaProcessor(LlavaProcessor):
    """What transformers' own returns for images, which needs torchvision."""

    def __call__(self, **options: Any) -> BatchFeature:
        inputs = super().__call__(**options)
        inputs["pixel_values_images"] = inputs.pop("pixel_values")
        return inputs


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    words = word_tokenizer(200)
    words.padding_side = "left"
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    processor = VideoLlavaProcessor(pixels, words, 14, "default", num_additional_image_tokens=1)
    return Loaded(family_model("video_llava"), processor)


@pytest.mark.parametrize("method", ["greedy", "damro", "random-k", "least-k", "no-image", "vcd", "m3id"])
@pytest.mark.parametrize("keep", [None, 5])
def test_video_llava_answers_about_images(loaded: Loaded, method: str, keep: int | None) -> None:
    asked_for = request("pope", "untrained", method=method, max_new_tokens=5, keep_tokens=keep, **TOLD)
    asked = [Sample(f"s/{n}", f"test_{n // 2:06d}.png", ("What is this?", "a cat.")[n % 2], {}) for n in range(3)]
    found = make_engine(asked_for, loaded, open_scene).answer(asked)
    assert [answered.error for answered in found] == [None] * 3
    expected = []
    for sample in asked:
        inputs = prepare_inputs(loaded.processor, [open_scene(sample.image)], [sample.prompt], loaded.model)
        assert tiles_of_images(loaded.model, inputs) == [1]
        named = TOLD if method not in ("vcd", "m3id") else {"alpha": 1.0} if method == "vcd" else {"beta": 0.1}
        new = generate(
            loaded.model, inputs, method=method, keep_tokens=keep, seed=42, max_new_tokens=5, do_sample=False, **named
        )[:, inputs["input_ids"].shape[1] :]
        expected += [text.strip() for text in loaded.processor.batch_decode(new, skip_special_tokens=True)]
    if method != "random-k":  # a run draws patches by image and seed
        assert [answered.text for answered in found] == expected
    if method in ("damro", "random-k", "least-k"):
        assert [len(answered.outliers[0]) for answered in found] == [3] * 3
        assert max(map(max, (answered.outliers[0] for answered in found))) < PATCHES
