"""eval/strengths.py: what a run's contrast is told, and what run.json says of it."""

import pytest

from decoding.errors import ParameterError
from eval.methods import parse_method
from eval.run_config import RunRequest
from eval.strengths import Strengths, strengths_of

SENTENCE = "You are a confused objects detector to provide a fuzzy overview or impression of the image."


def found(method: str, benchmark: str = "pope", family: str = "llava", **asked: float) -> Strengths:
    return strengths_of(RunRequest(benchmark, "tiny", **asked), parse_method(method), family)  # type: ignore[arg-type]


def test_presets_and_what_was_asked_for() -> None:
    assert found("greedy", alpha=3) == Strengths()
    assert found("damro") == found("random-k@1") == Strengths(2.0, 0.1, 10)
    assert found("damro", "chair") == Strengths(0.5, 0.1, 10)
    assert found("no-image", alpha=3, top_k=5) == Strengths(3, 0.1)


def test_other_methods_have_their_authors_values() -> None:
    assert found("vcd", "chair").to_dict() == {"alpha": 1.0, "beta": 0.1, "top_k": None, "noise_step": 500}
    assert found("vcd", family="instructblip", alpha=0.0, beta=0.3, top_k=5) == Strengths(0.0, 0.3, noise_step=500)
    icd = found("icd@1").to_dict()
    assert (icd.pop("disturbance"), icd) == (SENTENCE, {"alpha": 1.0, "beta": 0.1, "top_k": None})
    assert found("m3id", alpha=3) == Strengths(forgetting=0.02, confidence=0.3)
    assert found("m3id", beta=0.2).beta == 0.2


@pytest.mark.parametrize(("method", "asked"), [("vcd", {"alpha": -1}), ("icd", {"beta": 0}), ("m3id", {"beta": 2})])
def test_what_is_out_of_range_is_refused(method: str, asked: dict[str, float]) -> None:
    with pytest.raises(ParameterError, match=f"{next(iter(asked))} must be"):
        found(method, "pope", "llava", **asked)


def test_options_for_the_method() -> None:
    options = found("vcd", alpha=0.5).to_options(seed=7)
    assert (options.alpha, options.beta, options.noise_step, options.seed) == (0.5, 0.1, 500, 7)
    assert found("m3id").to_options().alpha is None
