"""How likely an answer is, against stock forward passes and the rule written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from damro.errors import InputsError
from damro.inputs import Chat, prepare_inputs
from damro.inspection.likelihood import answer_likelihood, prepare_answer
from damro.loading import Loaded, load_model
from damro.methods import Scene, parse
from damro.tiny import scene
from tests.family_models import encoder_processor, family_model


@pytest.fixture(scope="module")
def tiny() -> Loaded:
    return load_model("tiny")


def logits_of(model: Any, inputs: Any, tokens: torch.Tensor) -> torch.Tensor:
    """`(T, V)`: what one stock pass over the prompt and the tokens says of every token."""
    ids = torch.cat([inputs["input_ids"], tokens[None]], dim=-1)
    with torch.no_grad():
        found = model(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits
    return found[0, -len(tokens) - 1 : -1].float()


def asked(tiny: Loaded, question: str) -> Any:
    return prepare_inputs(tiny.processor, [scene("test", 2).image], [question], tiny.model)


TOKENS = "Yes A dog"


def test_a_plain_answer_is_as_likely_as_the_model_has_it(tiny: Loaded) -> None:
    inputs = asked(tiny, "Is there a dog in the image?")
    tokens = torch.tensor(tiny.processor.tokenizer(TOKENS, add_special_tokens=False).input_ids)
    expected = logits_of(tiny.model, inputs, tokens).log_softmax(dim=-1)
    found = answer_likelihood(tiny.model, inputs, tokens, parse("greedy").method, Scene())
    torch.testing.assert_close(found.log_probs, expected.gather(1, tokens[:, None])[:, 0], atol=1e-4, rtol=1e-4)
    assert found.best.tolist() == (expected.argmax(dim=-1) == tokens).tolist()


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_a_contrast_is_taken_over_all_tokens_and_the_best_with_the_cutoff(tiny: Loaded, alpha: float) -> None:
    inputs = asked(tiny, "Generate a short caption of this image.")
    tokens = torch.tensor(tiny.processor.tokenizer(TOKENS, add_special_tokens=False).input_ids)
    blind = {name: value for name, value in inputs.items() if name != "pixel_values"}
    keep = inputs["input_ids"][0] != tiny.model.config.image_token_id
    blind |= {"input_ids": inputs["input_ids"][:, keep], "attention_mask": inputs["attention_mask"][:, keep]}
    full, negative = logits_of(tiny.model, inputs, tokens), logits_of(tiny.model, blind, tokens)
    mixed = (1 + alpha) * full - alpha * negative
    expected = mixed.log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]
    cut = full < full.amax(dim=-1, keepdim=True) + torch.tensor(0.1).log()
    method = parse(f"no-image:alpha={alpha},beta=0.1").method
    found = answer_likelihood(tiny.model, inputs, tokens, method, Scene())
    torch.testing.assert_close(found.log_probs, expected, atol=1e-3, rtol=1e-4)
    assert found.log_probs.isfinite().all() and cut.gather(1, tokens[:, None]).any()
    assert found.best.tolist() == (mixed.masked_fill(cut, -torch.inf).argmax(dim=-1) == tokens).tolist()


def test_an_answer_has_the_end_that_the_template_or_the_encoder_decoder_writes(tiny: Loaded) -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "Is there a dog in the image?"}]
    chat = Chat(({"role": "user", "content": parts},), (scene("test", 2).image,))
    inputs, tokens = prepare_answer(*tiny, chat, "No")
    assert torch.equal(inputs["input_ids"], asked(tiny, "Is there a dog in the image?")["input_ids"])
    assert tiny.processor.tokenizer.convert_ids_to_tokens(tokens.tolist()) == ["▁No", "</s>"]
    processor = tiny.processor
    template = processor.chat_template
    try:
        processor.chat_template = (
            "{% for m in messages|reverse %}{{ 'USER: <image>' if m.role == 'user' else 'A dog.' }}{% endfor %}"
        )
        with pytest.raises(InputsError, match="chat template must write an answer behind .* LlavaProcessor does not"):
            prepare_answer(*tiny, chat, "No")
    finally:
        processor.chat_template = template
    model = family_model("blip-2-t5")
    inputs, tokens = prepare_answer(model, encoder_processor("blip-2-t5"), chat, "no cat")
    assert len(tokens) >= 2
    assert answer_likelihood(model, inputs, tokens, parse("greedy").method, Scene()).log_probs.shape == tokens.shape


def test_without_an_image_there_is_no_contrast(tiny: Loaded) -> None:
    inputs = tiny.processor(text="USER: What is this? ASSISTANT:", return_tensors="pt")
    tokens = torch.tensor(tiny.processor.tokenizer(TOKENS, add_special_tokens=False).input_ids)
    expected = logits_of(tiny.model, inputs, tokens).log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]
    found = answer_likelihood(tiny.model, inputs, tokens, parse("damro:alpha=3").method, Scene())
    torch.testing.assert_close(found.log_probs, expected, atol=1e-4, rtol=1e-4)
