"""DAMROProcessor under what ``generate`` of stock transformers offers, one call after another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from tests.damro_cases import EVERY_FAMILY, STRENGTHS, damro, stateless, write
from tests.golden_cases import prompt_length
from tests.stateless import StatelessDAMRO

# What `generate` may be told


@EVERY_FAMILY
@pytest.mark.parametrize("name", ["img0", "batch2"])
def test_greedy_equals_a_stateless_recomputation(family, name):
    model, inputs, processor = damro(family, name)
    expected = write(model, inputs, stateless(model, inputs))
    assert torch.equal(write(model, inputs, processor), expected)
    assert not torch.equal(write(model, inputs, None), expected)  # else nothing was shown


@EVERY_FAMILY
def test_bare_in_a_list_and_in_a_processor_list(family):
    model, inputs, processor = damro(family)
    bare = write(model, inputs, processor)
    assert torch.equal(write(model, inputs, [processor]), bare)
    assert torch.equal(write(model, inputs, LogitsProcessorList([processor])), bare)


@EVERY_FAMILY
@pytest.mark.parametrize(
    "options",
    [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 3}, {"num_beams": 3, "length_penalty": 0.5}],
    ids=str,
)
def test_beam_search_equals_a_stateless_recomputation(family, options):
    model, inputs, processor = damro(family)
    expected = write(model, inputs, stateless(model, inputs), **options)
    assert torch.equal(write(model, inputs, processor, **options), expected)


@EVERY_FAMILY
def test_beam_search_over_a_padded_batch_with_an_end_token(family):
    model, inputs, processor = damro(family, "batch2")
    options = {"num_beams": 3, "eos_token_id": list(range(60)), "pad_token_id": 0}
    expected = write(model, inputs, stateless(model, inputs), **options)
    assert torch.equal(write(model, inputs, processor, **options), expected)


def test_sampled_beams_equal_a_stateless_recomputation():
    model, inputs, processor = damro("llava")
    options = {"num_beams": 3, "do_sample": True, "temperature": 1.5}
    torch.manual_seed(3)
    expected = write(model, inputs, stateless(model, inputs), **options)
    torch.manual_seed(3)
    assert torch.equal(write(model, inputs, processor, **options), expected)


@EVERY_FAMILY
def test_prompt_lookup_equals_greedy(family):
    model, inputs, processor = damro(family)
    expected = write(model, inputs, stateless(model, inputs), max_new_tokens=16)
    found = write(model, inputs, processor, max_new_tokens=16, prompt_lookup_num_tokens=4, max_matching_ngram_size=1)
    assert torch.equal(found, expected)


def test_an_assistant_model_changes_nothing():
    model, inputs, processor = damro("llava")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    assistant = LlamaForCausalLM(LlamaConfig(vocab_size=200, pad_token_id=0, eos_token_id=None, **shape)).eval()
    expected = write(model, inputs, processor)
    assert torch.equal(write(model, inputs, processor, assistant_model=assistant), expected)


@EVERY_FAMILY
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0, "top_k": 0},
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 2.0, "top_k": 20, "num_return_sequences": 3},
    ],
    ids=str,
)
def test_sampling_equals_a_stateless_recomputation(family, options):
    model, inputs, processor = damro(family, "batch2")
    drawn = []
    for logits_processor in (processor, stateless(model, inputs), processor):
        torch.manual_seed(42)
        drawn.append(write(model, inputs, logits_processor, do_sample=True, max_new_tokens=6, **options))
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


@EVERY_FAMILY
@pytest.mark.parametrize(
    "options",
    [
        {"use_cache": False},
        {"cache_implementation": "static", "disable_compile": True},
        {"renormalize_logits": True},
        {"generation_config": GenerationConfig(max_new_tokens=8, do_sample=False, pad_token_id=0)},
        {"remove_invalid_values": False, "output_logits": True, "return_dict_in_generate": False},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_that_must_not_change_the_tokens(family, options):
    model, inputs, processor = damro(family)
    assert torch.equal(write(model, inputs, processor, **options), write(model, inputs, processor))


@EVERY_FAMILY
def test_processors_before_it_are_heard(family):
    """``generate`` forbids end tokens first; a forbidden token must stay forbidden behind the contrast."""
    model, inputs, processor = damro(family, "batch2")
    options = {"eos_token_id": list(range(100)), "min_new_tokens": 5, "repetition_penalty": 1.3}
    tokens = write(model, inputs, processor, pad_token_id=0, **options)
    assert (tokens[:, :5] >= 100).all()
    expected = write(model, inputs, stateless(model, inputs), pad_token_id=0, **options)
    assert torch.equal(tokens, expected)


@EVERY_FAMILY
def test_scores_are_log_probabilities_of_every_step(family):
    model, inputs, processor = damro(family, "batch2")
    output = model.generate(
        **inputs,
        logits_processor=processor,
        max_new_tokens=6,
        do_sample=False,
        output_scores=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert len(output.scores) == 6
    reference = StatelessDAMRO(model, inputs, **STRENGTHS)
    for step, (scores, logits) in enumerate(zip(output.scores, output.logits, strict=True)):
        torch.testing.assert_close(scores.exp().sum(dim=-1), torch.ones(2))
        expected = reference(output.sequences[:, : prompt_length(inputs) + step], logits)
        torch.testing.assert_close(scores, expected, atol=1e-3, rtol=0)


class Notes(BaseStreamer):
    """Collects what is streamed; raises after some tokens, as an interrupted user does."""

    def __init__(self, most: int = 10**9) -> None:
        self.tokens: list[int] = []
        self.most = most

    def put(self, value: Tensor) -> None:
        self.tokens += value.flatten().tolist()
        if len(self.tokens) > self.most:
            raise KeyboardInterrupt

    def end(self) -> None:
        pass


@EVERY_FAMILY
def test_a_streamer_sees_every_token(family):
    model, inputs, processor = damro(family)
    notes = Notes()
    tokens = write(model, inputs, processor, streamer=notes)[0].tolist()
    assert notes.tokens[-8:] == tokens


# No state leaks


@EVERY_FAMILY
@pytest.mark.parametrize("between", ["greedy", "beams", "sampling", "scores"])
def test_a_second_generate_gives_the_same(family, between):
    model, inputs, processor = damro(family, "batch2")
    first = write(model, inputs, processor)
    if between == "beams":
        write(model, inputs, processor, num_beams=3, max_new_tokens=3)
    elif between == "sampling":
        write(model, inputs, processor, do_sample=True, num_return_sequences=2, max_new_tokens=5)
    elif between == "scores":
        processor(inputs["input_ids"], torch.randn(2, 200))
    assert torch.equal(write(model, inputs, processor), first)


class StopBy(StoppingCriteria):
    """Raises when a number of tokens has been written."""

    def __init__(self, columns: int) -> None:
        self.columns = columns

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
        if input_ids.shape[1] >= self.columns:
            raise RuntimeError("stopped")
        return torch.zeros(len(input_ids), dtype=torch.bool)


@EVERY_FAMILY
def test_an_interrupted_generate_leaves_nothing_behind(family):
    model, inputs, processor = damro(family)
    with pytest.raises(KeyboardInterrupt):
        write(model, inputs, processor, streamer=Notes(most=prompt_length(inputs) + 3))
    criteria = StoppingCriteriaList([StopBy(prompt_length(inputs) + 5)])
    with pytest.raises(RuntimeError, match="stopped"):
        write(model, inputs, processor, stopping_criteria=criteria, num_beams=3)
    assert torch.equal(write(model, inputs, processor), write(model, inputs, damro(family)[2]))


@EVERY_FAMILY
def test_an_interrupted_negative_pass_leaves_nothing_behind(family):
    model, inputs, processor = damro(family)
    passes = []

    def fail_once(module, args, output):
        passes.append(1)
        if len(passes) == 6:
            raise KeyboardInterrupt

    place = "language_model.model.layers.1" if family == "instructblip" else "model.language_model.layers.1"
    handle = model.get_submodule(place).register_forward_hook(fail_once)
    with pytest.raises(KeyboardInterrupt):
        write(model, inputs, processor)
    handle.remove()
    assert torch.equal(write(model, inputs, processor), write(model, inputs, damro(family)[2]))


@pytest.mark.parametrize("copies", [1, 2])
@EVERY_FAMILY
def test_a_second_generate_gives_the_same_scores_to_the_last_bit(family, copies):
    model, inputs, processor = damro(family, "batch2", beta=0.5)
    options = {"num_return_sequences": copies, "num_beams": copies, "output_scores": True}
    options |= {"max_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True}
    first, second = (model.generate(**inputs, logits_processor=processor, **options).scores for _ in range(2))
    for once, again in zip(first, second, strict=True):
        assert torch.equal(once, again)
