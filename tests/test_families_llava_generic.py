"""LLaVA has a module, and needs none to be decoded: the prompt of every model agrees with the module's, bit for bit.

Why the module stays is told in `docs/families.md`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from damro.decoding.branches.fused import prefill
from damro.decoding.branches.prefix import prefill_shared
from damro.decoding.compat import older_than
from damro.decoding.families import generic, llava
from damro.decoding.families.generic.prompt import TokenPrompt
from damro.decoding.families.generic.support import SINCE
from damro.decoding.generate import decode
from damro.decoding.hooks import hooked
from damro.decoding.prompts import Prompt
from damro.decoding.rules import Contrast, ContrastRule
from tests.family_models import family_inputs, family_model
from tests.golden_cases import PAD_TOKEN, Inputs, golden_runs, inputs_of, model_of, prompt_length

pytestmark = pytest.mark.skipif(older_than(SINCE), reason=f"models without a module need transformers {SINCE}")

RUNS = [run for run in golden_runs() if run.family == "llava" and run.strengths]
MODELS = ("llava", "llava_siglip")


def case(name: str) -> tuple[Any, Inputs]:
    golden = name == "llava"
    return (model_of(name), inputs_of("llava_batch2")) if golden else (family_model(name), family_inputs(name))


def both(model: Any, inputs: Inputs) -> tuple[Prompt, TokenPrompt]:
    """The module's full prompt, and that of models without one."""
    ours, every = llava.encode(model, inputs), generic.encode(model, inputs)
    return llava.full_prompt(model, inputs, ours), generic.full_prompt(model, inputs, every)


def same(model: Any, one: Prompt, other: Prompt) -> None:
    """Both number their columns alike, and the model says the same behind them, and behind a token more."""
    assert torch.equal(one.image_mask, other.image_mask) and torch.equal(one.attention_mask, other.attention_mask)
    read, told = one.first_inputs(), other.first_inputs()
    assert torch.equal(read["position_ids"], told["position_ids"])
    assert torch.equal(one.next_position, other.next_position)
    first, second = prefill(model, one), prefill(model, other)
    assert torch.equal(first.logits, second.logits)
    for layer, same_layer in zip(first.cache.layers, second.cache.layers, strict=True):
        columns = one.attention_mask.bool()
        for keys, same_keys in ((layer.keys, same_layer.keys), (layer.values, same_layer.values)):
            assert torch.equal(keys.movedim(1, 2)[columns], same_keys.movedim(1, 2)[columns])


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_all_columns_are_read_as_the_module_has_them(name: str) -> None:
    model, inputs = case(name)
    module, tokens = both(model, inputs)
    same(model, module, tokens)
    every = [torch.arange(int(row.sum())) for row in tokens.image_mask]
    same(model, module, tokens.keep(every))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_chosen_columns_are_read_as_the_module_has_them(name: str) -> None:
    """In the order of their attention, numbered without gaps."""
    model, inputs = case(name)
    module, tokens = both(model, inputs)
    chosen = torch.tensor([[7, 2, 11], [0, 15, 3]])
    negative = llava.prompt_of_patches(model, inputs, llava.encode(model, inputs), chosen)
    same(model, negative, tokens.keep(list(chosen)))
    same(model, module.drop_image(), tokens.drop_image())


@pytest.mark.parametrize("strategy", ["lazy", "fused"])
@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_the_recording_is_reproduced_without_the_module(run: Any, strategy: Any) -> None:
    """With the patches that it names; those are chosen by attention with the heads merged, which is the module's."""
    golden, model, inputs = run.tensors(), model_of(run.family), inputs_of(run.inputs)
    module, tokens = both(model, inputs)
    chosen = list(golden["topk_idx"].long())
    rule = ContrastRule(run.strengths["alpha"], run.strengths["beta"])
    written: list[tuple[Tensor, Tensor]] = []
    for full in (tokens, module):
        if run.sample_seed is not None:
            torch.manual_seed(run.sample_seed)
        output = decode(
            model, inputs, Contrast(full, full.keep(chosen), rule), strategy=strategy, max_new_tokens=24,
            do_sample=run.sample_seed is not None, top_k=0, eos_token_id=run.eos, pad_token_id=PAD_TOKEN,
            output_scores=True, return_dict_in_generate=True,
        )  # fmt: skip
        written.append((output.sequences[:, prompt_length(inputs) :], torch.stack(output.scores)))
    (ids, scores), (same_ids, same_scores) = written
    assert torch.equal(ids, golden["generated_ids"]) and torch.equal(ids, same_ids)
    assert torch.equal(scores, same_scores)


@torch.no_grad()
def test_what_questions_have_in_common_is_read_once_with_the_module() -> None:
    model, inputs = case("llava")
    asked = {key: value[:1].repeat(6, *[1] * (value.ndim - 1)) for key, value in inputs.items()}
    asked["input_ids"][:, -1] = torch.arange(20, 26)
    read: list[int] = []

    def count(module: Any, args: Any, kwargs: Any) -> None:
        read.append((args[0] if args else kwargs["hidden_states"]).shape[:2].numel())

    counts, logits = [], []
    for prompt in both(model, asked):
        with hooked(before=[(model.model.language_model.layers[0], count)]):
            logits.append(prefill_shared(model, prompt).logits)
        counts.append(sum(read))
        read.clear()
    length = asked["input_ids"].shape[1]
    assert counts == [length - 1 + 6, 6 * length]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=0)
