import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTModel
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from damro.decoding.drawing import SeededSampling
from damro.decoding.generate import decode
from damro.errors import UnsupportedModelError
from damro.eval.errors import EvalError
from damro.eval.runs.engine import Engine, load, make_engine
from damro.eval.runs.fingerprint import fingerprint_folder, first_bytes_of_folder
from damro.eval.runs.first_token import answer_in_one_token
from damro.eval.runs.loop import Answered
from damro.eval.runs.request import RunRequest
from damro.eval.runs.resolve import _fingerprint, digest_of_weights, is_older_fingerprint
from damro.eval.samples import Sample, open_scene
from damro.loading import Loaded, prepare_inputs
from damro.methods.patches import tiles_of_images
from damro.pruning import Pruning
from tests.told import generate, request
from tests.untrained import load_untrained

QUESTIONS = ["Is there a cat in the image?", "Is there an orange on the left in the image? Yes, no.", "Is there a dog?"]
OTHERS = ["vcd", "icd", "m3id"]
METHODS = ["greedy", "sample", "damro", "random-k", "least-k", "no-image", "random-k@1", *OTHERS]


@pytest.fixture(scope="module", params=["llava", "llava_next", "instructblip"])
def loaded(request: pytest.FixtureRequest) -> Loaded:
    return load_untrained(request.param)


def make(loaded: Loaded, method: str, **options: Any) -> Engine:
    asked = request("pope", "untrained", method=method, max_new_tokens=6, top_k=4, **options)
    return make_engine(asked, loaded, open_scene)


def samples(count: int = 6) -> list[Sample]:
    return [Sample(f"s/{n}", f"test_{n // 2:06d}.png", QUESTIONS[n % 3], {}) for n in range(count)]


def test_a_model_that_cannot_answer_is_refused_before_the_run(tmp_path: Path) -> None:
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    ViTModel(ViTConfig(image_size=28, patch_size=14, **small)).save_pretrained(tmp_path)
    BitImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="model must be of a supported family .* got .*vit"):
        load(RunRequest("pope", str(tmp_path), device="cpu"))


@pytest.mark.parametrize("method", METHODS)
def test_neither_batch_nor_order_changes_an_answer(loaded: Loaded, method: str) -> None:
    engine = make(loaded, method)
    together = dict(zip("012345", engine.answer(samples()), strict=True))
    reordered = [samples()[n] for n in (4, 0, 5, 2, 1, 3)]
    one_by_one = {sample.sample_id[2:]: engine.answer([sample])[0] for sample in reordered}
    assert all(answered.error is None and answered.text for answered in together.values())
    assert len({answered.text for answered in together.values()}) > 1
    assert one_by_one == together


@pytest.mark.parametrize("method", OTHERS)
def test_other_methods_answer_as_damro_generate_does(loaded: Loaded, method: str) -> None:
    """With the authors' values spelled out there, so that a change of a default shows."""
    values: dict[str, dict[str, Any]] = {
        "vcd": {"alpha": 1.0, "beta": 0.1, "noise_step": 500, "seed": 42},
        "icd": {"alpha": 1.0, "beta": 0.1, "processor": loaded.processor},
        "m3id": {"forgetting": 0.02, "confidence": 0.3},
    }
    asked = samples(4)
    found = [answered.text for answered in make(loaded, method).answer(asked)]
    expected = []
    for sample in asked:
        inputs = prepare_inputs(loaded.processor, [open_scene(sample.image)], [sample.prompt], loaded.model)
        ids = generate(loaded.model, inputs, method=method, max_new_tokens=6, do_sample=False, **values[method])
        new = ids[:, inputs["input_ids"].shape[1] :]
        expected += [text.strip() for text in loaded.processor.batch_decode(new, skip_special_tokens=True)]
    assert found == expected


@pytest.mark.parametrize("method", ["greedy", "damro", "no-image", "vcd"])
def test_pruned_answers_are_those_of_damro_generate(loaded: Loaded, method: str) -> None:
    if loaded.model.config.model_type == "instructblip":
        with pytest.raises(UnsupportedModelError, match="queries of its Q-Former"):
            make(loaded, method, keep_tokens=5)
        return
    asked = samples(4)
    found = [answered.text for answered in make(loaded, method, keep_tokens=5).answer(asked)]
    assert found != [answered.text for answered in make(loaded, method).answer(asked)]
    options: dict[str, Any] = {"method": method, "keep_tokens": 5, "max_new_tokens": 6, "do_sample": False, "seed": 42}
    options |= {"top_k": 4, "task": "pope"} if method in ("damro", "no-image") else {}
    expected = []
    for sample in asked:
        inputs = prepare_inputs(loaded.processor, [open_scene(sample.image)], [sample.prompt], loaded.model)
        new = generate(loaded.model, inputs, **options)[:, inputs["input_ids"].shape[1] :]
        expected += [text.strip() for text in loaded.processor.batch_decode(new, skip_special_tokens=True)]
    assert found == expected


def test_the_variant_reaches_the_method(loaded: Loaded) -> None:
    asked = samples(4)
    answers = {variant: make(loaded, "damro", variant=variant).answer(asked) for variant in ("reference", "corrected")}
    expected = []
    for sample in asked:
        inputs = prepare_inputs(loaded.processor, [open_scene(sample.image)], [sample.prompt], loaded.model)
        new = generate(
            loaded.model, inputs, variant="corrected", task="pope", top_k=4, max_new_tokens=6, do_sample=False
        )[:, inputs["input_ids"].shape[1] :]
        expected += [text.strip() for text in loaded.processor.batch_decode(new, skip_special_tokens=True)]
    assert [answered.text for answered in answers["corrected"]] == expected
    differs = loaded.model.config.model_type == "instructblip"
    assert (answers["corrected"] != answers["reference"]) == differs


def test_methods_choose_the_patches_they_say(loaded: Loaded) -> None:
    found = {method: make(loaded, method).answer(samples(2))[0].outliers for method in METHODS}
    assert found["greedy"] is found["sample"] is found["no-image"] is None
    every = with_top_k(make(loaded, "damro"), 64).answer(samples(2))[0].outliers
    assert found["damro"] == [every[0][:4]]
    assert set(found["least-k"][0]) == set(every[0][-4:])
    drawn = [tuple(answered.outliers[0]) for answered in make(loaded, "random-k").answer(samples(6))]
    assert drawn[0] == drawn[1]  # a draw an image
    assert len(set(drawn)) == 3
    assert make(loaded, "random-k", seed=1).answer(samples(1))[0].outliers != found["random-k"]


def with_top_k(engine: Engine, top_k: int) -> Engine:
    method: Any = engine.recipe.method
    return replace(engine, recipe=engine.recipe._replace(method=replace(method, top_k=top_k)))


def test_contrast_of_strength_zero_over_all_tokens_is_greedy(loaded: Loaded) -> None:
    plain = [answered.text for answered in make(loaded, "greedy").answer(samples())]
    for method in ("damro", "no-image"):
        assert [answered.text for answered in make(loaded, method, alpha=0.0).answer(samples())] == plain


def test_a_broken_sample_fails_alone(loaded: Loaded) -> None:
    engine = make(loaded, "damro")
    alone = engine.answer(samples(3))

    def open_image(name: str) -> Image.Image:
        if name == "missing.png":
            raise FileNotFoundError("no such file: missing.png")
        return open_scene(name)

    engine.open_image = open_image
    long = Sample("long", "test_000000.png", "Is there a cat? " * 400, {})
    missing = Sample("missing", "missing.png", QUESTIONS[0], {})
    answers = engine.answer([missing, *samples(3), long])
    assert answers[0] == Answered(None, error="no such file: missing.png")
    assert answers[1:4] == alone
    assert re.search(
        r"the model's context of 1024 columns, got 2\d+ of text|128 positions of the Q-", str(answers[4].error)
    )


def failing_above(size: int, error: Exception) -> Callable[..., Any]:
    """`decode` that raises for batches of more than `size` rows."""

    def limited(model: Any, inputs: Any, contrast: Any, **options: Any) -> Any:
        calls.append(len(inputs["input_ids"]))
        if calls[-1] > size:
            raise error
        return decode(model, inputs, contrast, **options)

    calls: list[int] = []
    limited.calls = calls  # type: ignore[attr-defined]
    return limited


def test_a_batch_that_does_not_fit_is_halved(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make(loaded, "greedy")
    whole = engine.answer(samples())
    limited = failing_above(1, RuntimeError("CUDA out of memory. Tried to allocate 1 GiB"))
    monkeypatch.setattr("damro.eval.runs.engine.decode", limited)
    assert engine.answer(samples()) == whole
    assert limited.calls == [2, 2, 1, 1, 1, 1, 1, 1]  # type: ignore[attr-defined]


def test_a_sample_that_fails_in_a_batch_that_was_halved_fails_alone(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make(loaded, "greedy")
    asked = [Sample(f"s/{n}", f"test_{n:06d}.png", QUESTIONS[n % 3], {}) for n in range(4)]
    whole = engine.answer(asked)
    spoilt = prepare_inputs(loaded.processor, [open_scene(asked[1].image)], [asked[1].prompt], loaded.model)

    def spoiling(model: Any, inputs: Any, contrast: Any, **options: Any) -> Any:
        if len(inputs["input_ids"]) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
        if any(torch.equal(one, spoilt["pixel_values"][0]) for one in inputs["pixel_values"]):
            raise RuntimeError("CUDA error: device-side assert triggered")
        return decode(model, inputs, contrast, **options)

    monkeypatch.setattr("damro.eval.runs.engine.decode", spoiling)
    answers = engine.answer(asked)
    assert answers[1].error == "RuntimeError: CUDA error: device-side assert triggered"
    assert answers[1].fault is not None and answers[1].fault.everywhere
    assert [answers[n] for n in (0, 2, 3)] == [whole[n] for n in (0, 2, 3)]


def test_one_sample_that_does_not_fit_fails(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make(loaded, "greedy")
    monkeypatch.setattr("damro.eval.runs.engine.decode", failing_above(0, RuntimeError("CUDA out of memory. No.")))
    answers = engine.answer(samples(2))
    assert [answered.error for answered in answers] == ["RuntimeError: CUDA out of memory. No."] * 2


def test_tiles_of_images(loaded: Loaded) -> None:
    images = [Image.new("RGB", (96, 96)), Image.new("RGB", (300, 96))]
    inputs = prepare_inputs(loaded.processor, images, QUESTIONS[:2], loaded.model)
    tiled = loaded.model.config.model_type == "llava_next"
    assert tiles_of_images(loaded.model, inputs)[1] == (inputs["pixel_values"].shape[1] if tiled else 1)


def test_seeded_sampling_draws_from_the_distribution() -> None:
    scores = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    draws: Sequence[int] = [
        int(SeededSampling([seed])(torch.zeros(1, 1, dtype=torch.long), scores).argmax()) for seed in range(4000)
    ]
    counts = Counter(draws)
    for token, probability in enumerate((0.5, 0.3, 0.15, 0.05)):
        # Four standard deviations of a binomial share.
        assert abs(counts[token] / 4000 - probability) < 4 * (probability * (1 - probability) / 4000) ** 0.5


def test_seeded_sampling_keeps_the_nucleus_and_what_was_excluded() -> None:
    scores = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().repeat(3, 1)
    scores[:, 0] = -torch.inf  # leaves .6, .3, .1
    result = SeededSampling([1, 2, 3], top_p=0.7)(torch.zeros(3, 1, dtype=torch.long), scores)
    assert result.isfinite().tolist() == [[False, True, True, False]] * 3
    assert not torch.equal(result[0], result[1])
    alone = SeededSampling([1, 2, 3], top_p=0)(torch.zeros(3, 1, dtype=torch.long), scores)
    assert alone.isfinite().tolist() == [[False, True, False, False]] * 3


def test_answers_of_one_token_for_all_methods_are_the_engines(loaded: Loaded) -> None:
    engines = {name: make(loaded, name) for name in METHODS}
    engines["corrected"] = make(loaded, "damro", variant="corrected")
    asked = [Sample(f"s/{n}", "test_000003.png", QUESTIONS[n % 3], {}) for n in range(5)]
    together = answer_in_one_token(engines, asked)
    for name, engine in engines.items():
        engine.config.max_new_tokens = 1
        assert together[name] == engine.answer(asked)
    assert len({tuple(answered.text for answered in answers) for answers in together.values()}) > 1
    engines["greedy"].pruning = Pruning(3)
    with pytest.raises(EvalError, match="engines must be pruned alike to share a prompt, 'sample' is not"):
        answer_in_one_token(engines, asked)


def test_a_model_is_known_by_its_folder_its_commit_or_its_weights(tmp_path: Path) -> None:
    model: Any = torch.nn.Linear(2, 2)
    model.config = SimpleNamespace(_commit_hash=None)
    (tmp_path / "config.json").write_text("{}")
    local, hub = RunRequest("pope", str(tmp_path)), RunRequest("pope", "somebody/model")
    of_folder = fingerprint_folder(tmp_path)
    assert _fingerprint(local, model) == of_folder
    assert _fingerprint(hub, model) == f"sha256 {digest_of_weights(model)}"
    model.config._commit_hash = "abc"
    assert (_fingerprint(local, model), _fingerprint(hub, model)) == (of_folder, "commit abc")
    older = [first_bytes_of_folder(tmp_path), "commit abc", "commit other", of_folder]
    assert [is_older_fingerprint(one, local, model) for one in older] == [True, True, False, False]
    assert not is_older_fingerprint("commit abc", hub, model)
    # The weights below an adapter may lie anywhere.
    model._hf_peft_config_loaded = True
    before = _fingerprint(local, model)
    assert before == f"sha256 {digest_of_weights(model)}"
    with torch.no_grad():
        model.weight[0, 0] += 1
    assert _fingerprint(local, model) != before
