"""Image-text models without a module of their own, against the stock model that reads negative prompts anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import damro
from damro.decoding.families import family_of
from tests.zoo import NEVER, PROMPTS, RECURRENT, TWO_IMAGES, ZOO, thorough, zoo_inputs, zoo_model
from tests.zoo_reference import Stateless, chosen_columns, negative_rows

EVERY_MODEL = pytest.mark.parametrize("name", ZOO)
ALPHA, BETA, TOP_K = 2.0, 0.1, 3
METHOD = f"damro:alpha={ALPHA},beta={BETA},top_k={TOP_K}"
NEW: dict[str, Any] = {"max_new_tokens": 8, "suppress_tokens": NEVER}
GREEDY = {**NEW, "do_sample": False}
SAMPLED = {**NEW, "do_sample": True, "temperature": 1.5}


def reference(name: str, inputs: dict[str, Any], **call: Any) -> Tensor:
    """What stock ``generate`` writes with the contrast of the reference."""
    model, length = zoo_model(name), inputs["input_ids"].shape[1]
    with torch.no_grad():
        rows = negative_rows(name, model, inputs, TOP_K)
    torch.manual_seed(0)
    ids: Tensor = model.generate(**inputs, logits_processor=[Stateless(model, rows, length, ALPHA, BETA)], **call)
    return ids


@EVERY_MODEL
@pytest.mark.parametrize("prompts", [PROMPTS, TWO_IMAGES], ids=["two", "images"])
def test_greedy_tokens_are_those_of_prompts_read_anew(name: str, prompts: Any) -> None:
    """Two prompts of different length; in the second case two images in one prompt."""
    model, inputs = zoo_model(name), zoo_inputs(name, prompts)
    expected = reference(name, inputs, **GREEDY)
    plain = model.generate(**inputs, **GREEDY)
    assert not torch.equal(expected, plain)
    processor = damro.DAMROProcessor(model, inputs, alpha=ALPHA, beta=BETA, top_k=TOP_K)
    assert torch.equal(model.generate(**inputs, logits_processor=processor, **GREEDY), expected)
    assert torch.equal(damro.generate(model, inputs, METHOD, strategy="fused", **GREEDY), expected)
    chosen, _ = chosen_columns(name, inputs, TOP_K)
    assert processor.outliers.tolist() == [columns.tolist() for columns in chosen]


@pytest.mark.parametrize("name", thorough(ZOO))
def test_sampled_tokens_are_those_of_prompts_read_anew(name: str) -> None:
    model, inputs = zoo_model(name), zoo_inputs(name, seed=2)
    expected = reference(name, inputs, **SAMPLED)
    for strategy in ("lazy", "fused"):
        torch.manual_seed(0)
        assert torch.equal(damro.generate(model, inputs, METHOD, strategy=strategy, **SAMPLED), expected)


@pytest.mark.parametrize("name", thorough([name for name in ZOO if name not in RECURRENT]))
def test_beams_are_those_of_prompts_read_anew(name: str) -> None:
    # transformers 5.24 mixes up the images of a prompt when it repeats it for the beams of GLM.
    model, inputs = zoo_model(name), zoo_inputs(name, PROMPTS if name.startswith("glm") else TWO_IMAGES)
    call = {**GREEDY, "num_beams": 3}
    expected = reference(name, inputs, **call)
    assert torch.equal(damro.generate(model, inputs, METHOD, **call), expected)
    processor = damro.DAMROProcessor(model, inputs, alpha=ALPHA, beta=BETA, top_k=TOP_K)
    assert torch.equal(model.generate(**inputs, logits_processor=processor, **call), expected)


@EVERY_MODEL
@torch.no_grad()
def test_a_prompt_of_all_columns_is_the_full_prompt(name: str) -> None:
    model, inputs = zoo_model(name), zoo_inputs(name, TWO_IMAGES)
    family = family_of(model)
    full = family.full_prompt(model, inputs, family.encode(model, inputs))
    every = full.keep([torch.arange(int(row.sum())) for row in full.image_mask])
    ours = model(**every.first_inputs(), use_cache=False).logits[:, -1]
    assert torch.equal(ours, model(**full.first_inputs(), use_cache=False).logits[:, -1])
    stock = model.generate(
        **inputs, max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True
    ).logits[0]
    torch.testing.assert_close(ours, stock, atol=1e-5, rtol=0)
