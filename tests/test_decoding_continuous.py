"""Answers written while others join and leave are those of `decode`, alone and in batches."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import GenerationConfig

from damro.decoding import continuous
from damro.decoding.continuous import Joining, Written, read, why_not, write
from damro.decoding.drawing import SeededSampling
from damro.decoding.families import family_of
from damro.decoding.generate import decode
from damro.decoding.rules import Contrast, ContrastRule
from damro.errors import NonFiniteScoresError
from damro.methods import Scene, parse
from damro.pruning import Pruning
from tests.golden_models import word_tokenizer
from tests.llava_models import IMAGE, PATCHES, llava_of
from tests.zoo import NEVER, zoo_inputs, zoo_model

ENDS = list(range(3, 190, 9))
METHODS = (
    "greedy", "damro:alpha=2,beta=0.1,top_k=4", "m3id:forgetting=0.3,confidence=1", "vcd:alpha=2,seed=3",
    "lcd", "damro:alpha=2,beta=0.1,top_k=4@1", "sample@0.7",
)  # fmt: skip


class Case(NamedTuple):
    """A prompt of its own."""

    key: str
    inputs: dict[str, Tensor]
    seed: int


@lru_cache
def cases(family: str) -> tuple[Any, list[Case]]:
    """A model, and prompts of widely different length about different images."""
    numbers = random.Random(4)
    lengths = (1, 30, 2, 55, 8, 3, 21)
    texts = [[numbers.randrange(20, 190) for _ in range(length)] for length in lengths]
    if family != "llava":
        prompts = [zoo_inputs(family, [(1, 9, "image", *text)], seed) for seed, text in enumerate(texts)]
        return zoo_model(family), [Case(f"case {n}", dict(one), n) for n, one in enumerate(prompts)]
    found = []
    for n, text in enumerate(texts):
        ids = torch.tensor([[1, *[IMAGE] * PATCHES, *text]])
        pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(n))
        found.append(Case(f"case {n}", {"input_ids": ids, "attention_mask": ids * 0 + 1, "pixel_values": pixels}, n))
    return llava_of(), found


def config_of(model: Any, **more: Any) -> GenerationConfig:
    told = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": ENDS, "pad_token_id": 0, "suppress_tokens": None}
    return GenerationConfig(**{**told, **more})


def contrast_of(model: Any, inputs: Any, method: str, keep: int | None = None) -> Any:
    scene = Scene(processor=word_tokenizer(200), pruning=None if keep is None else Pruning(keep))
    return parse(method).method.prepare(model, inputs, scene)


def alone(model: Any, case: Case, method: str, config: GenerationConfig, keep: int | None = None) -> list[int]:
    """The answer of `decode` to one prompt."""
    temperature = parse(method).temperature
    drawing = [SeededSampling([case.seed], temperature, 0.9)] if temperature else []
    contrast = contrast_of(model, case.inputs, method, keep)
    strategy: Any = "fused" if isinstance(contrast, Contrast) else "auto"
    ids = decode(model, case.inputs, contrast, strategy=strategy, generation_config=config, logits_processor=drawing)
    tokens: list[int] = ids[0, case.inputs["input_ids"].shape[1] :].tolist()
    return tokens


def together(
    model: Any, asked: Sequence[Case], method: str, config: GenerationConfig, rows: int, keep: int | None = None
) -> list[Written]:
    decoder, left = family_of(model).decoder(model), iter(asked)

    def more(free: int) -> list[Joining]:
        taken = [case for _, case in zip(range(free), left, strict=False)]
        return [
            read(decoder, contrast_of(model, case.inputs, method, keep), case.inputs, [case.key], config=config,
                 seeds=[case.seed])
            for case in taken
        ]  # fmt: skip

    options = {"temperature": parse(method).temperature, "top_p": 0.9}
    return list(write(decoder, more, rows=rows, config=config, **options))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_answers_are_those_of_each_prompt_alone(family: str, method: str) -> None:
    model, asked = cases(family)
    config = config_of(model, suppress_tokens=NEVER if family != "llava" else None)
    expected = {case.key: alone(model, case, method, config) for case in asked}
    lengths = {len(tokens) for tokens in expected.values()}
    assert len(lengths) > 2
    for rows in (1, 3, 8):
        found = together(model, asked, method, config, rows)
        assert {one.key: one.tokens for one in found} == expected
        assert all(one.error is None for one in found)


@given(st.permutations(range(7)), st.integers(1, 5))
@settings(max_examples=12, deadline=None)
def test_neither_order_nor_room_changes_an_answer(order: list[int], rows: int) -> None:
    model, asked = cases("llava")
    config, method = config_of(model), "damro:alpha=2,beta=0.1,top_k=4@1"
    found = together(model, [asked[n] for n in order], method, config, rows)
    assert {one.key: one.tokens for one in found} == expected_of(method)


@lru_cache
def expected_of(method: str) -> dict[Any, list[int]]:
    model, asked = cases("llava")
    return {case.key: alone(model, case, method, config_of(model)) for case in asked}


@pytest.mark.parametrize("method", ["greedy", "m3id:forgetting=0.3,confidence=1"])
def test_pruned_prompts_have_fewer_columns_than_tokens(method: str) -> None:
    model, asked = cases("llava")
    config = config_of(model)
    expected = {case.key: alone(model, case, method, config, keep=4) for case in asked}
    assert expected != {case.key: alone(model, case, method, config) for case in asked}
    assert {one.key: one.tokens for one in together(model, asked, method, config, 3, keep=4)} == expected


def test_prompts_of_tokens_with_columns_left_out() -> None:
    model, asked = cases("qwen2_5_vl")
    config, method = config_of(model, suppress_tokens=NEVER), "drop-outliers:top_k=3"
    expected = {case.key: alone(model, case, method, config) for case in asked}
    assert expected != {case.key: alone(model, case, "greedy", config) for case in asked}
    assert {one.key: one.tokens for one in together(model, asked, method, config, 3)} == expected


@pytest.mark.parametrize(
    "told",
    [
        {"repetition_penalty": 1.8},
        {"min_new_tokens": 5, "no_repeat_ngram_size": 2},
        {"suppress_tokens": list(range(0, 150)), "begin_suppress_tokens": list(range(150, 195))},
        {"forced_eos_token_id": 3, "max_new_tokens": 3, "renormalize_logits": True},
        {"min_length": 40, "max_new_tokens": None, "max_length": 80},
    ],
)
def test_settings_hold_for_each_row_by_its_own_tokens(told: dict[str, Any]) -> None:
    model, asked = cases("llava")
    config, method = config_of(model, **told), "damro:alpha=2,beta=0.1,top_k=4"
    expected = {case.key: alone(model, case, method, config) for case in asked}
    assert expected != {case.key: alone(model, case, method, config_of(model)) for case in asked}
    assert {one.key: one.tokens for one in together(model, asked, method, config, 3)} == expected


def test_prompts_that_are_read_as_one_padded_batch() -> None:
    """Of a batch, and of questions about one image whose beginning is read once: there the padding is within."""
    model, asked = cases("llava")
    config = config_of(model)
    width = max(case.inputs["input_ids"].shape[1] for case in asked)
    pads = [torch.zeros(1, width - case.inputs["input_ids"].shape[1], dtype=torch.long) for case in asked]
    batch = {
        key: torch.cat([torch.cat([pad, case.inputs[key]], dim=1) for pad, case in zip(pads, asked, strict=True)])
        for key in ("input_ids", "attention_mask")
    }
    batch["pixel_values"] = asked[0].inputs["pixel_values"].expand(len(asked), -1, -1, -1)
    contrast = contrast_of(model, batch, "m3id:confidence=1")
    expected = decode(model, batch, contrast, strategy="fused", generation_config=config)[:, width:].tolist()
    keys = [case.key for case in asked]
    for shared in (False, True):
        waiting = [read(model, contrast, batch, keys, config=config, shared_prefix=shared)]
        found = {
            one.key: one.tokens
            for one in write(model, lambda free, w=waiting: [w.pop()] if w else [], rows=7, config=config)
        }
        for key, tokens in zip(keys, expected, strict=True):
            assert found[key] == tokens[: len(found[key])]
            assert set(tokens[len(found[key]) :]) <= {0}


def test_logits_of_every_step_are_those_of_reading_all_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that equal tokens are no luck: whatever place a row has, and whoever came and went beside it."""
    model, asked = cases("llava")
    seen: dict[Any, list[Tensor]] = {}
    scores = continuous._Pool._scores

    def looking(pool: Any, places: Any, rows: Any) -> Any:
        for place, row in zip(places, rows, strict=True):
            seen.setdefault(row.key, []).append(pool._branches.logits[:, place].clone())
        return scores(pool, places, rows)

    monkeypatch.setattr(continuous._Pool, "_scores", looking)
    method = "m3id:forgetting=0.3,confidence=1"
    found = {one.key: one.tokens for one in together(model, asked, method, config_of(model), 3)}
    embed = model.get_input_embeddings()
    with torch.no_grad():
        for case in asked:
            contrast, tokens = contrast_of(model, case.inputs, method), found[case.key]
            assert len(seen[case.key]) == len(tokens)
            for branch, prompt in enumerate((contrast.full, contrast.negative)):
                columns = torch.cat([prompt.inputs_embeds, embed(torch.tensor([tokens[:-1]], dtype=torch.long))], dim=1)
                anew = model(inputs_embeds=columns, use_cache=False).logits[0, prompt.inputs_embeds.shape[1] - 1 :]
                ours = torch.stack([step[branch] for step in seen[case.key]])
                torch.testing.assert_close(ours, anew, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["greedy", "vcd:alpha=2,seed=3", "sample@0.7"])
def test_scores_that_are_no_numbers_break_their_own_answer_alone(method: str) -> None:
    model, asked = cases("llava")
    config = config_of(model)
    broken = asked[2]._replace(
        key="broken", inputs={**asked[2].inputs, "pixel_values": torch.full((1, 3, 56, 56), torch.nan)}
    )
    found = together(model, [*asked[:2], broken, *asked[2:]], method, config, 2)
    expected = {case.key: alone(model, case, method, config) for case in asked}
    assert {one.key: one.tokens for one in found if one.key != "broken"} == expected
    (failed,) = (one for one in found if one.key == "broken")
    assert failed.tokens == [] and isinstance(failed.error, NonFiniteScoresError)


def test_prompts_are_read_as_places_get_free_and_answers_told_as_they_end() -> None:
    model, asked = cases("llava")
    config, taken = config_of(model), []

    def count() -> Iterator[Case]:
        for case in asked:
            taken.append(case.key)
            yield case

    told: list[int] = []
    decoder, left = family_of(model).decoder(model), count()

    def more(free: int) -> list[Joining]:
        new = [case for _, case in zip(range(free), left, strict=False)]
        return [
            read(decoder, contrast_of(model, case.inputs, "greedy"), case.inputs, [case.key], config=config)
            for case in new
        ]

    for done, _ in enumerate(write(decoder, more, rows=2, config=config)):
        told.append(len(taken) - done)
    assert len(told) == 7 and max(told) <= 2


@pytest.mark.parametrize(
    ("method", "told", "why"),
    [
        ("opera", {}, "searches by itself"),
        ("pai:from_layer=0", {}, "works inside"),
        ("dola", {}, "works inside"),
        ("greedy", {"num_beams": 2}, "another search"),
        ("greedy", {"do_sample": True}, "another search"),
        ("greedy", {"max_time": 5.0}, "MaxTimeCriteria looks at more than a row"),
        ("greedy", {"guidance_scale": 1.5}, "UnbatchedClassifierFreeGuidance.* looks at more than a row"),
        ("damro:alpha=2,beta=0.1,top_k=4", {}, None),
        ("m3id", {}, None),
        ("lcd", {"repetition_penalty": 1.2}, None),
    ],
)
def test_what_cannot_be_written_so_is_told(method: str, told: dict[str, Any], why: str | None) -> None:
    model, asked = cases("llava")
    found = why_not(model, contrast_of(model, asked[0].inputs, method), config_of(model, **told))
    if why is None:
        assert found is None
    else:
        with pytest.raises(AssertionError, match=why):
            raise AssertionError(found)


class Halving:
    """A rule that takes a number of the step alone, as one of another package may."""

    def needed(self, full: Tensor, step: Any) -> Tensor:
        return torch.ones_like(full, dtype=torch.bool)

    def __call__(self, full: Tensor, negative: Tensor | None, step: Any) -> Tensor:
        return ContrastRule(0.5**step, 0.1)(full, negative, step)


def test_a_rule_that_takes_one_step_for_all_rows_is_told() -> None:
    model, asked = cases("llava")
    contrast = contrast_of(model, asked[0].inputs, "m3id")
    halving = Contrast(contrast.full, contrast.negative, Halving())
    assert why_not(model, halving, config_of(model)) == "Halving takes one step for all rows"


@pytest.mark.parametrize("beta", [None, 0.1])
def test_m3id_weighs_every_row_by_its_own_step(beta: float | None) -> None:
    from damro.methods.m3id import M3IDRule

    rule, logits = M3IDRule(0.2, 1.0, beta), torch.randn(2, 40, 90, generator=torch.Generator().manual_seed(0)) * 3
    steps = torch.arange(40)[:, None] * 17
    each = [rule(logits[0, row, None], logits[1, row, None], int(steps[row])) for row in range(40)]
    assert torch.equal(rule(logits[0], logits[1], steps), torch.cat(each))
