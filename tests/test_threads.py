"""One model in several threads at once: each gets what it gets alone, and the model stays as it was."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import StoppingCriteria

import damro
from damro.decoding.branches import fused
from damro.inspection import inspect_decoder, inspect_vit
from damro.speed.timing import counted
from damro.vision.features import patch_features
from tests.damro_cases import EVERY_FAMILY, STRENGTHS, tower_of
from tests.family_models import encoder_inputs, family_inputs, family_model
from tests.golden_cases import Inputs, fresh_model, inputs_of, model_of
from tests.test_decoding_hooks import interrupted
from tests.told import generate

OPTIONS: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
THREADS, ROUNDS = 3, 3
Work = Callable[[Any, Inputs], Any]


pytestmark = pytest.mark.usefixtures("switching")


def other_images(inputs: Inputs, key: str = "pixel_values") -> list[Inputs]:
    """The same text with three images."""
    drawn = [torch.randn(inputs[key].shape, generator=torch.Generator().manual_seed(seed)) for seed in range(THREADS)]
    return [{**inputs, key: pixels} for pixels in drawn]


def together(*works: Callable[[], Any]) -> list[Any]:
    """What each returns, or the exception it raised, from threads that begin at the same moment."""
    results: list[Any] = [None] * len(works)
    start = threading.Barrier(len(works))

    def run(number: int) -> None:
        start.wait()
        try:
            results[number] = works[number]()
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def state(model: Any) -> Any:
    """What one thread might leave for the others."""
    gc.collect()
    configs = [vars(module.config)["_attn_implementation_internal"] for module in model.modules() if has_config(module)]
    hooks = [[*m._forward_hooks, *m._forward_pre_hooks, *m._forward_pre_hooks_with_kwargs] for m in model.modules()]
    return configs, model.get_decoder().config._attn_implementation, hooks, sorted(vars(model))


def has_config(module: Any) -> bool:
    return "_attn_implementation_internal" in vars(getattr(module, "config", object))


def same(left: Any, right: Any) -> bool:
    return type(left) is type(right) and (torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right)


def check(model: Any, images: list[Inputs], work: Work) -> None:
    """Several rounds of work in threads, against the same work alone."""
    alone = [work(model, inputs) for inputs in images]
    assert not same(alone[0], alone[1])  # a mix-up would show
    before = state(model)
    rounds = together(*[lambda inputs=inputs: [work(model, inputs) for _ in range(ROUNDS)] for inputs in images])
    for expected, results in zip(alone, rounds, strict=True):
        assert isinstance(results, list), results
        assert all(same(result, expected) for result in results)
    assert state(model) == before


def write_fused(model: Any, inputs: Inputs) -> Any:
    return generate(model, inputs, strategy="fused", **STRENGTHS, **OPTIONS)


def write_lazily(model: Any, inputs: Inputs) -> Any:
    return model.generate(**inputs, logits_processor=damro.DAMROProcessor(model, inputs, **STRENGTHS), **OPTIONS)


def find_outliers(model: Any, inputs: Inputs) -> Any:
    return damro.DAMROProcessor(model, inputs, **STRENGTHS).outliers


def all_ways(model: Any, inputs: Inputs) -> Any:
    """Fused, lazy and plain one after the other, so that in threads any of them meets any other."""
    plain = model.generate(**inputs, **OPTIONS)
    written = (write_fused(model, inputs), write_lazily(model, inputs), plain)
    return torch.cat([torch.nn.functional.pad(ids, (0, 8 - ids.shape[1] % 8)) for ids in written], dim=-1)


@EVERY_FAMILY
@pytest.mark.parametrize("work", [find_outliers, all_ways], ids=lambda work: work.__name__)
def test_each_thread_gets_its_own(family: str, work: Work) -> None:
    check(model_of(family), other_images(inputs_of(f"{family}_img0")), work)


def test_the_first_runs_of_a_model_may_be_simultaneous() -> None:
    images = other_images(inputs_of("llava_img0"))
    expected = [all_ways(model_of("llava"), inputs) for inputs in images]
    model = fresh_model("llava")
    results = together(*[lambda inputs=inputs: all_ways(model, inputs) for inputs in images])
    assert [same(*pair) for pair in zip(results, expected, strict=True)] == [True] * THREADS, results


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_fused_beside_plain_decoding_under_any_attention(attention: str) -> None:
    model, images = model_of("llava", attention), other_images(inputs_of("llava_img0"))
    check(
        model,
        images,
        lambda model, inputs: torch.cat([write_fused(model, inputs), model.generate(**inputs, **OPTIONS)]),
    )


@pytest.mark.parametrize("name", ["paligemma", "video_llava_video", "llava_onevision"])
def test_other_families(name: str) -> None:
    key = "pixel_values_videos" if name == "video_llava_video" else "pixel_values"
    check(family_model(name), other_images(family_inputs(name), key), all_ways)


def test_an_encoder_decoder() -> None:
    check(family_model("instructblip-t5"), other_images(encoder_inputs("instructblip-t5", 2)), all_ways)


@EVERY_FAMILY
def test_what_is_looked_at_is_the_own_run(family: str) -> None:
    def look(model: Any, inputs: Inputs) -> Any:
        seen = inspect_vit(model, inputs)
        read = inspect_decoder(model, inputs, torch.tensor([5, 6])).columns if family == "llava" else torch.zeros(1)
        features = patch_features(model, inputs).patches
        return torch.cat([tensor.flatten() for tensor in (seen.per_head, seen.norms, read, features)])

    check(model_of(family), other_images(inputs_of(f"{family}_img0")), look)


def test_runs_of_other_threads_are_not_counted() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    with counted(tower_of(model)) as runs:
        together(*[lambda: damro.cls_attention(model, inputs)] * 2)
        assert runs == []


@pytest.mark.parametrize("family", ["llava", "instructblip-t5"])
def test_threads_may_share_a_processor(family: str) -> None:
    if family == "llava":
        model, inputs = model_of("llava"), inputs_of("llava_batch2")
    else:
        model, inputs = family_model(family), encoder_inputs(family, 2)
    processor = damro.DAMROProcessor(model, inputs, **STRENGTHS)

    def write(seed: int) -> Any:
        # Histories differ: a cache that is shared would be another thread's.
        start = {"bad_words_ids": [[seed + 20], [seed + 30]]}
        return model.generate(**inputs, logits_processor=[processor], repetition_penalty=1.0 + seed, **start, **OPTIONS)

    expected = [write(seed) for seed in range(THREADS)]
    rounds = together(*[lambda seed=seed: [write(seed) for _ in range(ROUNDS)] for seed in range(THREADS)])
    for alone, results in zip(expected, rounds, strict=True):
        assert isinstance(results, list) and all(torch.equal(ids, alone) for ids in results), results
    assert not torch.equal(expected[0], expected[1])


class Fails(StoppingCriteria):
    """Ends a generation by an error."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, input_ids: Any, scores: Any, **options: Any) -> Any:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return torch.zeros(len(input_ids), dtype=torch.bool)


@EVERY_FAMILY
def test_an_error_in_one_thread_is_none_of_the_others_business(family: str) -> None:
    model, images = model_of(family), other_images(inputs_of(f"{family}_img0"))
    expected = [write_fused(model, inputs) for inputs in images[1:]]
    before = state(model)

    def fail() -> None:
        for after in (1, 3, 5):
            with pytest.raises(KeyboardInterrupt):
                generate(model, images[0], strategy="fused", stopping_criteria=[Fails(after)], **STRENGTHS, **OPTIONS)
        narrow = {**images[0], "pixel_values": images[0]["pixel_values"][..., :13, :13]}
        with pytest.raises((RuntimeError, ValueError)):
            damro.cls_attention(model, narrow)

    works = [lambda inputs=inputs: [write_fused(model, inputs) for _ in range(ROUNDS)] for inputs in images[1:]]
    failed, *results = together(fail, *works)
    assert failed is None, failed
    for alone, written in zip(expected, results, strict=True):
        assert isinstance(written, list) and all(torch.equal(ids, alone) for ids in written), written
    assert state(model) == before
    assert torch.equal(model.generate(**images[0], **OPTIONS), model_of(family).generate(**images[0], **OPTIONS))


def test_an_interrupt_in_a_step_leaves_the_model_usable() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    before = state(model)

    def run() -> None:
        generate(model, inputs, strategy="fused", max_new_tokens=2, do_sample=False, **STRENGTHS)

    run()
    assert fused.__file__
    at = 1
    while interrupted(run, at, fused.__file__):
        assert model.get_decoder().config._attn_implementation == "sdpa", f"interrupt at instruction {at}"
        at += 13  # a sample: each costs a generation
    assert at > 100
    assert state(model) == before
