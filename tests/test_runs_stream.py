"""Samples answered as places get free are answered as the engine answers them, batch by batch and one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from damro.decoding.branches.fused import Branches
from damro.decoding.branches.joining import OpenBranches
from damro.decoding.inside import prompts_of
from damro.eval.runs import stream
from damro.eval.runs.costs import Costs
from damro.eval.runs.engine import Engine, make_engine
from damro.eval.runs.loop import Answered
from damro.eval.runs.stream import answer_continuously, in_places, why_batches
from damro.eval.samples import Sample, open_scene
from damro.loading import Loaded
from tests.told import request
from tests.untrained import load_untrained

PROMPTS = [
    "Is there a cat?",
    "Name all the animals, and what is on the left, on the right, and between them.",
    "A dog?",
]
METHODS = ["greedy", "damro", "m3id", "vcd", "sample", "damro@0.7"]


@pytest.fixture(scope="module", params=["llava", "llava_next"])
def loaded(request: pytest.FixtureRequest) -> Loaded:
    return load(request.param)


def load(family: str) -> Loaded:
    untrained = load_untrained(family)
    # Many tokens end an answer, so that lengths differ.
    untrained.model.generation_config.eos_token_id = list(range(2, 504, 23))
    return untrained


def make(loaded: Loaded, method: str, **options: Any) -> Engine:
    asked = request("pope", "untrained", method=method, top_k=4, max_new_tokens=20, **options)
    return make_engine(asked, loaded, open_scene)


def samples(count: int = 9) -> list[Sample]:
    return [Sample(f"s/{n}", f"test_{n:06d}.png", PROMPTS[n % 3], {}) for n in range(count)]


def streamed(engine: Engine, asked: Sequence[Sample], rows: int = 4) -> dict[str, Answered]:
    found = [(sample.sample_id, answered) for sample, answered in answer_continuously(engine, asked, rows)]
    assert len(dict(found)) == len(found)
    return dict(found)


def in_batches(engine: Engine, asked: Sequence[Sample], size: int = 4) -> dict[str, Answered]:
    starts = range(0, len(asked), size)
    answers = [answered for start in starts for answered in engine.answer(asked[start : start + size])]
    return {one.sample_id: answered for one, answered in zip(asked, answers, strict=True)}


@pytest.mark.parametrize("method", METHODS)
def test_answers_are_those_of_batches_and_of_samples_alone(loaded: Loaded, method: str) -> None:
    engine, asked = make(loaded, method), samples()
    assert why_batches(engine) is None
    expected = in_batches(engine, asked)
    assert in_batches(engine, asked, 1) == expected
    assert len({len(answered.text or "") for answered in expected.values()}) > 3
    for rows in (1, 4, 16):
        assert streamed(engine, asked, rows) == expected
    assert (expected["s/0"].outliers is not None) == method.startswith("damro")


@pytest.mark.parametrize("method", ["greedy", "damro"])
def test_pruned_answers_are_those_of_batches(loaded: Loaded, method: str) -> None:
    engine, asked = make(loaded, method, keep_tokens=5), samples()
    assert streamed(engine, asked) == in_batches(engine, asked) != in_batches(make(loaded, method), asked)


LLAVA: list[Engine] = []


def llava(method: str = "damro") -> Engine:
    """One engine for the tests that draw many orders."""
    if not LLAVA:
        LLAVA.append(make(load("llava"), method))
    return LLAVA[0]


@given(st.permutations(range(9)), st.integers(1, 5))
@settings(max_examples=5, deadline=None)
def test_neither_order_nor_room_changes_an_answer(order: list[int], rows: int) -> None:
    expected = in_batches(llava(), samples())
    assert streamed(llava(), [samples()[n] for n in order], rows) == expected


def test_questions_about_one_image_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = llava()
    asked = [Sample(f"q/{n}", f"test_{n // 5:06d}.png", f"{PROMPTS[n % 3]} {n}", {}) for n in range(17)]
    expected = in_batches(engine, asked, 1)
    shown: list[int] = []
    scene = engine.scene

    def looking(names: Sequence[str], pictures: Any, **options: Any) -> Any:
        shown.append(len(names))
        return scene(names, pictures, **options)

    monkeypatch.setattr(engine, "scene", looking)
    assert streamed(engine, asked, 7) == expected
    assert shown == [1, 1, 1, 1]  # three images with five questions, one with two
    assert streamed(engine, asked, 2) == expected  # fewer places than questions


def test_what_fails_fails_alone_and_as_the_engine_says() -> None:
    engine = make(load("llava"), "damro")
    expected = in_batches(engine, samples(5))

    def open_image(name: str) -> Image.Image:
        if name == "missing.png":
            raise FileNotFoundError("no such file: missing.png")
        return open_scene(name)

    engine.open_image = open_image
    long = Sample("long", "test_000000.png", "Is there a cat? " * 400, {})
    missing = Sample("missing", "missing.png", PROMPTS[0], {})
    text = Sample("text", None, "What is a cat?", {})
    asked = [missing, *samples(2), long, text, *samples(5)[2:]]
    found = streamed(engine, asked)
    alone = in_batches(engine, asked, 1)
    assert found == alone
    assert found["missing"].error == "no such file: missing.png"
    assert "context of 1024 columns" in str(found["long"].error)
    assert found["text"].text
    assert {key: found[key] for key in expected} == expected


def test_scores_that_are_no_numbers_are_the_samples_own(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make(load("llava"), "damro")
    expected = in_batches(engine, samples(6))
    prepare = type(engine.recipe.method).prepare

    def spoiling(method: Any, model: Any, inputs: Any, scene: Any) -> Any:
        contrast = prepare(method, model, inputs, scene)
        for row, name in enumerate(scene.images):
            if name == "test_000003.png":
                prompts_of(contrast)[0].inputs_embeds[row] = torch.nan  # type: ignore[attr-defined]
        return contrast

    monkeypatch.setattr(type(engine.recipe.method), "prepare", spoiling)
    found = streamed(engine, samples(6), 3)
    broken = found.pop("s/3")
    assert broken.text is None and "must have a finite best token" in str(broken.error)
    assert broken == engine.answer(samples(6)[3:4])[0]
    assert found == {key: answered for key, answered in expected.items() if key != "s/3"}


@pytest.mark.parametrize("short_of_memory", [True, False])
def test_a_step_that_fails_begins_anew_what_was_on_its_way(
    monkeypatch: pytest.MonkeyPatch, short_of_memory: bool
) -> None:
    """Without memory in half the places; else one by one by the engine. Nothing is lost, nothing told twice."""
    engine = make(load("llava"), "damro")
    expected = in_batches(engine, samples())
    step, sizes = Branches.step, []
    error = "CUDA out of memory. Tried to allocate 1 GiB" if short_of_memory else "something else"

    def failing(branches: Any, tokens: Any) -> None:
        sizes.append(len(tokens))
        if len(tokens) > 3 if short_of_memory else len(sizes) == 8:
            raise RuntimeError(error)
        step(branches, tokens)

    monkeypatch.setattr(OpenBranches, "step", failing)
    assert streamed(engine, samples(), 6) == expected
    assert 6 in sizes and min(sizes) < 6


def test_places_stay_fewer_once_memory_was_short(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make(load("llava"), "damro")
    expected = in_batches(engine, samples())
    step, sizes = Branches.step, []

    def failing(branches: Any, tokens: Any) -> None:
        sizes.append(len(tokens))
        if len(tokens) > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
        step(branches, tokens)

    monkeypatch.setattr(OpenBranches, "step", failing)
    answer = in_places(engine, 6)
    for most in (6, 3):
        sizes.clear()
        assert {sample.sample_id: answered for sample, answered in answer(samples())} == expected
        assert max(sizes) == most


def test_one_prompt_that_does_not_fit_beside_others_is_answered_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make(load("llava"), "greedy")
    expected = in_batches(engine, samples())
    read, sizes = stream.read, []

    def failing(decoder: Any, contrast: Any, inputs: Any, keys: Sequence[str], **options: Any) -> Any:
        sizes.append(len(keys))
        if len(keys) > 1 or keys[0] == "s/4":
            raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
        return read(decoder, contrast, inputs, keys, **options)

    monkeypatch.setattr(stream, "read", failing)
    found = list(answer_continuously(engine, samples(), 16))
    assert dict((sample.sample_id, answered) for sample, answered in found) == expected
    assert found[-1][0].sample_id == "s/4"
    assert sizes[:7] == [4, 2, 1, 1, 2, 1, 1]


def test_samples_are_taken_as_places_get_free_and_told_as_they_end() -> None:
    engine, taken = llava(), []

    def given_one_by_one() -> Any:
        for sample in samples():
            taken.append(sample.sample_id)
            yield sample

    ahead = [len(taken) - done for done, _ in enumerate(answer_continuously(engine, given_one_by_one(), 2))]
    assert len(ahead) == 9
    assert max(ahead) <= 2 + 2  # one is looked at beforehand, to see whether it is about the same image


def test_costs_are_those_of_all_samples() -> None:
    engine = make(load("llava"), "damro")
    engine.costs = Costs()
    in_batches(engine, samples(), 1)
    alone = engine.take_costs()
    streamed(engine, samples())
    found = engine.take_costs()
    assert (found.samples, found.images, found.vision) == (alone.samples, alone.images, alone.vision) == (9, 9, 9)
    assert found.tokens == alone.tokens
    assert found.seconds > 0 and found.tokens < found.language


@pytest.mark.parametrize(("method", "why"), [("opera", "searches by itself"), ("dola", "works inside")])
def test_methods_that_cannot_are_told(method: str, why: str) -> None:
    assert why in str(why_batches(make(load("llava"), method)))


def test_models_that_cannot_are_told() -> None:
    engine = make(load("llava"), "greedy")
    engine.config.num_beams = 3
    assert "another search" in str(why_batches(engine))
