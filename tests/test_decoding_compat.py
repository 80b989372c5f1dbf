"""decoding/compat.py: names that transformers knows, and versions that it must have."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from transformers import LlamaForCausalLM, T5ForConditionalGeneration

from damro import DAMROProcessor
from damro.decoding import compat
from damro.decoding.compat import CACHE, check_version, with_known_cache
from damro.errors import ParameterError, UnsupportedModelError
from tests.golden_cases import inputs_of, model_of
from tests.paligemma_cases import STRENGTHS, parts
from tests.told import generate


@pytest.mark.parametrize("kind", [LlamaForCausalLM, T5ForConditionalGeneration], ids=lambda kind: kind.__name__)
def test_the_cache_has_the_name_that_models_know(kind: type) -> None:
    known = inspect.signature(kind.forward).parameters
    assert {"cache", "past_key_values"} & set(known) == {CACHE}


def test_a_cache_by_either_name_is_passed_by_the_known_one() -> None:
    kept = {"max_new_tokens": 3, "use_cache": True}
    for name in ("cache", "past_key_values"):
        assert with_known_cache({name: "held", **kept}) == {CACHE: "held", **kept}
        assert with_known_cache({name: None, **kept}) == kept
    assert with_known_cache({"past_key_values": "other", "cache": "held"}) == {CACHE: "held"}
    assert with_known_cache(kept) == kept


@pytest.mark.parametrize("version", ["5.23.0", "5.23.0.dev0", "5.100.1", "6.0.0"])
def test_new_enough(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "installed", version)
    check_version("5.23", "models", "err")


@pytest.mark.parametrize("version", ["5.22.2", "5.9.0", "4.99.0"])
def test_too_old_for_paligemma_2(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "installed", version)
    model, inputs = parts("paligemma2", 1)
    with pytest.raises(
        UnsupportedModelError,
        match=rf"must be 5\.23 or newer for PaliGemma 2, as .* cap .*, got {version}; pip install 'transformers>=5.23'",
    ):
        DAMROProcessor(model, inputs, **STRENGTHS)
    model, inputs = parts("paligemma", 1)  # has no such cap
    DAMROProcessor(model, inputs, **STRENGTHS)


@pytest.mark.parametrize("method", ["greedy", "no-image"])
def test_chunks_without_images_are_refused(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "installed", "5.22.2")
    options: dict[str, Any] = {} if method == "greedy" else {"alpha": 1.0, "beta": 0.1}
    with pytest.raises(ParameterError, match=r"prefill_chunk_size .* before 5\.23 .* chunks, got 4; decode without it"):
        generate(model_of("llava"), inputs_of("llava_img0"), method=method, prefill_chunk_size=4, **options)
