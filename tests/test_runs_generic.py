"""Runs on models without a module of their own: questions about one image share it, and get the answers they get alone.

With real processors, so that prompts are of the form that a checkpoint's are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from damro.decoding.branches.prefix import encode_shared
from damro.decoding.errors import InputsError
from damro.decoding.families import family_of
from damro.decoding.families.generic.prompt import ImageFeatures
from damro.eval.runs.engine import Engine, make_engine
from damro.eval.runs.first_token import answer_in_one_token
from damro.eval.samples import Sample, open_scene
from damro.loading import Loaded, prepare_inputs
from damro.vision.attention import record_layers
from tests.chat_models import gemma3_processor, idefics3_processor, internvl_processor, qwen_processor
from tests.told import generate, request
from tests.zoo import UNRANKED, ZOO, zoo_inputs, zoo_model

PROCESSORS: dict[str, Callable[[], Any]] = {
    "qwen2_5_vl": qwen_processor,
    "internvl": internvl_processor,
    "idefics3": idefics3_processor,
    "gemma3": gemma3_processor,
}
TOLD: dict[str, Any] = {"alpha": 1.0, "beta": 0.1, "top_k": 3}
METHODS = ["greedy", "sample", "damro", "random-k", "least-k", "no-image", "damro@1", "vcd", "icd", "m3id"]
SOME = ("internvl_tiles", "qwen2_5_vl", "qwen3_vl", "smolvlm", "kimi_k25")
MODELS = pytest.mark.parametrize(
    "name", [name if name in SOME else pytest.param(name, marks=pytest.mark.slow) for name in ZOO + UNRANKED]
)
QUESTIONS = ["Is there a cat in the image ?", "What do you see ?", "Is there a dog ? Answer it ."]


@pytest.fixture(params=PROCESSORS, scope="module")
def loaded(request: pytest.FixtureRequest) -> Loaded:
    return Loaded(zoo_model(request.param), PROCESSORS[request.param]())


def make(loaded: Loaded, method: str, **options: Any) -> Engine:
    asked = request("pope", "untrained", method=method, max_new_tokens=5, **(TOLD | options))
    return make_engine(asked, loaded, open_scene)


def samples(count: int = 5) -> list[Sample]:
    return [Sample(f"s/{n}", f"test_{n // 3:06d}.png", QUESTIONS[n % 3], {}) for n in range(count)]


@pytest.mark.parametrize("method", METHODS)
def test_questions_about_one_image_are_answered_as_one_by_one(loaded: Loaded, method: str) -> None:
    engine = make(loaded, method)
    together = engine.answer(samples())
    assert [answered.error for answered in together] == [None] * 5
    assert together == [engine.answer([sample])[0] for sample in samples()]
    if method in ("damro", "random-k", "least-k"):
        assert [len(answered.outliers[0]) for answered in together] == [3] * 5
        assert len({tuple(answered.outliers[0]) for answered in together}) == 2, "a choice an image"


@pytest.mark.parametrize("method", ["greedy", "damro", "no-image", "m3id"])
def test_answers_are_those_of_generate(loaded: Loaded, method: str) -> None:
    found, expected = [answered.text for answered in make(loaded, method).answer(samples(3))], []
    told = {} if method in ("greedy", "m3id") else TOLD
    for sample in samples(3):
        inputs = prepare_inputs(loaded.processor, [open_scene(sample.image)], [sample.prompt], loaded.model)
        ids = generate(loaded.model, inputs, method=method, max_new_tokens=5, do_sample=False, **told)
        new = ids[:, inputs["input_ids"].shape[1] :]
        expected += [text.strip() for text in loaded.processor.batch_decode(new, skip_special_tokens=True)]
    assert found == expected


def test_the_tower_sees_a_shared_image_once(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, images = make(loaded, "damro"), [open_scene("test_000000.png")]
    one, three = (prepare_inputs(loaded.processor, images * n, QUESTIONS[:n], loaded.model) for n in (1, 3))
    method = engine.recipe.method
    expected: Any = method.prepare(loaded.model, one, engine.scene(["test_000000.png"], shared=False))
    home, seen = loaded.model.base_model, []
    encode: Any = home.get_image_features

    @functools.wraps(encode)  # its signature says what it takes
    def watched(**told: Any) -> Any:
        seen.append(told["pixel_values"].shape)
        return encode(**told)

    monkeypatch.setattr(home, "get_image_features", watched)
    contrast: Any = method.prepare(loaded.model, three, engine.scene(["test_000000.png"], shared=True))
    assert seen == [one["pixel_values"].shape] != [three["pixel_values"].shape]
    assert contrast.outliers.tolist() == expected.outliers.tolist() * 3
    assert contrast.attention.row.tolist() == [0, 1, 2]
    torch.testing.assert_close(contrast.attention.weights, expected.attention.weights.expand(3, -1), atol=1e-6, rtol=0)


@MODELS
@torch.no_grad()
def test_sharing_is_what_the_tower_makes_of_copies(name: str) -> None:
    """Vectors, those of deeper layers, and what is recorded, of all models."""
    model = zoo_model(name)
    inputs: dict[str, Any] = zoo_inputs(name, [(1, 9, "image", 30)])
    family: Any = family_of(model)
    of_tokens = [key for key in inputs if "ids" in key and "position" not in key or key == "attention_mask"]
    inputs |= {key: inputs[key].repeat(2, 1) for key in of_tokens}
    copies = family.each_its_image(model, inputs)
    if name in ("molmo2", "minicpmv4_6", "minicpmv4_7", "minicpm_ocr"):  # their patches have numbers in a batch
        with pytest.raises(InputsError, match="must hold the image once for each of the 2 prompts"):
            encode_shared(model, inputs)
        return
    layers = [] if name in UNRANKED else [family.feature_layer(model, reference=True)]
    with record_layers(family, model, copies, layers) as apart:
        expected = ImageFeatures.of(family.encode(model, copies).outputs)
    with record_layers(family, model, copies, layers) as once:
        found = ImageFeatures.of(encode_shared(model, inputs).outputs)
    torch.testing.assert_close(found.pooled, expected.pooled, atol=5e-5, rtol=1e-5)
    torch.testing.assert_close(found.deepstack, expected.deepstack, atol=1e-5, rtol=1e-5)
    assert found.others.keys() == expected.others.keys()
    for layer in layers:
        pairs = zip(*(family.column_weights(model, copies, seen[layer]) for seen in (once, apart)), strict=True)
        for (image, weights), (same_image, same) in pairs:
            assert image == same_image
            torch.testing.assert_close(weights, same, atol=1e-6, rtol=0)


def test_answers_of_one_token_for_all_methods_are_the_engines(loaded: Loaded) -> None:
    engines = {name: make(loaded, name) for name in METHODS}
    asked = [Sample(f"s/{n}", "test_000003.png", QUESTIONS[n % 3], {}) for n in range(5)]
    together = answer_in_one_token(engines, asked)
    for name, engine in engines.items():
        engine.config.max_new_tokens = 1
        assert together[name] == engine.answer(asked)
        assert together[name] == [engine.answer([sample])[0] for sample in asked]
    assert len({tuple(answered.text for answered in answers) for answers in together.values()}) > 1
