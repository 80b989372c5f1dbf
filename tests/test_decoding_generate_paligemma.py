"""PaliGemma: every way of generating writes what is computed by hand without a cache."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import PaliGemmaProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from damro import DAMROProcessor
from damro.decoding.branches.fused import can_branch, prefill
from damro.decoding.branches.prefix import prefill_shared
from damro.decoding.families import family_of
from damro.eval.runs.engine import Engine
from damro.eval.runs.first_token import answer_in_one_token
from damro.eval.samples import Sample
from damro.loading import prepare_inputs
from damro.methods import Recipe
from damro.processor import contrast_processor
from tests.family_models import IMAGE, PATCHES, family_model
from tests.golden_models import word_tokenizer
from tests.paligemma_cases import (
    BOTH,
    GREEDY,
    QUESTIONS,
    ROWS,
    STRENGTHS,
    ByHand,
    inputs_of,
    logits_by_hand,
    parts,
    prompts_by_hand,
)
from tests.told import generate, told


@BOTH
@ROWS
@pytest.mark.parametrize("strategy", ["fused", "lazy"])
def test_without_contrast_it_is_stock_generate(name: str, rows: int, strategy: Any) -> None:
    model, inputs = parts(name, rows)
    stock = model.generate(**inputs, **GREEDY)
    assert torch.equal(generate(model, inputs, method=None, strategy=strategy, **GREEDY), stock)
    assert torch.equal(generate(model, inputs, strategy=strategy, **(STRENGTHS | {"alpha": 0.0}), **GREEDY), stock)
    by_hand = prompts_by_hand(model, inputs)
    width = inputs["input_ids"].shape[1]
    for row, prompt in enumerate(by_hand):
        written = stock[row, width:]
        logits = logits_by_hand(model, prompt, written[:-1])
        logits[:, IMAGE] = -math.inf
        assert torch.equal(logits.argmax(dim=-1), written)


@BOTH
@ROWS
@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"use_cache": False}], ids=str)
def test_every_strategy_writes_what_is_computed_by_hand(name: str, rows: int, settings: dict[str, Any]) -> None:
    model, inputs = parts(name, rows)
    options = GREEDY | settings
    expected = model.generate(**inputs, logits_processor=[ByHand(model, inputs)], **options)
    assert not torch.equal(expected, model.generate(**inputs, **options))
    processor = DAMROProcessor(model, inputs, **STRENGTHS)
    assert torch.equal(model.generate(**inputs, logits_processor=processor, **options), expected)
    for strategy in ("fused", "lazy"):
        assert torch.equal(generate(model, inputs, strategy=strategy, **STRENGTHS, **options), expected)


def test_only_full_attention_is_fused() -> None:
    assert can_branch(family_model("paligemma"))
    assert not can_branch(family_model("paligemma2"))


@BOTH
@pytest.mark.parametrize("method", ["damro", "vcd", "icd", "m3id", "no-image"])
def test_other_methods_too(name: str, method: str) -> None:
    model, inputs = parts(name, 3)
    options: dict[str, Any] = {
        "damro": STRENGTHS,
        "icd": {"processor": word_tokenizer(200), "disturbance": "What is a cat.", "alpha": 4.0},
        "m3id": {"forgetting": 0.5, "confidence": 1.0},
        "no-image": {"alpha": 1.0, "beta": 0.1},
    }.get(method, {})
    processor = contrast_processor(model, inputs, method=method, **options)
    expected = model.generate(**inputs, logits_processor=processor, **GREEDY)
    assert processor.branch.passes > 0
    assert torch.equal(generate(model, inputs, method=method, strategy="fused", **options, **GREEDY), expected)


@BOTH
def test_questions_about_one_image_are_answered_as_one_by_one(name: str) -> None:
    model, inputs = parts(name, 3)
    inputs["pixel_values"] = inputs["pixel_values"][:1].repeat(3, 1, 1, 1)
    width = inputs["input_ids"].shape[1]
    encoded: list[int] = []
    handle = model.model.vision_tower.register_forward_hook(lambda m, a, out: encoded.append(len(out[0])))
    shared = generate(model, inputs, shared_prefix=True, **STRENGTHS, **GREEDY)
    handle.remove()
    assert encoded == [1]
    for row, question in enumerate(QUESTIONS):
        ids = torch.tensor([[IMAGE] * PATCHES + question])
        one = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
        alone = generate(model, one | {"pixel_values": inputs["pixel_values"][:1]}, **STRENGTHS, **GREEDY)
        assert torch.equal(alone[0, ids.shape[1] :], shared[row, width:])


@torch.no_grad()
def test_prompts_that_begin_alike_have_nothing_in_common() -> None:
    model, inputs = parts("paligemma", 3)
    inputs["pixel_values"] = inputs["pixel_values"][:1].repeat(3, 1, 1, 1)
    prompt = family_of(model).full_prompt(model, inputs, family_of(model).encode(model, inputs))
    read = prefill_shared(model, prompt)
    torch.testing.assert_close(read.logits, prefill(model, prompt).logits)
    causal = prefill_shared(model, replace(prompt, bidirectional=False))
    assert not torch.allclose(causal.logits, read.logits, atol=1e-2)


@BOTH
@pytest.mark.parametrize("beams", [1, 3])
def test_several_images_in_one_prompt(name: str, beams: int) -> None:
    """A row with two images, one with one; where beams repeat rows, images go with theirs."""
    model, pixels = family_model(name), inputs_of(3)["pixel_values"]
    prompts = [[IMAGE] * 2 * PATCHES + QUESTIONS[0], [0] * (PATCHES + 3) + [IMAGE] * PATCHES + QUESTIONS[1]]
    ids = torch.tensor(prompts)
    inputs = {"input_ids": ids, "attention_mask": ids.ne(0).long(), "token_type_ids": 0 * ids, "pixel_values": pixels}
    options = GREEDY | {"num_beams": beams}
    processor = DAMROProcessor(model, inputs, **STRENGTHS)
    assert processor.branch.prompt.image_mask.sum(dim=-1).tolist() == [6, 3]
    expected = model.generate(**inputs, logits_processor=processor, **options)
    for strategy in ("fused", "lazy"):
        assert torch.equal(generate(model, inputs, strategy=strategy, **STRENGTHS, **options), expected)
    plain = model.generate(**inputs, **options)
    assert torch.equal(generate(model, inputs, method=None, strategy="lazy", **options), plain)
    alone = {key: value[1:, PATCHES + 3 :] for key, value in inputs.items() if key != "pixel_values"}
    alone["pixel_values"] = pixels[2:]
    answer = model.generate(**alone, logits_processor=[ByHand(model, alone)], **options)
    assert torch.equal(answer[0, PATCHES + 3 :], expected[1, ids.shape[1] :])


@BOTH
def test_sampling_draws_the_same_numbers(name: str) -> None:
    model, inputs = parts(name, 3)
    options = {"max_new_tokens": 10, "do_sample": True, "temperature": 1.3, "num_return_sequences": 2}
    torch.manual_seed(5)
    expected = model.generate(**inputs, logits_processor=DAMROProcessor(model, inputs, **STRENGTHS), **options)
    for strategy in ("fused", "lazy"):
        torch.manual_seed(5)
        assert torch.equal(generate(model, inputs, strategy=strategy, **STRENGTHS, **options), expected)


def processor_for() -> Any:
    """A processor of the real class, a word a token."""
    words = word_tokenizer(200)
    words.padding_side = "left"
    pixels: Any = SiglipImageProcessorPil(size={"height": 56, "width": 56})
    pixels.image_seq_length = PATCHES
    return PaliGemmaProcessor(pixels, words)


def test_first_tokens_of_several_questions_at_once() -> None:
    model, processor, red = family_model("paligemma"), processor_for(), Image.new("RGB", (80, 60), "red")
    engines = {
        name: Engine(model, processor, Recipe(told(name, alpha=2.0, beta=1e-4, top_k=4)), 1, 0, lambda image: red)
        for name in ("greedy", "damro", "no-image")
    }
    questions = ["What is this?", "What is a cat. a cat.", "is this? a"]
    asked = [Sample(f"s/{number}", "image.png", question, {}) for number, question in enumerate(questions)]
    together = answer_in_one_token(engines, asked)
    assert together == {name: engine.answer(asked) for name, engine in engines.items()}
    assert len({tuple(answered.text for answered in answers) for answers in together.values()}) == 3


def test_inputs_of_the_real_processor() -> None:
    model, processor = family_model("paligemma"), processor_for()
    images = [Image.new("RGB", (80, 60), color) for color in ("red", "blue")]
    inputs = prepare_inputs(processor, images, ["What is this?", "What is a cat. a cat."], model)
    assert (inputs["input_ids"] == IMAGE).sum(-1).tolist() == [PATCHES] * 2
    assert inputs["attention_mask"][0].tolist().index(1) > 0 and inputs["attention_mask"][:, -1].all()
    for method, options in (("damro", STRENGTHS), ("icd", {"processor": processor})):
        answers = generate(model, inputs, method=method, **options, **GREEDY)
        stock = model.generate(
            **inputs, logits_processor=contrast_processor(model, inputs, method=method, **options), **GREEDY
        )
        assert torch.equal(answers, stock)
