"""What a run's method is told: what was asked for, the preset, or what the authors have; and what run.json says."""

import math
from typing import Any

import pytest

from damro.decoding.errors import ParameterError, UnsupportedModelError
from damro.eval.runs.record import differences
from damro.methods import METHODS
from damro.parameters import parameters
from tests.told import request

SENTENCE = "You are a confused objects detector to provide a fuzzy overview or impression of the image."
ICD_FORM = {"question_only": False, "form": "released", "place": "front"}
CONTRASTS = [name for name in METHODS if name != "greedy"]


def found(method: str, benchmark: str = "pope", family: str = "llava", **asked: Any) -> dict[str, Any]:
    told = request(benchmark, "tiny", method=method, **asked)
    return told.recipe.method.settle(family, told.asked.task, told.seed).to_record()


def test_presets_and_what_was_asked_for() -> None:
    assert found("greedy", alpha=3) == {}
    assert found("damro") == {"alpha": 2.0, "beta": 0.1, "top_k": 10, "variant": "reference"}
    assert found("random-k@1") == found("damro") | {"seed": 42}
    assert found("damro", "chair") == found("damro") | {"alpha": 0.5}
    assert found("damro:task=chair") == found("damro", "chair")
    assert found("no-image", alpha=3, top_k=5) == {"alpha": 3, "beta": 0.1}


def test_other_methods_have_their_authors_values() -> None:
    assert found("vcd", "chair") == {"alpha": 1.0, "beta": 0.1, "noise_step": 500, "seed": 42}
    assert found("vcd", family="instructblip", alpha=0.0, beta=0.3, top_k=5) == {
        **{"alpha": 0.0, "beta": 0.3, "noise_step": 500, "seed": 42},
    }
    assert found("icd@1") == {"alpha": 1.0, "beta": 0.1, "disturbance": SENTENCE, **ICD_FORM}
    assert found("m3id", alpha=3) == {"forgetting": 0.02, "confidence": 0.3}
    assert found("m3id", beta=0.2)["beta"] == 0.2


def test_what_was_asked_of_single_methods() -> None:
    assert found("vcd", noise_step=0)["noise_step"] == 0
    assert found("icd", disturbance="No.")["disturbance"] == "No."
    assert found("m3id", forgetting=0.0, confidence=1.0) == {"forgetting": 0.0, "confidence": 1.0}
    assert found("icd", question_only=True)["question_only"] is True
    assert found("damro", variant="corrected")["variant"] == "corrected"
    assert "variant" not in found("no-image", variant="corrected")


def test_a_run_s_seed_is_that_of_a_method_which_is_not_told_one() -> None:
    assert found("vcd", seed=7)["seed"] == found("random-k", seed=7)["seed"] == 7
    assert found("vcd:seed=3", seed=7)["seed"] == 3


@pytest.mark.parametrize(
    ("method", "asked"),
    [
        ("vcd", {"alpha": -1}),
        ("icd", {"beta": 0}),
        ("m3id", {"beta": 2}),
        ("damro", {"alpha": math.nan}),
        ("no-image", {"alpha": -0.1}),
        ("least-k", {"beta": 1.1}),
        ("vcd", {"noise_step": -1}),
        ("m3id", {"confidence": 0.0}),
        ("m3id", {"forgetting": math.inf}),
    ],
)
def test_what_is_out_of_range_is_refused(method: str, asked: dict[str, float]) -> None:
    with pytest.raises(ParameterError, match=f"{next(iter(asked))} must be"):
        found(method, "pope", "llava", **asked)


@pytest.mark.parametrize(
    "option", ["noise_step", "disturbance", "question_only", "forgetting", "confidence", "variant"]
)
def test_an_option_of_another_method_is_refused(option: str) -> None:
    value = {"disturbance": "No.", "variant": "corrected", "question_only": "true"}.get(option, "1")
    having = [name for name in CONTRASTS if option in {one.name for one in parameters(METHODS[name])}]
    assert 0 < len(having) <= 3
    for contrast in CONTRASTS:
        text = f"{contrast}:{option}={value}"
        if contrast in having:
            assert request("pope", "tiny", text).recipe.method.name == contrast
        else:
            with pytest.raises(ParameterError, match=f"{contrast} must have parameters of .*, got {option!r}"):
                request("pope", "tiny", text)


def test_a_family_without_a_preset() -> None:
    asked = {"alpha": 1.0, "beta": 0.2, "top_k": 3}
    assert found("damro", family="blip-2", **asked) == {**asked, "variant": "reference"}
    assert found("no-image", family="video_llava", alpha=1.0, beta=0.2) == {"alpha": 1.0, "beta": 0.2}
    with pytest.raises(UnsupportedModelError, match="told top_k for .* got none for 'blip-2'; pass top_k"):
        found("least-k", family="blip-2", alpha=1.0, beta=0.2)


def test_a_request_without_a_key_has_its_default() -> None:
    before: dict[str, Any] = {"request": {"seed": 1}}
    assert differences(before, {"request": {"seed": 1, "keep_tokens": None, "method": "greedy"}}) == []
    assert differences(before, {"request": {"seed": 1, "scenes": 3}}) == ["request.scenes: 200 -> 3"]
