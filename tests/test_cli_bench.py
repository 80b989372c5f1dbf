"""``damro bench`` on a model of nothing much; nothing here looks at a time."""

from __future__ import annotations

import argparse
import json

import pytest
import torch

from damro.cli import main
from damro.cli.bench import _cells
from damro.decoding.families import check_inputs
from damro.speed.shapes import SHAPES, random_inputs, random_model, with_grid
from damro.speed.timing import machine, measure, methods, weight_bytes

MICRO = ["bench", "--config", "micro", "--device", "cpu", "--repeats", "1", "--image-tokens", "64"]


def test_json_has_every_method_and_cell(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*MICRO, "--batch", "1", "2", "--new-tokens", "2", "4", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [(cell["batch"], cell["new_tokens"]) for cell in report["cells"]] == [(1, 2), (1, 4), (2, 2), (2, 4)]
    for cell in report["cells"]:
        passes = {name: speed["vision_passes"] for name, speed in cell["methods"].items()}
        assert passes == {"greedy": 1, "naive": 2, "lazy": 1, "lazy-idle": 1, "fused": 1}
        assert cell["methods"]["greedy"]["whole_ratio"] == cell["methods"]["greedy"]["step_ratio"] == 1.0
    assert set(report["questions"]) == {
        "greedy, one by one",
        "damro, one by one",
        "damro, batch",
        "damro, shared prefix",
    }
    assert report["device"] == "cpu" and report["torch"] == str(torch.__version__)


def test_table_names_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*MICRO, "--batch", "1", "--new-tokens", "2", "--no-questions"]) == 0
    printed = capsys.readouterr().out
    assert "64 image tokens, batch 1, 2 new tokens" in printed
    assert "roofline" in printed and "questions" not in printed
    assert sum(line.startswith(("greedy", "naive", "lazy", "fused")) for line in printed.splitlines()) == 5


def test_the_analysis_stands_beside_the_vision_pass(capsys: pytest.CaptureFixture[str]) -> None:
    asked = [*MICRO, "--batch", "1", "2", "--new-tokens", "2", "--no-questions", "--no-pruning"]
    assert main([*asked, "--json"]) == 0
    analysis = json.loads(capsys.readouterr().out)["analysis"]
    assert analysis["image_tokens"] == 64 and [row["batch"] for row in analysis["rows"]] == [1, 2]
    for row in analysis["rows"]:
        assert row["ratio"] == row["analysed"] / row["vision"] and row["verifying"] is None
    assert main([*asked, "--no-analysis"]) == 0
    assert "analysis" not in capsys.readouterr().out


def test_a_model_without_a_module_is_measured_in_all_but_pruning(capsys: pytest.CaptureFixture[str]) -> None:
    asked = [*MICRO, "--batch", "1", "--new-tokens", "2"]
    asked[asked.index("micro")] = "micro-qwen2.5-vl"
    assert main([*asked, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    (cell,) = report["cells"]
    assert {name: speed["vision_passes"] for name, speed in cell["methods"].items()} == {
        "greedy": 1, "lazy": 1, "lazy-idle": 1, "fused": 1,
    }  # fmt: skip
    assert report["analysis"]["rows"][0]["verifying"] > 0 and len(report["questions"]) == 4
    assert "pruning" not in report


def test_other_image_tokens_are_measured_at_the_first_batch_only() -> None:
    asked = argparse.Namespace(image_tokens=[64, 576, 2880], batch=[1, 4], new_tokens=[8, 64])
    assert list(_cells(asked)) == [
        (64, 1, 8),
        (576, 1, 8),
        (576, 1, 64),
        (576, 4, 8),
        (576, 4, 64),
        (2880, 1, 8),
    ]


def test_counts_below_one_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*MICRO, "--batch", "0"])
    assert "--batch must be a whole number of at least 1, got '0'" in capsys.readouterr().err


def test_all_methods_but_the_idle_one_write_the_same() -> None:
    from benchmarks.naive_processor import NaiveProcessor

    model = random_model(SHAPES["micro"])
    inputs = random_inputs(model, 2)
    calls = methods(model, inputs, NaiveProcessor)
    written = {name: call(max_new_tokens=6, do_sample=False) for name, call in calls.items()}
    for name in ("lazy", "fused"):
        assert torch.equal(written[name], written["naive"])
    assert torch.equal(written["lazy-idle"], written["greedy"])
    told: list[tuple[str, int, int]] = []
    rows = measure(model, calls, new_tokens=2, repeats=2, tell=lambda *step: told.append(step))
    assert next(rows)[0] == "greedy" and told[-1] == ("greedy, run 2 of 2", 10, 15)  # a row as soon as it is there
    assert ["greedy", *(name for name, _ in rows)] == list(calls)
    assert [done for _, done, _ in told] == list(range(15))


def test_random_inputs_are_what_a_processor_returns() -> None:
    model = random_model(with_grid(SHAPES["micro"], 3))
    inputs = random_inputs(model, 2, images=3, before=4, after=5)
    check_inputs(model, inputs)
    assert inputs["input_ids"].shape == (2, 4 + 3 * 9 + 5) and inputs["pixel_values"].shape == (6, 3, 42, 42)
    assert (inputs["input_ids"] == model.config.image_token_id).sum().item() == 2 * 27
    assert torch.equal(inputs["input_ids"][0, :4], inputs["input_ids"][1, :4])
    same = random_inputs(model, 2, same_image=True)["pixel_values"]
    assert torch.equal(same[0], same[1])


@pytest.mark.parametrize("tied", [True, False])
def test_weights_read_a_token_by_hand(tied: bool) -> None:
    shape = SHAPES["micro"].__class__(**{**vars(SHAPES["micro"]), "tied": tied})
    # hidden 64, 4 heads of 16, 2 of them for keys and values, feed-forward 128, 2 layers, 512 tokens
    attention = 64 * 64 + 2 * 64 * 32 + 64 * 64
    layer = attention + 3 * 64 * 128 + 2 * 64
    assert weight_bytes(random_model(shape)) == 4 * (2 * layer + 64 + 512 * 64)


def test_the_small_shape_has_135_million_weights_in_its_language_model() -> None:
    with torch.device("meta"):
        model = random_model(SHAPES["small"], device="meta")
    assert round(sum(weight.numel() for weight in model.get_decoder().parameters()) / 1e6) == 135


def test_machine_names_what_figures_depend_on() -> None:
    found = machine(torch.device("cpu"))
    assert found["threads"] == torch.get_num_threads() and "core" in found["hardware"]
