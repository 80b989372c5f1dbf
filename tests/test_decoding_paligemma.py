"""PaliGemma's prompts, and what is read of the model, against itself without a cache; what is refused of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

import damro
from damro import DAMROProcessor
from damro.decoding.branches.fused import prefill
from damro.decoding.errors import InputsError, ParameterError
from damro.decoding.families import family_of
from damro.decoding.prompts import stack_rows
from damro.errors import NoClsTokenError, UnsupportedModelError
from damro.inspection import inspect_contrast, inspect_decoder
from damro.pruning import prune
from tests.family_models import IMAGE, PATCHES, family_model, needs_capped
from tests.paligemma_cases import (
    BOTH,
    GREEDY,
    ROWS,
    STRENGTHS,
    inputs_of,
    logits_by_hand,
    parts,
    prompts_by_hand,
)
from tests.told import generate

# Prompts


@BOTH
@ROWS
@torch.no_grad()
def test_the_negative_prompt_is_read_in_both_directions(name: str, rows: int) -> None:
    model, inputs = parts(name, rows)
    branch = DAMROProcessor(model, inputs, **STRENGTHS).branch
    prompts = prompts_by_hand(model, inputs, top_k=3)
    for row, prompt in enumerate(prompts):
        kept = branch.prompt.attention_mask[row].bool()
        torch.testing.assert_close(branch.prompt.inputs_embeds[row, kept], prompt)
    tokens = torch.randint(2, 190, (rows, 6), generator=torch.Generator().manual_seed(0))
    # The prompt alone, a token, several in one chunk, fewer, others.
    for length, drawn in ((0, tokens), (1, tokens), (6, tokens), (3, tokens), (4, tokens.flip(1))):
        expected = torch.stack(
            [logits_by_hand(model, p, h)[-1] for p, h in zip(prompts, drawn[:, :length], strict=True)]
        )
        torch.testing.assert_close(branch.logits(drawn[:, :length]), expected, atol=1e-4, rtol=0)
        some = torch.tensor([7, 150])
        torch.testing.assert_close(branch.logits(drawn[:, :length], some), expected[:, some], atol=1e-4, rtol=0)


@BOTH
@ROWS
@torch.no_grad()
def test_the_full_prompt_is_what_the_model_reads(name: str, rows: int) -> None:
    model, inputs = parts(name, rows)
    prompt = family_of(model).full_prompt(model, inputs, family_of(model).encode(model, inputs))
    expected = torch.stack(
        [logits_by_hand(model, p, torch.empty(0, dtype=torch.long))[-1] for p in prompts_by_hand(model, inputs)]
    )
    torch.testing.assert_close(prefill(model, prompt).logits, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(model(**inputs).logits[:, -1], expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_reading_from_left_to_right_is_something_else() -> None:
    """What the other tests compare would not be the same without."""
    model, inputs = parts("paligemma", 3)
    prompt = DAMROProcessor(model, inputs, **STRENGTHS).branch.prompt
    difference = prefill(model, prompt).logits - prefill(model, replace(prompt, bidirectional=False)).logits
    assert (difference.abs().amax(dim=-1) > 1e-2).all()


@torch.no_grad()
def test_every_prompt_made_of_it_is_read_that_way() -> None:
    model, inputs = parts("paligemma", 3)
    prompt = family_of(model).full_prompt(model, inputs, family_of(model).encode(model, inputs))
    assert prompt.bidirectional and prompt.drop_image().bidirectional
    assert prompt.replace_image(torch.zeros(3 * PATCHES, 32)).bidirectional
    assert stack_rows([prompt, prompt.drop_image()]).bidirectional
    types = prompt.drop_image().reading(following=2)["token_type_ids"]
    assert types.tolist() == [[0] * 6 + [1] * 2] * 3


def test_an_image_token_outside_of_the_vocabulary() -> None:
    model, inputs = parts("paligemma", 3)
    config = PaliGemmaConfig(**{**model.config.to_dict(), "image_token_index": 500})
    other = PaliGemmaForConditionalGeneration(config).eval()
    other.load_state_dict(model.state_dict())
    far = inputs | {"input_ids": inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, 500)}
    answers = generate(other, far, **STRENGTHS, **GREEDY)
    width = inputs["input_ids"].shape[1]
    assert torch.equal(answers[:, width:], generate(model, inputs, **STRENGTHS, **GREEDY)[:, width:])


# Looking inside


@BOTH
def test_a_replay_tells_what_both_prompts_thought(name: str) -> None:
    model, inputs = parts(name, 1)
    processor = DAMROProcessor(model, inputs, **STRENGTHS)
    tokens = model.generate(**inputs, **GREEDY)[0, inputs["input_ids"].shape[1] :]
    seen = inspect_contrast(model, inputs, tokens, processor)
    for top_k, ours in ((None, seen.full), (3, seen.negative)):
        (prompt,) = prompts_by_hand(model, inputs, top_k)
        logits = logits_by_hand(model, prompt, tokens[:-1]).log_softmax(dim=-1)
        torch.testing.assert_close(ours, logits.gather(-1, tokens[:, None])[:, 0], atol=1e-4, rtol=0)


def test_maps_of_generated_tokens_equal_eager_attentions() -> None:
    model, inputs = family_model("paligemma", "eager"), inputs_of(1)
    output = model.generate(**inputs, output_attentions=True, return_dict_in_generate=True, **GREEDY)
    tokens = output.sequences[0, inputs["input_ids"].shape[1] :]
    expected = torch.stack(
        [torch.stack([step[layer][0, :, -1, :PATCHES].mean(dim=0) for step in output.attentions]) for layer in (0, 1)]
    )
    seen = inspect_decoder(family_model("paligemma"), inputs, tokens)
    torch.testing.assert_close(seen.columns, expected, atol=1e-5, rtol=0)
    assert seen.maps().shape == (2, len(tokens), 4, 4)


@needs_capped
def test_maps_of_soft_capped_attention_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"without soft-capped .*, got Gemma2Model"):
        inspect_decoder(family_model("paligemma2"), inputs_of(1), torch.tensor([5, 6]))


# What is refused


@pytest.mark.parametrize("entry", [DAMROProcessor, damro.cls_attention], ids=lambda entry: entry.__name__)
def test_token_types_are_needed(entry: Any) -> None:
    model, inputs = parts("paligemma", 1)
    del inputs["token_type_ids"]
    with pytest.raises(InputsError, match="inputs of paligemma must hold 'token_type_ids'"):
        entry(model, inputs)


def test_a_suffix_is_not_continued() -> None:
    model, inputs = parts("paligemma", 1)
    inputs["token_type_ids"][0, -2:] = 1
    with pytest.raises(InputsError, match="token_type_ids must be 0 .*; leave suffix= out of the call"):
        generate(model, inputs, **STRENGTHS)


def test_drafts_would_be_read_as_part_of_the_prompt() -> None:
    model, inputs = parts("paligemma", 1)
    with pytest.raises(ParameterError, match="prompt_lookup_num_tokens must .* prompt is not causal, got 3; decode"):
        generate(model, inputs, prompt_lookup_num_tokens=3, **STRENGTHS)


def test_flash_attention_takes_no_such_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = parts("paligemma", 1)
    monkeypatch.setattr(model.get_decoder().config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(
        UnsupportedModelError, match="not use flash attention .*, got 'flash_attention_2'; load it with"
    ):
        DAMROProcessor(model, inputs, **STRENGTHS)


def test_pruning_ranks_by_cls() -> None:
    model, inputs = parts("paligemma", 1)
    with pytest.raises(NoClsTokenError, match=r"must have a \[CLS\] token"):
        prune(model, inputs, keep_tokens=4)
    with pytest.raises(NoClsTokenError, match=r"must have a \[CLS\] token"):
        generate(model, inputs, keep_tokens=4, **STRENGTHS)
