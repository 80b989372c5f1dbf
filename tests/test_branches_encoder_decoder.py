"""Encoder-decoders: prompts, branches and the processor against T5 run by hand, without a cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import damro
from damro.decoding.branches.encoder_decoder import EncodedBranches, negative_branch, start_tokens
from damro.decoding.families import family_of
from damro.errors import InputsError, UnsupportedModelError
from damro.methods.patches import outlier_view
from tests.encoder_decoder_cases import STRENGTHS, negative_of, uncached
from tests.family_models import ENCODER_DECODERS, IMAGE, QUERIES, Inputs, encoder_inputs, family_model

EVERY_FAMILY = pytest.mark.parametrize("name", ENCODER_DECODERS)


@EVERY_FAMILY
@torch.no_grad()
def test_the_image_columns_are_found_and_filled(name: str) -> None:
    model, inputs = family_model(name), encoder_inputs(name, 3)
    family = family_of(model)
    prompt = family.full_prompt(model, inputs, family.encode(model, inputs))
    assert torch.equal(prompt.image_mask, inputs["input_ids"] == IMAGE)
    theirs = model(**inputs, decoder_input_ids=torch.zeros(3, 1, dtype=torch.long)).logits[:, -1]
    torch.testing.assert_close(uncached(model, prompt, torch.empty(3, 0, dtype=torch.long)), theirs, atol=1e-4, rtol=0)


def queries_by_hand(model: Any, inputs: Inputs, tokens: Tensor) -> Tensor:
    """`(B, queries, D)`: what the language model gets of some ViT outputs, by the model's own modules."""
    queries = model.query_tokens.expand(len(tokens), -1, -1)
    if "qformer_input_ids" not in inputs:
        states = model.qformer(query_embeds=queries, encoder_hidden_states=tokens).last_hidden_state
    else:
        read = torch.cat([torch.ones(len(tokens), QUERIES, dtype=torch.long), inputs["qformer_attention_mask"]], dim=1)
        states = model.qformer(
            input_ids=inputs["qformer_input_ids"],
            attention_mask=read,
            query_embeds=queries,
            encoder_hidden_states=tokens,
        ).last_hidden_state[:, :QUERIES]
    columns: Tensor = model.language_projection(states)
    return columns


@EVERY_FAMILY
@torch.no_grad()
def test_negative_logits_are_those_of_the_chosen_patches(name: str) -> None:
    """Against the encoder run by hand on queries of the chosen patches, and the decoder without a cache."""
    model, inputs = family_model(name), encoder_inputs(name, 3)
    processor = damro.DAMROProcessor(model, inputs, **STRENGTHS, variant="corrected")
    tokens = model.vision_model(inputs["pixel_values"]).last_hidden_state
    chosen = tokens[torch.arange(3)[:, None], 1 + processor.outliers]
    embeds = model.language_model.shared(inputs["input_ids"])
    embeds[inputs["input_ids"] == IMAGE] = queries_by_hand(model, inputs, chosen).flatten(0, 1)
    mask = inputs["attention_mask"]
    states = model.language_model.encoder(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
    history = torch.randint(3, 190, (3, 5), generator=torch.Generator().manual_seed(4))
    fed = torch.cat([torch.zeros(3, 1, dtype=torch.long), history], dim=-1)
    last = model.language_model.decoder(
        input_ids=fed, encoder_hidden_states=states, encoder_attention_mask=mask, use_cache=False
    ).last_hidden_state[:, -1]
    expected = model.language_model.lm_head(last)
    torch.testing.assert_close(processor.branch.logits(history), expected, atol=1e-4, rtol=0)


def test_what_the_processor_was_not_made_for() -> None:
    name = ENCODER_DECODERS[0]
    model = family_model(name)
    processor = damro.DAMROProcessor(model, encoder_inputs(name, 3), **STRENGTHS)
    with pytest.raises(InputsError, match="must continue the 3 prompts of 1 tokens .*, got other tokens or rows"):
        processor(torch.zeros(2, 1, dtype=torch.long), torch.zeros(2, 200))
    with pytest.raises(InputsError, match="must continue the 3 prompts of 1 tokens .*, got other tokens or rows"):
        processor(torch.full((3, 1), 7), torch.zeros(3, 200))


def test_start_tokens_are_those_of_generate() -> None:
    model = family_model(ENCODER_DECODERS[0]).language_model
    assert start_tokens(model, 2).tolist() == [[0], [0]]
    assert start_tokens(model, 2, [4, 5]).tolist() == [[4], [5]]
    config = model.generation_config
    config.decoder_start_token_id = None
    try:
        with pytest.raises(UnsupportedModelError, match="got decoder_start_token_id None .* T5ForConditional"):
            start_tokens(model, 2)
    finally:
        config.decoder_start_token_id = 0


def test_branches_whose_rows_are_dropped_and_continued() -> None:
    name = ENCODER_DECODERS[0]
    model, inputs = family_model(name), encoder_inputs(name, 3)
    contrast = outlier_view(model, inputs, **STRENGTHS).contrast
    prompts = [contrast.full, contrast.full.drop_image()]
    branches = EncodedBranches(model.language_model, prompts, torch.zeros(6, 1, dtype=torch.long))
    branches.keep(torch.tensor([1, 4]))
    branches.step(torch.tensor([50, 60]))
    branches.step(torch.tensor([51, 61]))
    for number, prompt in enumerate(prompts):
        alone = uncached(model, prompt, torch.tensor([[50, 51], [0, 0], [60, 61]]))[[0, 2]]
        torch.testing.assert_close(branches.logits[number], alone, atol=1e-4, rtol=0)


def test_a_branch_is_the_same_whatever_it_was_asked_before() -> None:
    name = ENCODER_DECODERS[0]
    model, inputs = family_model(name), encoder_inputs(name, 3)
    prompt = negative_of(model, inputs)
    branch, random = negative_branch(model, prompt), torch.Generator().manual_seed(0)
    history = torch.randint(3, 190, (6, 7), generator=random)
    for asked in (
        history[::2, :4],
        history[:, :0],
        history[:, :5],
        history[[1, 1, 3, 2, 5, 5], :6],
        history[:, :2],
        history,
    ):
        torch.testing.assert_close(branch.logits(asked), uncached(model, prompt, asked), atol=1e-4, rtol=0)
