"""Prompts, image columns counted, that leave no room in what a model can read, and answers behind them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import damro
from damro.decoding.context import check_context, check_lengths, context_of
from damro.errors import InputsError, ParameterError
from tests.damro_cases import STRENGTHS
from tests.family_models import family_inputs, family_model
from tests.golden_cases import inputs_of, model_of
from tests.told import generate

OPTIONS: dict[str, Any] = {"do_sample": False, "num_beams": 1}


def longer(inputs: Any, columns: int) -> dict[str, Any]:
    """The same prompt with words behind it, so that it has so many columns."""
    ids, missing = inputs["input_ids"], columns - inputs["input_ids"].shape[1]
    words = torch.full((len(ids), missing), 9)
    return {
        **inputs,
        "input_ids": torch.cat([ids, words], -1),
        "attention_mask": torch.cat([inputs["attention_mask"], torch.ones_like(words)], -1),
    }


@pytest.mark.parametrize("strategy", ["fused", "lazy"])
@pytest.mark.parametrize("method", ["damro", "vcd", "greedy"])
def test_a_prompt_must_leave_room_for_a_token(method: str, strategy: str) -> None:
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    assert context_of(model) == 512
    told = "prompt must leave room for a new token in the model's context of 512 columns, got 512 of text and images, 1"
    with pytest.raises(InputsError, match=told):
        generate(model, longer(inputs, 512), method=method, strategy=strategy, max_new_tokens=1, **OPTIONS)
    ids = generate(model, longer(inputs, 511), method=method, strategy=strategy, max_new_tokens=1, **OPTIONS)
    assert ids.shape[1] == 512
    # As in stock generate, rotary positions go on behind the context.
    assert generate(model, longer(inputs, 510), method=method, max_new_tokens=4, **OPTIONS).shape[1] == 514
    with pytest.raises(InputsError, match="got 600 of text and images, 89 too many"):
        check_context(model, longer(inputs, 600))


def test_padding_is_not_counted_and_pruned_columns_neither() -> None:
    model, inputs = model_of("llava"), longer(inputs_of("llava_img0"), 510)
    padded = {**inputs, "input_ids": torch.nn.functional.pad(inputs["input_ids"], (10, 0))}
    padded["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (10, 0))
    check_context(model, padded)
    assert damro.generate(model, longer(inputs, 515), "greedy", keep_tokens=4, max_new_tokens=1, **OPTIONS).shape[1]


def test_learned_positions_end_with_their_table() -> None:
    model = family_model("blip-2")
    inputs = longer(family_inputs("blip-2"), 120)
    assert context_of(family_model("blip-2").language_model) == 128
    with pytest.raises(IndexError):  # what stock generate does
        model.generate(**inputs, max_new_tokens=12, min_new_tokens=12, **OPTIONS)
    told = "max_new_tokens must be at most 8 behind a prompt of 120 columns, since the model has learned 128 .* got 12"
    for method in ("damro", "greedy"):
        with pytest.raises(ParameterError, match=told):
            generate(model, inputs, method=method, max_new_tokens=12, **STRENGTHS, **OPTIONS)
        assert generate(model, inputs, method=method, max_new_tokens=8, **STRENGTHS, **OPTIONS).shape[1] == 128
    with pytest.raises(ParameterError, match="at most 8 behind"):
        check_context(model, inputs, 9)


@pytest.mark.parametrize(
    ("rope", "context"),
    [
        (None, 100),
        ({"rope_type": "default"}, 100),
        ({"rope_type": "llama3", "factor": 8.0}, 100),
        ({"rope_type": "longrope", "factor": 4.0}, 100),
        ({"rope_type": "linear", "factor": 4.0}, 400),
        ({"rope_type": "dynamic", "factor": 2.5}, 250),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 50}, 200),
    ],
)
def test_stretched_positions_reach_further(rope: Any, context: int) -> None:
    text = SimpleNamespace(max_position_embeddings=100, rope_parameters=rope)
    config = SimpleNamespace(get_text_config=lambda decoder: text, is_encoder_decoder=False)
    decoder: Any = SimpleNamespace(config=config)
    assert context_of(decoder) == context
    check_lengths(decoder, context - 1)
    with pytest.raises(InputsError, match=f"context of {context} columns"):
        check_lengths(decoder, context)


def test_distances_have_no_end() -> None:
    assert context_of(family_model("instructblip-t5").language_model) is None


def test_a_q_former_reads_no_more_than_it_has_positions_for() -> None:
    model, inputs = model_of("instructblip"), inputs_of("instructblip_img0")
    long = torch.ones(1, model.config.qformer_config.max_position_embeddings + 1, dtype=torch.long)
    with pytest.raises(InputsError, match=r"prompt must fit into the \d+ positions of the Q-Former, got \d+ tokens"):
        damro.cls_attention(model, {**inputs, "qformer_input_ids": long, "qformer_attention_mask": long})


def test_images_must_be_of_clips_size() -> None:
    inputs = inputs_of("llava_img0")
    wide = {**inputs, "pixel_values": torch.zeros(1, 3, 224, 224)}
    with pytest.raises(InputsError, match=r"pixel_values must be of the vision tower's size 56x56, got \(1, 3, 224"):
        damro.cls_attention(model_of("llava"), wide)
