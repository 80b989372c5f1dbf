"""eval/strengths.py: what a run's contrast is told, and what run.json says of it."""

import math
from typing import Any

import pytest

from damro.decoding.errors import ParameterError, UnsupportedModelError
from damro.eval.errors import EvalError
from damro.eval.methods import CONTRASTS, TAKEN_BY, check_options, parse_method, takes
from damro.eval.runs.request import RunRequest, differences
from damro.eval.strengths import Strengths, check_request, strengths_of

SENTENCE = "You are a confused objects detector to provide a fuzzy overview or impression of the image."


def found(method: str, benchmark: str = "pope", family: str = "llava", **asked: Any) -> Strengths:
    return strengths_of(RunRequest(benchmark, "tiny", **asked), parse_method(method), family)


def test_presets_and_what_was_asked_for() -> None:
    assert found("greedy", alpha=3) == Strengths()
    assert found("damro") == found("random-k@1") == Strengths(2.0, 0.1, 10)
    assert found("damro", "chair") == Strengths(0.5, 0.1, 10)
    assert found("no-image", alpha=3, top_k=5) == Strengths(3, 0.1)


def test_other_methods_have_their_authors_values() -> None:
    assert found("vcd", "chair").to_dict() == {"alpha": 1.0, "beta": 0.1, "top_k": None, "noise_step": 500}
    assert found("vcd", family="instructblip", alpha=0.0, beta=0.3, top_k=5) == Strengths(0.0, 0.3, noise_step=500)
    icd = found("icd@1").to_dict()
    assert (icd.pop("disturbance"), icd) == (
        SENTENCE,
        {"alpha": 1.0, "beta": 0.1, "top_k": None, "question_only": False},
    )
    assert found("m3id", alpha=3) == Strengths(forgetting=0.02, confidence=0.3)
    assert found("m3id", beta=0.2).beta == 0.2


def test_what_was_asked_of_single_methods() -> None:
    assert found("vcd", noise_step=0) == Strengths(1.0, 0.1, noise_step=0)
    assert found("icd", disturbance="No.").to_dict()["disturbance"] == "No."
    assert found("m3id", forgetting=0.0, confidence=1.0) == Strengths(forgetting=0.0, confidence=1.0)
    assert found("icd", question_only=True).to_options().question_only
    assert found("icd").to_dict()["question_only"] is False
    assert found("damro", variant="corrected").to_options().variant == "corrected"
    assert found("no-image", variant="corrected").variant is None


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
    with pytest.raises(ParameterError, match=f"{next(iter(asked))} must be"):
        check_request(RunRequest("pope", "tiny", method=method, **asked))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "option", ["noise_step", "disturbance", "question_only", "forgetting", "confidence", "variant"]
)
def test_an_option_of_another_method_is_refused(option: str) -> None:
    value: Any = {"disturbance": "No.", "variant": "corrected"}.get(option, 1)
    for contrast in CONTRASTS:
        request = RunRequest("pope", "tiny", method=contrast, **{option: value})
        if contrast in TAKEN_BY[option]:
            assert check_request(request).contrast == contrast
        else:
            with pytest.raises(
                EvalError, match=f"--{option.replace('_', '-')} must come with .*, got .* with {contrast}"
            ):
                check_request(request)


def test_a_command_gives_alpha_to_all_of_its_methods() -> None:
    methods = [parse_method(name) for name in ("greedy", "damro", "m3id")]
    check_options({"alpha": 1.0, "top_k": 4, "keep_tokens": 9}, methods)
    assert [takes(method, "alpha") for method in methods] == [False, True, False]
    assert check_request(RunRequest("pope", "tiny", method="m3id", alpha=1.0)).contrast == "m3id"


def test_a_family_without_a_preset() -> None:
    assert found("damro", family="blip-2", alpha=1.0, beta=0.2, top_k=3) == Strengths(1.0, 0.2, 3)
    assert found("no-image", family="video_llava", alpha=1.0, beta=0.2) == Strengths(1.0, 0.2)
    with pytest.raises(UnsupportedModelError, match="told top_k for .* got none for 'blip-2'; give --top-k"):
        found("least-k", family="blip-2", alpha=1.0, beta=0.2)


def test_a_request_without_a_key_has_its_default() -> None:
    before: dict[str, Any] = {"request": {"seed": 1}}
    assert differences(before, {"request": {"seed": 1, "keep_tokens": None, "variant": "reference"}}) == []
    assert differences(before, {"request": {"seed": 1, "noise_step": 3}}) == ["request.noise_step: null -> 3"]


def test_options_for_the_method() -> None:
    options = found("vcd", alpha=0.5).to_options(seed=7)
    assert (options.alpha, options.beta, options.noise_step, options.seed) == (0.5, 0.1, 500, 7)
    assert found("m3id").to_options().alpha is None
