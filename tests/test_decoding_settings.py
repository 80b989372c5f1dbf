"""What a call of ``generate`` asks for is done, or refused in a sentence that begins with the name of the setting."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessor

from damro import DAMROProcessor, contrast_processor, outlier_view
from damro.decoding.compat import CACHE
from damro.decoding.errors import InputsError, ParameterError
from damro.decoding.generate import decode
from damro.decoding.settings import asks, end_tokens, setting, with_mask
from tests.family_models import MORE_FAMILIES, SINCE_5_23, encoder_inputs, family_inputs, family_model
from tests.golden_cases import FAMILIES, fresh_model, inputs_of, model_of
from tests.stateless import StatelessDAMRO
from tests.told import generate

STRENGTHS: dict[str, Any] = {"alpha": 1.0, "beta": 0.1, "top_k": 4}
STRATEGIES = ("fused", "lazy")
GREEDY: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}


def test_settings_have_the_precedence_of_generate() -> None:
    model = fresh_model("llava")
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 7, 3
    passed = {"generation_config": GenerationConfig(eos_token_id=[8, 9])}
    assert setting(model, {}, "eos_token_id") == 7
    assert setting(model, passed, "eos_token_id") == [8, 9]
    assert setting(model, passed | {"eos_token_id": None}, "eos_token_id") is None  # as generate takes it
    assert end_tokens(model, passed) == ([8, 9], 3)
    assert end_tokens(model, passed | {"pad_token_id": None}) == ([8, 9], 8)
    assert end_tokens(model, {"eos_token_id": torch.tensor([5]), "pad_token_id": None}) == ([5], 5)
    assert end_tokens(model, {"eos_token_id": None, "pad_token_id": None}) == ([], None)


def test_an_empty_cache_asks_for_something_and_a_neutral_penalty_does_not() -> None:
    model = model_of("llava")
    assert asks(model, {"cache": DynamicCache()}, "cache")
    assert not asks(model, {"encoder_repetition_penalty": 1.0}, "encoder_repetition_penalty")
    assert asks(model, {"encoder_repetition_penalty": 1.1}, "encoder_repetition_penalty")
    assert not asks(model, {}, "stop_strings") and not asks(model, {"synced_gpus": False}, "synced_gpus")


# Padding and ends are those of the call


def unmasked(pad: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Padded inputs with their mask and without it."""
    inputs = inputs_of("llava_batch2")
    ids = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, pad)
    masked = inputs | {"input_ids": ids}
    return masked, {key: value for key, value in masked.items() if key != "attention_mask"}


@pytest.mark.parametrize(
    "call", [{"pad_token_id": 4}, {"generation_config": GenerationConfig(pad_token_id=4)}], ids=str
)
def test_a_mask_is_inferred_by_the_padding_token_of_the_call(call: dict[str, Any]) -> None:
    model = fresh_model("llava")
    model.generation_config.pad_token_id = None
    masked, bare = unmasked(4)
    told = with_mask(model, bare, call)
    assert torch.equal(told["attention_mask"], masked["attention_mask"]) and not bool(told["attention_mask"].all())
    expected = model.generate(
        **masked, logits_processor=[StatelessDAMRO(model, masked, **STRENGTHS)], **GREEDY, pad_token_id=4
    )
    contrast = outlier_view(model, told, **STRENGTHS).contrast
    for strategy in STRATEGIES:
        assert torch.equal(decode(model, bare, contrast, strategy=strategy, **call, **GREEDY), expected)


def test_no_mask_is_inferred_where_generate_infers_none() -> None:
    model, (masked, bare) = model_of("llava"), unmasked(4)
    assert with_mask(model, masked, {"pad_token_id": 1}) is masked
    assert bool(with_mask(model, bare, {"pad_token_id": 4, "eos_token_id": [4, 5]})["attention_mask"].all())
    columns = {key: value for key, value in inputs_of("instructblip_batch2").items() if key != "attention_mask"}
    assert "attention_mask" not in with_mask(model_of("instructblip"), columns, {"pad_token_id": 0})


def test_prompts_made_with_another_mask_than_that_of_the_call_are_refused() -> None:
    model, (_, bare) = model_of("llava"), unmasked(4)
    for strategy in STRATEGIES:
        with pytest.raises(InputsError, match="^inputs must hold attention_mask .* pad_token_id 4"):
            decode(model, bare, outlier_view(model, bare, **STRENGTHS).contrast, strategy=strategy, pad_token_id=4)


def test_a_processor_is_not_made_where_padding_cannot_be_told() -> None:
    model, (_, bare) = model_of("llava"), unmasked(4)
    for make in (DAMROProcessor, lambda model, inputs, **_: contrast_processor(model, inputs, method="vcd")):
        with pytest.raises(InputsError, match=r"^inputs must hold attention_mask .* first tokens \[1, 4\]|\[4, 1\]"):
            make(model, bare, **STRENGTHS)
    alone = {key: value[:1] for key, value in bare.items()}
    DAMROProcessor(model, alone, **STRENGTHS)


class Forced(LogitsProcessor):
    """Writes a fixed answer, whatever the scores; keeps them."""

    def __init__(self, prompt: int, answer: Tensor) -> None:
        self.prompt, self.answer, self.seen = prompt, answer, list[Tensor]()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.seen.append(scores)
        step = input_ids.shape[1] - self.prompt
        return torch.full_like(scores, -torch.inf).scatter(1, self.answer[:, step : step + 1], 0.0)


class Raised(Forced):
    """Makes that answer the model's own best guess, by a little."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.prompt
        best = scores.amax(dim=-1, keepdim=True) + 0.1
        return scores.scatter(1, self.answer[:, step : step + 1], best)


def test_a_row_ends_by_the_tokens_of_the_call_and_not_by_those_of_the_model() -> None:
    """The answers hold what the model's own settings would call an end and padding."""
    model, inputs = fresh_model("llava"), inputs_of("llava_batch2")
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 0
    answer = torch.tensor([[40, 2, 0, 0, 41, 42], [60, 2, 0, 0, 0, 61]])
    options = {"eos_token_id": 199, "max_new_tokens": 6, "do_sample": False}
    prompt, by_hand = inputs["input_ids"].shape[1], StatelessDAMRO(model, inputs, **STRENGTHS)
    right, got = Forced(prompt, answer), Forced(prompt, answer)
    for contrast, own in ((by_hand, right), (DAMROProcessor(model, inputs, **STRENGTHS), got)):
        model.generate(**inputs, logits_processor=[Raised(prompt, answer), contrast, own], **options)
    same_scores(got, right)
    right = Forced(prompt, answer)
    model.generate(**inputs, logits_processor=[by_hand, right], **options)
    for strategy in STRATEGIES:
        got = Forced(prompt, answer)
        generate(model, inputs, strategy=strategy, logits_processor=[got], **STRENGTHS, **options)
        same_scores(got, right)


def same_scores(got: Forced, right: Forced) -> None:
    assert len(got.seen) == 6
    for one, other in zip(got.seen, right.seen, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=0)


# The call's own cache, loop and processors


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("key", ["cache", "past_key_values"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_of_the_caller_s_holds_the_prompt_and_the_answer(family: str, key: str, strategy: str) -> None:
    model, inputs = model_of(family), inputs_of(f"{family}_img0")
    ours, stock = DynamicCache(), DynamicCache()
    expected = model.generate(
        **inputs, logits_processor=DAMROProcessor(model, inputs, **STRENGTHS), **GREEDY, **{CACHE: stock}
    )
    got = generate(model, inputs, strategy=strategy, **STRENGTHS, **GREEDY, **{key: ours})
    assert torch.equal(got, expected)
    assert ours.get_seq_length() == stock.get_seq_length() >= inputs["input_ids"].shape[1] + 7


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_loop_of_the_caller_s_runs_with_the_contrast(strategy: str) -> None:
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    seen: list[Any] = []

    def loop(model: Any, input_ids: Tensor, logits_processor: Any, **others: Any) -> Tensor:
        seen.extend(logits_processor)
        return input_ids

    ids = generate(model, inputs, strategy=strategy, custom_generate=loop, **STRENGTHS, **GREEDY)
    assert torch.equal(ids, inputs["input_ids"]) and [type(it).__name__ for it in seen] == ["RuleProcessor"]


def test_a_bare_processor_is_a_list_of_one() -> None:
    class Ban(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            return scores.index_fill(1, torch.arange(100), -torch.inf)

    model, inputs = model_of("llava"), inputs_of("llava_img0")
    for method in ("greedy", "damro"):
        options = GREEDY | {"method": method} | (STRENGTHS if method == "damro" else {})
        bare = generate(model, inputs, logits_processor=Ban(), **options)
        assert torch.equal(bare, generate(model, inputs, logits_processor=[Ban()], **options))
        assert bool((bare[:, inputs["input_ids"].shape[1] :] >= 100).all())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_second_contrast_is_refused_and_a_first_one_is_not(strategy: str) -> None:
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    processor = DAMROProcessor(model, inputs, **STRENGTHS)
    for given in (processor, [processor]):
        with pytest.raises(ParameterError, match="^logits_processor must not hold a contrast beside"):
            generate(model, inputs, strategy=strategy, logits_processor=given, **STRENGTHS, **GREEDY)
    expected = model.generate(**inputs, logits_processor=processor, **GREEDY)
    plain = generate(model, inputs, method="greedy", strategy=strategy, logits_processor=processor, **GREEDY)
    assert torch.equal(plain, expected)


# What goes by the tokens of the prompt


@pytest.mark.parametrize("method", ["greedy", "no-image"])
@pytest.mark.parametrize("name", ["llava", "llava_next", *MORE_FAMILIES])
def test_a_prompt_read_in_chunks_is_read_as_in_one(name: str, method: str) -> None:
    golden = name in FAMILIES
    model = model_of(name) if golden else family_model(name.removesuffix("_video"))
    inputs = inputs_of(f"{name}_batch2") if golden else family_inputs(name)
    options: dict[str, Any] = GREEDY | {"method": method}
    options |= {} if method == "greedy" else {"alpha": 1.0, "beta": 0.1}
    expected = generate(model, inputs, **options)
    for size in (1, 7, 500):
        if name in ("blip-2", "instructblipvideo", "paligemma") or not SINCE_5_23:
            with pytest.raises(ParameterError, match="^prefill_chunk_size must be left out where the prompt is "):
                generate(model, inputs, prefill_chunk_size=size, **options)
        else:
            assert torch.equal(generate(model, inputs, prefill_chunk_size=size, **options), expected)


@pytest.mark.parametrize("name", ["vipllava", "video_llava", "video_llava_video", "llava_onevision"])
def test_drafts_see_images_and_videos(name: str) -> None:
    model, inputs = family_model(name), {key: value[:1] for key, value in family_inputs(name).items()}
    expected = generate(model, inputs, method="greedy", **GREEDY)
    assert torch.equal(generate(model, inputs, method="greedy", prompt_lookup_num_tokens=3, **GREEDY), expected)


@pytest.mark.parametrize("more", [{"num_beams": 2}, {"num_return_sequences": 3, "do_sample": True}], ids=str)
@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_every_sequence_of_a_prompt_has_the_images_of_that_prompt(name: str, more: dict[str, Any]) -> None:
    model, inputs = model_of(name), inputs_of(f"{name}_batch2")
    options = GREEDY | {"encoder_repetition_penalty": 1.5} | more
    torch.manual_seed(0)
    expected = model.generate(**inputs, **options)
    torch.manual_seed(0)
    assert torch.equal(generate(model, inputs, method="greedy", **options), expected)


@pytest.mark.parametrize("option", [{"encoder_repetition_penalty": 2.0}, {"encoder_no_repeat_ngram_size": 1}], ids=str)
def test_penalties_of_the_prompt_s_tokens_count_or_are_refused(option: dict[str, Any]) -> None:
    model, inputs = model_of("llava"), inputs_of("llava_batch2")
    expected = model.generate(**inputs, **option, **GREEDY)
    assert torch.equal(generate(model, inputs, method="greedy", **option, **GREEDY), expected)
    assert not torch.equal(expected, model.generate(**inputs, **GREEDY))
    (name,) = option
    cases = [
        (model, inputs, {"keep_tokens": 8}),
        (model_of("instructblip"), inputs_of("instructblip_batch2"), {}),
        (family_model("blip-2-t5"), encoder_inputs("blip-2-t5", 2), {}),
    ]
    for other, prompts, more in cases:
        with pytest.raises(ParameterError, match=f"^{name} must be left out where the prompt is "):
            generate(other, prompts, method="greedy", **more, **option, **GREEDY)


# What is refused


@pytest.mark.parametrize("method", ["greedy", "damro"])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"attention_mask": torch.ones(1, 22)}, "attention_mask must stand in inputs"),
        ({"position_ids": torch.arange(22)[None]}, "position_ids must stand in inputs"),
        ({"inputs_embeds": torch.zeros(1, 22, 32)}, "inputs_embeds must stand in inputs"),
        ({"token_healing": True}, "token_healing must be left out, as it changes the prompt, got True"),
        ({"is_assistant": True}, "is_assistant must be left out, as it is for models that draft, got True"),
        ({"cache_implementation": "paged"}, "cache_implementation must not be 'paged'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_would_be_passed_over_is_refused_by_its_name(method: str, option: dict[str, Any], message: str) -> None:
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    strengths = STRENGTHS if method == "damro" else {}
    for strategy in STRATEGIES:
        with pytest.raises(ParameterError, match=f"^{message}"):
            generate(model, inputs, method=method, strategy=strategy, **strengths, **option)
