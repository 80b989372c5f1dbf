"""Conversations through real processors of newer families, from chat template to answer, maps and pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import damro
from damro.errors import UnsupportedModelError
from damro.inspection import inspect_decoder, inspect_vit, seen_image
from damro.loading import prepare_inputs
from damro.pages.explain import explain_answers
from tests.chat_models import (
    gemma3_processor,
    idefics3_processor,
    internvl_processor,
    qwen_processor,
    smolvlm_processor,
)
from tests.zoo import zoo_model

PROCESSORS: dict[str, Callable[[], Any]] = {
    "qwen2_5_vl": qwen_processor,
    "internvl": internvl_processor,
    "smolvlm": smolvlm_processor,
    "idefics3": idefics3_processor,
    "gemma3": gemma3_processor,
}
QUESTIONS = ("What do you see ?", "Is there a cat in the image ?")
TOLD = {"alpha": 1.0, "beta": 0.1, "top_k": 3}
GREEDY: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(params=PROCESSORS, scope="module")
def case(request: pytest.FixtureRequest) -> tuple[str, Any, Any]:
    return request.param, zoo_model(request.param), PROCESSORS[request.param]()


def pictures() -> list[Image.Image]:
    """A wide image and a small square one, of smooth colours, so that what is shown again can be compared."""
    found = []
    for height, width in ((84, 126), (56, 56)):
        rows, columns = np.mgrid[:height, :width]
        values = np.stack([255 * rows / height, 255 * columns / width, 128 + 0 * rows], axis=-1)
        found.append(Image.fromarray(values.astype(np.uint8)))
    return found


def conversation(processor: Any) -> Any:
    """What a user of transformers writes."""
    talks = [
        [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
        for image, question in zip(pictures(), QUESTIONS, strict=True)
    ]
    return processor.apply_chat_template(
        talks, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
        processor_kwargs={"padding": True},
    )  # fmt: skip


def test_a_conversation_goes_the_whole_way(case: tuple[str, Any, Any]) -> None:
    _, model, processor = case
    inputs = conversation(processor)
    assert not bool(inputs["attention_mask"].all()), "one of the prompts must be padded"
    plain = model.generate(**inputs, **GREEDY)
    off = damro.generate(model, inputs, "damro:alpha=0,beta=0.1,top_k=3", **GREEDY)
    assert torch.equal(off, plain)
    fused = damro.generate(model, inputs, "damro:alpha=1,beta=0.1,top_k=3", **GREEDY)
    stock = model.generate(**inputs, **GREEDY, logits_processor=damro.DAMROProcessor(model, inputs, **TOLD))
    assert torch.equal(fused, stock) and not torch.equal(fused, plain)


def test_prepared_inputs_are_those_of_the_conversation(case: tuple[str, Any, Any]) -> None:
    _, model, processor = case
    prepared, written = prepare_inputs(processor, pictures(), QUESTIONS, model), conversation(processor)
    assert prepared.keys() == written.keys()
    assert all(torch.equal(prepared[name], written[name]) for name in written)


@pytest.mark.parametrize("method", ["vcd", "icd", "m3id", "no-image:alpha=1,beta=0.1", "random-k", "least-k"])
def test_other_methods_take_a_conversation(method: str, case: tuple[str, Any, Any]) -> None:
    _, model, processor = case
    inputs = conversation(processor)
    text = method if method.partition(":")[0] not in ("random-k", "least-k") else f"{method}:alpha=1,beta=0.1,top_k=3"
    together = damro.generate(model, inputs, text, processor=processor, **GREEDY)
    # What noise and patches are drawn of depends on the place in a batch; the rest must not.
    if method in ("icd", "m3id", "least-k") or method.startswith("no-image"):
        image, question = pictures()[1], QUESTIONS[1]
        alone = damro.generate(
            model, prepare_inputs(processor, [image], [question], model), text, processor=processor, **GREEDY
        )
        new = together.shape[1] - inputs["input_ids"].shape[1]
        assert alone[0, -new:].tolist() == together[1, -new:].tolist()


def test_the_picture_shown_is_the_one_that_was_given(case: tuple[str, Any, Any]) -> None:
    _, model, processor = case
    inputs = conversation(processor)
    for number, image in enumerate(pictures()):
        shown = seen_image(processor, inputs, number, model=model)
        again = np.asarray(image.resize(shown.size, Image.Resampling.BICUBIC), dtype=float)
        assert np.abs(np.asarray(shown, dtype=float) - again).mean() < 4


def test_maps_of_a_batch_are_those_of_each_image(case: tuple[str, Any, Any]) -> None:
    name, model, processor = case
    together = inspect_vit(model, conversation(processor), top_k=3)
    assert together.source == ("cls" if name == "internvl" else "received")
    for number, (image, question) in enumerate(zip(pictures(), QUESTIONS, strict=True)):
        alone = inspect_vit(model, prepare_inputs(processor, [image], [question], model), top_k=3)
        columns = alone.grid[0] * alone.grid[1]
        for field in ("per_head", "merged", "norms"):
            mine, all_of_it = getattr(alone, field)[..., 0, :], getattr(together, field)[..., number, :]
            torch.testing.assert_close(all_of_it[..., :columns], mine, atol=1e-5, rtol=1e-5)
            assert not bool(all_of_it[..., columns:].any())
        assert together.outliers.positions[number].tolist() == alone.outliers.positions[0].tolist()
        assert alone.outliers.positions[0].amax(dim=0).tolist() <= [alone.grid[0] - 1, alone.grid[1] - 1]


def test_words_look_where_eager_attention_looks(case: tuple[str, Any, Any]) -> None:
    name, _, processor = case
    model = zoo_model(name, "eager")
    inputs = prepare_inputs(processor, pictures()[:1], QUESTIONS[:1], model)
    length = inputs["input_ids"].shape[1]
    tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, length:]
    image = (inputs["input_ids"][0] == model.config.image_token_id).nonzero().flatten()
    expected = []
    for number in range(len(tokens)):  # every token by a run of its own
        whole = lengthened(inputs, tokens[:number])
        attentions = model(**whole, output_attentions=True, use_cache=False).attentions
        expected.append(torch.stack([layer[0, :, -1, image].mean(dim=0) for layer in attentions]))
    seen = inspect_decoder(model, inputs, tokens)
    torch.testing.assert_close(seen.columns, torch.stack(expected, dim=1), atol=1e-5, rtol=0)
    base = inspect_vit(model, inputs, top_k=3).grid
    assert seen.maps().shape[2:] == base


def lengthened(inputs: Any, tokens: torch.Tensor) -> dict[str, Any]:
    """Inputs with tokens of text behind the prompt."""
    new = tokens[None]
    types = {name: torch.zeros_like(new) for name in inputs if name.endswith("token_type_ids")}
    more = {"input_ids": new, "attention_mask": torch.ones_like(new), **types}
    return {**inputs, **{name: torch.cat([inputs[name], tail], dim=-1) for name, tail in more.items()}}


def test_explain_shows_both_answers(case: tuple[str, Any, Any]) -> None:
    _, model, processor = case
    found = explain_answers(
        model, processor, pictures()[0], QUESTIONS[0], name="one of the zoo", max_new_tokens=4, **TOLD
    )
    assert found.greedy.words and found.damro.words
    assert found.greedy.maps.shape[1:] == found.vit.grid
    assert bool(found.greedy.maps.isfinite().all()) and found.vit.outliers.indices.shape == (1, 3)


def test_rules_of_features_say_that_columns_have_none(case: tuple[str, Any, Any]) -> None:
    _, model, processor = case
    inputs = prepare_inputs(processor, pictures()[:1], QUESTIONS[:1], model)
    with pytest.raises(UnsupportedModelError, match="of which columns are ranked; rules of attention"):
        inspect_vit(model, inputs, rule="norm")
    found = inspect_vit(model, inputs, rule="iqr").outliers
    assert int(found.count[0]) == int((found.indices[0] >= 0).sum())
