"""The fast path gives what stock ``generate`` with the processor gives, and does less for it."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from golden_cases import FAMILIES, NEW_TOKENS, Inputs, fresh_model, inputs_of, model_of
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria

import damro.decoding.branches.fused
from damro import DAMROProcessor, outlier_view
from damro.decoding.branches.fused import can_branch
from damro.decoding.branches.kv import ROOM
from damro.decoding.errors import NonFiniteScoresError, ParameterError
from damro.decoding.families import family_of
from damro.decoding.generate import choose_strategy, decode
from damro.decoding.prompts import VisualPrompt
from damro.decoding.rules import Contrast
from damro.speed.shapes import SHAPES, random_inputs, random_model
from damro.speed.timing import counted
from tests.told import generate

STRENGTH: dict[str, Any] = {"alpha": 1.0, "top_k": 3}
MANY_ENDS = [5, 9, 20, 30, 41, 43, 60, 70, 80, 90, 100, 120]
STRATEGIES = ("fused", "lazy")


def batch_of(family: str, rows: int) -> Inputs:
    """Prompts of different length about different images; one of them is the golden one."""
    one = inputs_of(f"{family}_img0")
    random = torch.Generator().manual_seed(3)
    tails = [torch.randint(5, 190, (length,), generator=random) for length in (0, 4, 1)[:rows]]
    prompts = [torch.cat([one["input_ids"][0], tail]) for tail in tails]
    width = max(map(len, prompts))
    ids = torch.stack([torch.nn.functional.pad(prompt, (width - len(prompt), 0)) for prompt in prompts])
    mask = torch.stack([torch.arange(width) >= width - len(prompt) for prompt in prompts]).long()
    inputs = {key: torch.cat([value] * rows) for key, value in one.items()} | {"input_ids": ids, "attention_mask": mask}
    noise = torch.randn(inputs["pixel_values"].shape, generator=random)
    noise[0] = 0
    return inputs | {"pixel_values": inputs["pixel_values"] + noise}


def stock(model: Any, inputs: Inputs, seed: int = 0, own: tuple[Any, ...] = (), **options: Any) -> Any:
    torch.manual_seed(seed)
    processor = DAMROProcessor(model, inputs, **STRENGTH)
    return model.generate(**inputs, logits_processor=[processor, *own], **options)


def fast(model: Any, inputs: Inputs, strategy: Any = "fused", seed: int = 0, **options: Any) -> Any:
    contrast = outlier_view(model, inputs, **STRENGTH).contrast
    torch.manual_seed(seed)
    return decode(model, inputs, contrast, strategy=strategy, **options)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_the_processor_s(family: str, rows: int, strategy: str) -> None:
    model, inputs = model_of(family), batch_of(family, rows)
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
    expected = stock(model, inputs, **options)
    assert torch.equal(fast(model, inputs, strategy, **options), expected)
    plain = model.generate(**inputs, **options)
    assert not torch.equal(plain, expected)  # the contrast does something here


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_sampling_draws_the_same_numbers(family: str, rows: int) -> None:
    model, inputs = model_of(family), batch_of(family, rows)
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": True, "temperature": 1.4, "top_p": 0.9, "top_k": 40}
    expected = stock(model, inputs, seed=7, **options)
    assert torch.equal(fast(model, inputs, seed=7, **options), expected)
    assert not torch.equal(fast(model, inputs, seed=8, **options), expected)


def test_eager_attention_gives_the_same_tokens() -> None:
    model, inputs = model_of("llava", "eager"), batch_of("llava", 3)
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
    assert torch.equal(fast(model, inputs, **options), stock(model, inputs, **options))


def test_longer_than_the_room_that_is_allocated_ahead() -> None:
    model, inputs = model_of("llava"), batch_of("llava", 3)
    options = {"max_new_tokens": ROOM + 10, "do_sample": True}
    assert torch.equal(fast(model, inputs, **options), stock(model, inputs, **options))


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_end_by_themselves_and_leave_the_batch(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = model_of(family), batch_of(family, 3)
    options = {"max_new_tokens": 40, "do_sample": True, "eos_token_id": MANY_ENDS, "pad_token_id": 0}
    sizes: list[int] = []
    attend = damro.decoding.branches.fused.sdpa_attention_forward

    def watched(module: Any, query: Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(query))
        return attend(module, query, *args, **kwargs)

    monkeypatch.setattr(damro.decoding.branches.fused, "sdpa_attention_forward", watched)
    expected = stock(model, inputs, num_return_sequences=4, **options)
    got = fast(model, inputs, num_return_sequences=4, **options)
    assert torch.equal(got, expected)
    assert min(sizes) <= 3 and sizes == sorted(sizes, reverse=True)


SETTINGS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"min_new_tokens": 8, "eos_token_id": MANY_ENDS, "pad_token_id": 0},
    {"bad_words_ids": [[41], [190, 139]], "no_repeat_ngram_size": 2},
    {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "num_return_sequences": 2},
    {"generation_config": GenerationConfig(max_new_tokens=9, do_sample=True, top_k=5, pad_token_id=0)},
    {"num_beams": 3},
    {"prompt_lookup_num_tokens": 3},
    {"use_cache": False},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: next(iter(settings)))
def test_every_setting_acts_as_with_the_processor(settings: dict[str, Any]) -> None:
    options = dict(settings) if "generation_config" in settings else {"max_new_tokens": 12, **settings}
    rows = 1 if "prompt_lookup_num_tokens" in settings else 3
    model, inputs = model_of("llava"), batch_of("llava", rows)
    expected = stock(model, inputs, **options)
    for strategy in STRATEGIES:
        assert torch.equal(fast(model, inputs, strategy, **options), expected)


def test_own_processors_stand_behind_the_contrast() -> None:
    model, inputs = model_of("llava"), batch_of("llava", 1)
    seen: dict[str, list[Tensor]] = {"fused": [], "lazy": []}
    for strategy, kept in seen.items():

        def keep(input_ids: Tensor, scores: Tensor, kept: list[Tensor] = kept) -> Tensor:
            kept.append(scores)
            return scores

        fast(model, inputs, strategy, logits_processor=[keep], max_new_tokens=4)
    for one, other in zip(seen["fused"], seen["lazy"], strict=True):
        assert torch.isneginf(one).any()
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_logits_are_the_stock_loop_s(family: str) -> None:
    model, inputs = model_of(family), batch_of(family, 3)
    options = {
        "max_new_tokens": 10,
        "return_dict_in_generate": True,
        "output_scores": True,
        "output_logits": True,
        "eos_token_id": MANY_ENDS,
        "pad_token_id": 0,
    }
    expected, got = stock(model, inputs, **options), fast(model, inputs, **options)
    assert type(got) is type(expected) and torch.equal(got.sequences, expected.sequences)
    assert len(got.scores) == len(expected.scores) == len(got.logits)
    for one, other in zip(got.scores + got.logits, expected.scores + expected.logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=0)


class Collector:
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        self.got: list[list[Any]] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.got.append(value.tolist())

    def end(self) -> None:
        self.ended = True


def test_streamer_gets_what_the_stock_loop_gives_it() -> None:
    model, inputs = model_of("llava"), batch_of("llava", 3)
    stock_stream, stream = Collector(), Collector()
    stock(model, inputs, max_new_tokens=5, streamer=stock_stream)
    fast(model, inputs, max_new_tokens=5, streamer=stream)
    assert stream.ended and stream.got == stock_stream.got and len(stream.got) == 6


class StopBehind(StoppingCriteria):
    """Ends row r once it has written r + 2 tokens."""

    def __init__(self, prompt: int) -> None:
        self.prompt = prompt

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.arange(len(input_ids)) + 2 <= input_ids.shape[1] - self.prompt


def test_stopping_criteria_end_each_row() -> None:
    model, inputs = model_of("llava"), batch_of("llava", 3)
    options = {"max_new_tokens": 12, "stopping_criteria": [StopBehind(inputs["input_ids"].shape[1])]}
    expected = stock(model, inputs, **options)
    assert expected.shape[1] == inputs["input_ids"].shape[1] + 4
    assert torch.equal(fast(model, inputs, **options), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_forward_a_token_and_none_of_the_vision_tower(family: str) -> None:
    model, inputs = model_of(family), batch_of(family, 3)
    module = family_of(model)
    with counted(module.vision_tower(model)) as vision:
        contrast = outlier_view(model, inputs, **STRENGTH).contrast
        with counted(module.decoder(model).get_decoder()) as passes:
            decode(model, inputs, contrast, strategy="fused", max_new_tokens=8)
    assert len(vision) == 1
    assert len(passes) == 2 + 7  # two prompts; the first token comes of them


def test_no_branch_is_padded_to_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = model_of("llava"), batch_of("llava", 1)
    contrast = outlier_view(model, inputs, **STRENGTH).contrast
    columns: list[tuple[int, bool]] = []
    attend = damro.decoding.branches.fused.sdpa_attention_forward

    def watched(module: Any, query: Tensor, keys: Tensor, values: Tensor, mask: Any, **kwargs: Any) -> Any:
        columns.append((keys.shape[2], mask is None))
        return attend(module, query, keys, values, mask, **kwargs)

    monkeypatch.setattr(damro.decoding.branches.fused, "sdpa_attention_forward", watched)
    decode(model, inputs, contrast, strategy="fused", max_new_tokens=2)
    full, negative = contrast.full.attention_mask.shape[1], contrast.negative.attention_mask.shape[1]
    assert full - negative == 16 - 3
    assert set(columns) == {(full + 1, True), (negative + 1, True)}


def test_the_model_s_attention_is_put_back_also_after_an_error() -> None:
    model, inputs = fresh_model("llava"), batch_of("llava", 1)
    config = model.get_decoder().config
    usual = config._attn_implementation
    seen = []

    def fail(*_: Any) -> None:
        seen.append(config._attn_implementation)
        if len(seen) == 3:  # the two prompts, then a step
            raise RuntimeError("stop")

    model.lm_head.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="stop"):
        fast(model, inputs, max_new_tokens=4)
    assert seen[:2] == [usual, usual] and seen[2] != usual
    assert config._attn_implementation == usual


@pytest.mark.parametrize("do_sample", [False, True])
def test_scores_that_are_no_numbers_are_an_error(do_sample: bool) -> None:
    model, inputs = fresh_model("llava"), batch_of("llava", 3)
    contrast = outlier_view(model, inputs, **STRENGTH).contrast
    model.lm_head.register_forward_hook(lambda module, args, output: output.index_fill(0, torch.tensor([1]), torch.nan))
    with pytest.raises(NonFiniteScoresError, match="NaN"):
        decode(model, inputs, contrast, strategy="fused", max_new_tokens=4, do_sample=do_sample)


class Fading:
    """A rule whose weight depends on the step and that never does without the negative logits."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def needed(self, full: Tensor, step: int) -> Tensor:
        return torch.ones_like(full, dtype=torch.bool)

    def __call__(self, full: Tensor, negative: Tensor | None, step: int) -> Tensor:
        assert negative is not None
        self.steps.append(step)
        return torch.log_softmax(full + 0.5**step * (full - negative), dim=-1)


def test_a_rule_sees_the_step_and_may_forbid_skipping() -> None:
    model, inputs = model_of("llava"), batch_of("llava", 3)
    view = outlier_view(model, inputs, **STRENGTH).contrast
    outputs = []
    for strategy in STRATEGIES:
        rule = Fading()
        options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "strategy": strategy}
        outputs.append(decode(model, inputs, Contrast(view.full, view.negative, rule), **options))
        assert rule.steps == list(range(6))
    assert torch.equal(*outputs)


def test_a_sliding_window_is_left_to_the_stock_loop() -> None:
    model, inputs = fresh_model("llava"), batch_of("llava", 1)
    assert can_branch(model)
    model.get_decoder().config.sliding_window = 8
    assert not can_branch(model)
    assert torch.equal(fast(model, inputs, "fused", max_new_tokens=6), fast(model, inputs, "lazy", max_new_tokens=6))


def test_a_prompt_alone_is_decoded_plainly() -> None:
    model, inputs = model_of("instructblip"), batch_of("instructblip", 3)
    full = outlier_view(model, inputs, **STRENGTH).contrast.full
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    assert torch.equal(decode(model, inputs, full, **options), model.generate(**inputs, **options))


def test_auto_is_lazy_for_one_row_in_float32_on_a_cpu() -> None:
    def prompt(rows: int, dtype: torch.dtype) -> VisualPrompt:
        mask = torch.ones(rows, 2, dtype=torch.long)
        return VisualPrompt(torch.zeros(rows, 2, 4, dtype=dtype), mask, mask.bool())

    assert choose_strategy(prompt(1, torch.float32)) == "lazy"
    assert choose_strategy(prompt(2, torch.float32)) == "fused"
    assert choose_strategy(prompt(1, torch.bfloat16)) == "fused"


def test_bad_strategies_are_named() -> None:
    model, inputs = model_of("llava"), batch_of("llava", 1)
    full = outlier_view(model, inputs, **STRENGTH).contrast.full
    wrong: Any = "quick"
    with pytest.raises(ParameterError, match="'quick'"):
        decode(model, inputs, full, strategy=wrong)
    with pytest.raises(ParameterError, match="'lazy'"):
        decode(model, inputs, full, strategy="lazy", shared_prefix=True)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("part", ["model", "language model"])
def test_a_compiled_model_gives_the_same_tokens(part: str) -> None:
    model = random_model(SHAPES["micro"])
    inputs = random_inputs(model, 2)
    options: dict[str, Any] = {"alpha": 1.0, "top_k": 3, "max_new_tokens": 6, "do_sample": False}
    expected = {strategy: generate(model, inputs, strategy=strategy, **options) for strategy in STRATEGIES}
    compiled = model if part == "model" else model.get_decoder()
    compiled.forward = torch.compile(compiled.forward)
    for strategy, ids in expected.items():
        assert torch.equal(generate(model, inputs, strategy=strategy, **options), ids)
