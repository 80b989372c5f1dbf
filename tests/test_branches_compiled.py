"""A compiled step gives the tokens of the uncompiled one; one graph serves token after token; the rest is refused."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from golden_cases import model_of
from torch._dynamo.exc import Unsupported
from torch._dynamo.utils import counters
from transformers import Lfm2Config

import damro
import damro.decoding.branches.compiling as compiling
from damro.decoding.branches.kv import ROOM
from damro.decoding.errors import ParameterError, UnsupportedModelError
from damro.decoding.families import family_of
from damro.speed.shapes import SHAPES, random_inputs, random_model
from tests.llava_models import llava_inputs, llava_of
from tests.test_decoding_generate import MANY_ENDS, batch_of, fast

DAMRO = "damro:alpha=2,beta=0.1,top_k=4"


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Steps run as they would be compiled, without waiting for a compiler; returns what was handed to it."""
    handed: list[Any] = []

    def instead(step: Any, **options: Any) -> Any:
        handed.append(options)
        return step

    monkeypatch.setattr(torch, "compile", instead)
    monkeypatch.setattr(compiling, "_lacks_compiler", lambda device: None)
    compiling._GRAPHS.clear()
    return handed


def both(generate: Callable[..., Any], **options: Any) -> tuple[Any, Any]:
    """What a call returns compiled and not, with its logits."""
    asked = {"return_dict_in_generate": True, "output_logits": True, **options}
    return generate(compile=True, **asked), generate(**asked)


def assert_same(one: Any, other: Any) -> None:
    assert torch.equal(one.sequences, other.sequences)
    for mine, theirs in zip(one.logits, other.logits, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_a_contrast_is_that_of_the_uncompiled_step_beyond_its_first_room(
    interpreted: list[Any], family: str, rows: int
) -> None:
    model, inputs = model_of(family), batch_of(family, rows)
    length = {"max_new_tokens": ROOM + 6, "min_new_tokens": ROOM + 6, "do_sample": False}
    one, other = both(lambda **options: fast(model, inputs, strategy="auto", **options), **length)
    other = fast(model, inputs, **length, return_dict_in_generate=True, output_logits=True)
    assert_same(one, other)


def test_rows_that_end_are_dropped(interpreted: list[Any]) -> None:
    model, inputs = model_of("llava"), batch_of("llava", 3)
    options = {"max_new_tokens": 16, "eos_token_id": MANY_ENDS, "pad_token_id": 0, "do_sample": False}
    assert torch.equal(fast(model, inputs, strategy="auto", compile=True, **options), fast(model, inputs, **options))


def test_returned_sequences_are_drawn_alike(interpreted: list[Any]) -> None:
    model, inputs = model_of("llava"), batch_of("llava", 2)
    options = {"max_new_tokens": 8, "do_sample": True, "num_return_sequences": 3}
    assert torch.equal(fast(model, inputs, strategy="auto", compile=True, **options), fast(model, inputs, **options))


@pytest.mark.parametrize("method", ["greedy", DAMRO, "no-image:alpha=1,beta=0.1"])
@pytest.mark.parametrize("shape", ["micro", "micro-qwen2.5-vl"])
def test_shapes_of_released_models(interpreted: list[Any], shape: str, method: str) -> None:
    model = random_model(SHAPES[shape])
    inputs = random_inputs(model, 2)
    options = {"max_new_tokens": 8, "do_sample": False}
    assert_same(*both(lambda **more: damro.generate(model, inputs, method, **more), **options))


def test_a_shared_prefix_is_continued(interpreted: list[Any]) -> None:
    model = random_model(SHAPES["micro"])
    inputs = random_inputs(model, 3, same_image=True)
    options = {"max_new_tokens": 8, "do_sample": False, "shared_prefix": True}
    assert_same(*both(lambda **more: damro.generate(model, inputs, DAMRO, **more), **options))


def test_other_weights_are_compiled_anew(interpreted: list[Any]) -> None:
    model = random_model(SHAPES["micro"])
    inputs = random_inputs(model, 1)
    options = {"max_new_tokens": 4, "do_sample": False}
    for _ in range(2):
        damro.generate(model, inputs, "greedy", compile=True, **options)
    assert len(interpreted) == 1
    with torch.no_grad():
        model.lm_head.weight.neg_()
    changed = damro.generate(model, inputs, "greedy", compile=True, **options)
    assert len(interpreted) == 2
    assert torch.equal(changed, damro.generate(model, inputs, "greedy", **options))


def test_weights_are_packed_on_a_cpu_whose_memory_holds_them_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    model = random_model(SHAPES["micro"])
    decoder: Any = family_of(model).decoder(model)
    size = sum(weight.nbytes for weight in decoder.parameters())
    for room, packed in (((1 << 30) + size, False), ((1 << 30) + 3 * size, True)):
        monkeypatch.setattr("psutil.virtual_memory", lambda room=room: SimpleNamespace(available=room))
        assert compiling.packs(decoder) is packed
    assert compiling.packs(decoder.to(torch.bfloat16))
    assert not compiling.packs(decoder.to(torch.float16))
    assert not compiling.packs(decoder.to(torch.float32).to("meta"))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert not compiling.packs(family_of(model).decoder(random_model(SHAPES["micro"])))


@pytest.mark.parametrize(
    ("options", "method"),
    [
        ({"strategy": "lazy"}, DAMRO),
        ({"num_beams": 2}, DAMRO),
        ({"output_attentions": True, "return_dict_in_generate": True}, DAMRO),
        ({"prompt_lookup_num_tokens": 2}, "greedy"),
        ({"use_cache": False}, "greedy"),
    ],
)
def test_what_only_other_loops_offer_is_refused(interpreted: list[Any], options: dict[str, Any], method: str) -> None:
    model = random_model(SHAPES["micro"])
    with pytest.raises(ParameterError, match="compile must stand with strategy 'auto' or 'fused'"):
        damro.generate(model, random_inputs(model, 1), method, compile=True, max_new_tokens=2, **options)


@pytest.mark.parametrize("method", ["pai:from_layer=0,to_layer=2", "dola", "opera"])
def test_methods_that_look_inside_or_search_are_refused(interpreted: list[Any], method: str) -> None:
    model = random_model(SHAPES["micro"])
    with pytest.raises(ParameterError, match="compile must be left out with a method that"):
        damro.generate(model, random_inputs(model, 1), method, compile=True, max_new_tokens=2)


def test_states_and_encoders_are_refused(interpreted: list[Any]) -> None:
    hybrid = llava_of({"model_type": "lfm2", "layer_types": ["conv", "full_attention"]})
    assert isinstance(hybrid.config.text_config, Lfm2Config)
    with pytest.raises(UnsupportedModelError, match="this llava, as it keeps states beside keys and values"):
        damro.generate(hybrid, llava_inputs(), "greedy", compile=True, max_new_tokens=2)


def test_quantized_and_offloaded_weights_are_refused(interpreted: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(SHAPES["micro"])
    decoder: Any = family_of(model).decoder(model)
    monkeypatch.setattr(decoder, "is_quantized", True, raising=False)
    assert compiling.why_interpreted(decoder) == "its weights are quantized"
    monkeypatch.undo()
    decoder.lm_head = decoder.lm_head.to("meta")
    assert "several devices" in str(compiling.why_interpreted(decoder))


def test_a_machine_without_a_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    model = random_model(SHAPES["micro"])
    with pytest.raises(UnsupportedModelError, match=r"as there is no C\+\+ compiler here"):
        damro.generate(model, random_inputs(model, 1), "greedy", compile=True, max_new_tokens=2)


def test_a_compiler_that_gives_up_is_told_in_a_sentence(
    interpreted: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> Any:
        raise Unsupported("data-dependent branching\nand a page of it", case_name="any")

    monkeypatch.setattr(torch, "compile", lambda step, **options: refuse)
    model = random_model(SHAPES["micro"])
    with pytest.raises(UnsupportedModelError, match="torch cannot compile: .*; decode without it$") as told:
        damro.generate(model, random_inputs(model, 1), "greedy", compile=True, max_new_tokens=2)
    assert "\n" not in str(told.value)


@pytest.mark.slow
def test_one_graph_serves_all_tokens_and_calls() -> None:
    model = random_model(SHAPES["micro"])
    compiling._GRAPHS.clear()
    graphs = counters["stats"]["unique_graphs"]
    for rows, made in ((3, 1), (2, 1), (1, 2)):  # of one row the compiler makes a graph of its own
        inputs = random_inputs(model, rows)
        options = {"max_new_tokens": 2 * ROOM + 8, "do_sample": False}
        one, other = both(lambda **more: damro.generate(model, inputs, DAMRO, **more), **options)  # noqa: B023
        assert_same(one, other)
        assert counters["stats"]["unique_graphs"] == graphs + made


@pytest.mark.slow
def test_packed_bfloat16_computes_what_the_step_does() -> None:
    model = random_model(SHAPES["micro"], dtype=torch.bfloat16)
    inputs = random_inputs(model, 1)
    one, other = both(lambda **more: damro.generate(model, inputs, DAMRO, **more), max_new_tokens=2, do_sample=False)
    for mine, theirs in zip(one.logits, other.logits, strict=True):
        torch.testing.assert_close(mine, theirs, atol=0.125, rtol=0.0)  # a step between numbers of 16 to 32
