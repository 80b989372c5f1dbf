"""Every method with a pruned prompt: it decodes as it should, or says in one sentence why not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import damro
from damro.decoding.errors import DecodingError, UnsupportedModelError
from damro.decoding.inside import prompts_of
from damro.methods import METHODS, Scene, parse
from damro.pruning import Pruning, prune
from tests.golden_cases import inputs_of, model_of, prompt_length, row_alone
from tests.golden_models import make_processor
from tests.zoo import zoo_inputs, zoo_model

KEPT, PATCHES = 6, 16
GREEDY: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
TOLD = {
    **{name: f"{name}:top_k=4" for name in ("damro", "random-k", "least-k", "drop-outliers", "drop-random")},
    "registers": "registers:outliers=attention,top_k=4",
    "crop": "crop:patches=4",
}
"""What small models need; others take their defaults."""
OWN_IMAGE = ("drop-outliers", "drop-random", "registers", "crop")
"""Methods whose full prompt shows the image otherwise than the model would see it."""
NEED_MORE = ("vti", "ritual")
"""Methods that need a file or the pictures; tests of their own prune them."""


def answer(method: str, family: str, inputs: Any, keep: int | None, **options: Any) -> Any:
    """Token ids; or the message of a refusal, which must be a sentence."""
    told = TOLD.get(method, method)
    try:
        return damro.generate(
            model_of(family), inputs, told, keep_tokens=keep, processor=make_processor(family), **GREEDY, **options
        )
    except DecodingError as error:
        assert " must " in str(error) and "got " in str(error) and "\n" not in str(error)
        return str(error)


@pytest.mark.parametrize("family", ["llava", "llava_next"])
@pytest.mark.parametrize("method", list(METHODS))
def test_all_patches_are_the_whole_prompt(method: str, family: str) -> None:
    """Of a prompt that keeps every patch, the answer is that of the prompt which is not pruned."""
    inputs = inputs_of(f"{family}_batch2")
    whole = answer(method, family, inputs, None)
    kept = answer(method, family, inputs, PATCHES)
    assert kept == whole if isinstance(whole, str) else torch.equal(kept, whole)


@pytest.mark.parametrize("family", ["llava", "llava_next"])
@pytest.mark.parametrize("method", list(METHODS))
def test_a_pruned_batch_is_answered_as_its_rows_alone(method: str, family: str) -> None:
    inputs = inputs_of(f"{family}_batch2")
    together = answer(method, family, inputs, KEPT)
    rows = [row_alone(inputs, row) for row in (0, 1)]
    answers = [answer(method, family, alone, KEPT) for alone in rows]
    if isinstance(together, str):  # by one of its rows at least: "code" describes one image a prompt
        assert any(isinstance(one, str) for one in answers)
        return
    for row, (alone, one) in enumerate(zip(rows, answers, strict=True)):
        if method not in ("random-k", "drop-random"):  # without names of images they draw for the batch
            assert torch.equal(one[0, prompt_length(alone) :], together[row, prompt_length(inputs) :])


@pytest.mark.parametrize("method", [name for name in METHODS if name not in (*OWN_IMAGE, *NEED_MORE)])
def test_the_full_prompt_is_the_pruned_one(method: str) -> None:
    model, inputs = model_of("llava"), inputs_of("llava_batch2")
    recipe = parse(TOLD.get(method, method))
    scene = Scene(pruning=Pruning(KEPT), processor=make_processor("llava"))
    full: Any = prompts_of(recipe.method.prepare(model, inputs, scene))[0]
    assert torch.equal(full.inputs_embeds, prune(model, inputs, KEPT).inputs_embeds)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "vti"])
def test_columns_that_are_no_patches_are_refused(method: str) -> None:
    refused = answer(method, "instructblip", inputs_of("instructblip_img0"), 3)
    assert isinstance(refused, str)
    model, inputs = zoo_model("qwen2_5_vl"), zoo_inputs("qwen2_5_vl")
    scene = Scene(pruning=Pruning(3), processor=make_processor("llava"))
    strengths = "alpha=1,beta=0.1,top_k=2" if "top_k=4" in TOLD.get(method, "") and "drop" not in method else "top_k=2"
    told = {"no-image": "no-image:alpha=1,beta=0.1", "registers": "registers", "crop": "crop"}
    text = told.get(method, f"{method}:{strengths}" if method in TOLD else method)
    with pytest.raises(UnsupportedModelError, match="keep_tokens|vision tower must be|as one square"):
        parse(text).method.prepare(model, inputs, scene)
