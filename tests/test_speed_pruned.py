"""damro/speed/pruned.py on a model of nothing much; nothing here looks at a time."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from damro.cli import main
from damro.decoding.compat import CACHE
from damro.decoding.families import family_of
from damro.decoding.prompts import VisualPrompt
from damro.speed.pruned import kv_bytes, measure_pruning
from damro.speed.shapes import SHAPES, random_inputs, random_model
from tests.test_branches_compiled import interpreted

__all__ = ["interpreted"]  # a fixture

# A column of "micro": keys and values, 2 layers, 2 heads of 16 numbers of 4 bytes.
COLUMN = 2 * 2 * 2 * 16 * 4
TEXT, PATCHES, TOP_K = 25, 16, 10  # text columns of the inputs, patches of the image, the preset's outliers


@pytest.fixture(scope="module")
def model() -> Any:
    return random_model(SHAPES["micro"])


@pytest.mark.parametrize("batch", [1, 2])
def test_kv_is_that_of_both_branches(model: Any, batch: int) -> None:
    found = measure_pruning(model, random_inputs(model, batch), [9, 3], new_tokens=4, repeats=1)
    assert [(speed.method, speed.kept) for speed in found] == [
        ("plain", None), ("damro", None), ("plain", 9), ("damro", 9), ("plain", 3), ("damro", 3),
    ]  # fmt: skip
    # Of 4 new tokens the last one is never read.
    plain = [batch * COLUMN * (TEXT + kept + 3) for kept in (PATCHES, 9, 3)]
    negative = batch * COLUMN * (TEXT + TOP_K + 3)
    assert [speed.kv_bytes for speed in found[::2]] == plain
    assert [speed.kv_bytes for speed in found[1::2]] == [held + negative for held in plain]
    for speed in found:
        assert 0 < speed.language <= speed.prefill <= speed.whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kv_is_what_the_stock_cache_holds(dtype: torch.dtype) -> None:
    model = random_model(SHAPES["micro"], dtype=dtype)
    inputs = random_inputs(model, 2)
    output = model.generate(**inputs, max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
    cache = getattr(output, CACHE)
    held = sum(half.nbytes for layer in cache.layers for half in (layer.keys, layer.values))
    family = family_of(model)
    with torch.no_grad():
        prompt = family.full_prompt(model, inputs, family.encode(model, inputs))
    assert kv_bytes(model, [prompt], 5) == held


def test_heads_may_be_of_another_width_than_the_models_share() -> None:
    class Config:
        hidden_size, num_attention_heads, num_key_value_heads, num_hidden_layers = 64, 4, 2, 3

        def __init__(self, **more: int) -> None:
            vars(self).update(more)

        def get_text_config(self) -> Config:
            return self

    class Model:
        dtype = torch.float16

        def __init__(self, config: Config) -> None:
            self.config = config

    prompt = VisualPrompt(torch.zeros(1, 7, 64), torch.ones(1, 7), torch.zeros(1, 7, dtype=torch.bool))
    assert kv_bytes(Model(Config()), [prompt], 1) == 2 * 3 * 2 * 16 * 2 * 7  # type: ignore[arg-type]
    assert kv_bytes(Model(Config(head_dim=32)), [prompt], 1) == 2 * 3 * 2 * 32 * 2 * 7  # type: ignore[arg-type]


def test_no_hook_stays(model: Any) -> None:
    inputs = random_inputs(model, 1)
    model.generate(**inputs, max_new_tokens=1)  # transformers leaves hooks of its own on the first run

    def hooks() -> int:
        return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())

    before = hooks()
    measure_pruning(model, inputs, [3], new_tokens=2, repeats=1)
    assert hooks() == before


def test_compiled_steps_stand_beside_the_others(
    model: Any, interpreted: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    found = measure_pruning(model, random_inputs(model, 1), [3], new_tokens=3, repeats=1, compiled=True)
    assert [(speed.method, speed.compiled, speed.kept) for speed in found] == [
        ("plain", False, None), ("damro", False, None), ("plain", True, None), ("damro", True, None),
        ("plain", False, 3), ("damro", False, 3), ("plain", True, 3), ("damro", True, 3),
    ]  # fmt: skip
    assert len(interpreted) == 1
    assert [speed.kv_bytes for speed in found[:2]] == [speed.kv_bytes for speed in found[2:4]]
    asked = ["--compile", "--image-tokens", "64", "--new-tokens", "2", "--keep-tokens", "8", "--no-analysis"]
    assert main([*BENCH, *asked]) == 0
    table = capsys.readouterr().out.split("pruning of 64 image tokens")[1]
    names = ["plain", "damro", "plain-compiled", "damro-compiled"]
    assert [line.split()[0] for line in table.splitlines() if line.startswith(("plain", "damro"))] == names * 2


BENCH = ["bench", "--config", "micro", "--device", "cpu", "--repeats", "1", "--batch", "2", "1", "--no-questions"]


def test_json_has_every_number_of_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BENCH, "--image-tokens", "64", "--new-tokens", "3", "--keep-tokens", "32", "8", "--json"]) == 0
    pruning = json.loads(capsys.readouterr().out)["pruning"]
    assert (pruning["image_tokens"], pruning["batch"], pruning["new_tokens"]) == (64, 2, 3)
    rows = pruning["rows"]
    assert [(row["method"], row["kept"], row["image_tokens"]) for row in rows] == [
        ("plain", None, 64), ("damro", None, 64), ("plain", 32, 32), ("damro", 32, 32), ("plain", 8, 8),
        ("damro", 8, 8),
    ]  # fmt: skip
    assert rows[0]["prefill_ratio"] == rows[0]["language_ratio"] == rows[0]["whole_ratio"] == rows[0]["kv_ratio"] == 1
    columns = [TEXT + kept + 2 for kept in (64, 32, 8)]  # of 3 new tokens 2 are read
    assert [row["kv_ratio"] for row in rows[::2]] == [held / columns[0] for held in columns]
    assert [row["kv_ratio"] for row in rows[1::2]] == [(held + TEXT + TOP_K + 2) / columns[0] for held in columns]
    for row in rows[1:]:
        assert row["prefill_ratio"] == row["prefill"] / rows[0]["prefill"]
        assert row["whole_ratio"] == row["whole"] / rows[0]["whole"]


def test_the_table_has_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BENCH, "--image-tokens", "576", "--new-tokens", "2"]) == 0
    printed = capsys.readouterr().out
    table = printed.split("pruning of 576 image tokens, batch 2, 2 new tokens; ratios to plain with all")[1]
    assert [line.split()[:2] for line in table.splitlines() if line.startswith(("plain", "damro"))] == [
        [method, str(kept)] for kept in (576, 288, 192, 128, 64, 29) for method in ("plain", "damro")
    ]
    assert "the vision tower included" in table


def test_it_can_be_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BENCH, "--image-tokens", "64", "--new-tokens", "2", "--no-pruning", "--json"]) == 0
    assert "pruning" not in json.loads(capsys.readouterr().out)


def test_more_tokens_than_an_image_has_are_refused_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BENCH, "--config", "no such model", "--image-tokens", "64", "--keep-tokens", "64"]) == 2
    captured = capsys.readouterr()
    assert "--keep-tokens must be below the 64 tokens of an image, got 64" in captured.err
    assert captured.out == ""
