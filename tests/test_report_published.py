"""eval/report/published.py: what a run does otherwise than the paper, and what its figures then say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from run_cli import call
from transformers import (
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)

from damro.eval.benchmark import Group
from damro.eval.chair.groups import MEASURES as CAPTIONS
from damro.eval.errors import EvalError
from damro.eval.pope import load_questions
from damro.eval.pope.benchmark import PAPER_QUESTIONS, PAPER_SPLITS
from damro.eval.report.comparison import Comparison, Entry
from damro.eval.report.published import PAPER_SIZE, Beside, protocol_differences, put_beside
from damro.eval.runs.record import to_record
from damro.eval.runs.request import RunRequest
from damro.eval.statistics import Interval

PARAMETERS = {"alpha": 2.0, "beta": 0.1, "top_k": 10, "variant": "reference"}
PROMPTS = {"pope": "{question} Please answer this question with one word.", "chair": None}
WHOLE = Group("all splits", {"rule": "vcd", "n": PAPER_QUESTIONS}, {}, {})


def record(
    method: str = "damro",
    benchmark: str = "pope",
    model: str = "llava-hf/llava-1.5-7b-hf",
    resolved: dict[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """A run as the paper's, but for the options and what is resolved."""
    request = RunRequest(benchmark, model, method=method, images="val2014", **options)
    parameters = {**PARAMETERS, "alpha": 0.5 if benchmark == "chair" else 2.0} if method == "damro" else {}
    usual: dict[str, Any] = {
        "model": {"family": "llava", "dtype": "float32", "parameters": 7_063_000_000},
        "method": {"name": method, "method": method, "temperature": 1.0, "top_p": 1.0, "parameters": parameters},
        "generation": {"max_new_tokens": 1024},
        "prompt": {"template": PROMPTS[benchmark] or request.asked.prompt},
    }
    for part, values in (resolved or {}).items():
        usual[part] = {**usual[part], **values}
    return to_record(request, usual)


def reasons(run: dict[str, Any], scored: Group = WHOLE) -> list[str]:
    return [one.text.partition(":")[0] for one in protocol_differences(run, scored) if not one.harmless]


@pytest.mark.parametrize("method", ["greedy", "damro"])
def test_the_papers_own_setting_is_comparable(method: str) -> None:
    assert reasons(record(method)) == []
    told = [one.text for one in protocol_differences(record(method, seed=1), WHOLE)]
    assert "seed: 1; the paper's is 42" in told


@pytest.mark.parametrize(
    "model", ["/models/llava-1.5-7b-hf", "/cache/models--llava-hf--llava-1.5-7b-hf/snapshots/0a1b2c"]
)
def test_a_checkpoint_is_known_wherever_it_lies(model: str) -> None:
    assert reasons(record(model=model)) == []


@pytest.mark.parametrize(
    ("reason", "resolved", "options"),
    [
        ("size", {"model": {"parameters": 3_900_000}}, {}),
        ("size", {"model": {"parameters": 13_350_000_000}}, {}),
        ("size", {"model": {"parameters": None}}, {}),
        ("dtype", {"model": {"dtype": "float16"}}, {}),
        ("quantization", {}, {"quantization": "4bit"}),
        ("model", {}, {"model": "tiny-llava"}),
        ("model", {}, {"model": "llava-hf/llava-1.5-7b-hf-tuned"}),
        ("model", {}, {"model": "runs/llava-1.5-7b-hf/checkpoint-100"}),
        ("decoding", {"method": {"temperature": 0.0}}, {}),
        ("decoding", {"method": {"temperature": 0.5}}, {}),
        ("decoding", {"method": {"top_p": 0.9}}, {}),
        ("max_new_tokens", {"generation": {"max_new_tokens": 64}}, {}),
        ("prompt", {"prompt": {"template": "{question}"}}, {}),
        ("pruning", {"method": {"keep_tokens": 192}}, {}),
        ("alpha", {"method": {"parameters": {**PARAMETERS, "alpha": 0.1}}}, {}),
        ("top_k", {"method": {"parameters": {**PARAMETERS, "top_k": 3}}}, {}),
        ("variant", {"method": {"parameters": {**PARAMETERS, "variant": "corrected"}}}, {}),
        ("questions", {}, {"data": {"questions": "own.jsonl"}}),
        ("questions", {}, {"data": {"split": ("coco/random",)}}),
        ("questions", {}, {"data": {"split": ("all",)}}),
        ("samples", {}, {"limit": 3000}),
    ],
)
def test_what_moves_a_figure_is_not_comparable(reason: str, resolved: dict[str, Any], options: dict[str, Any]) -> None:
    assert reasons(record(resolved=resolved, **options)) == [reason]


def test_an_older_record_says_too_little() -> None:
    run = record()
    del run["resolved"]["model"]["parameters"]
    assert reasons(run) == ["size"]


@pytest.mark.parametrize(
    ("reason", "scores"),
    [("samples", {"n": 8999}), ("rule", {"rule": "pope"}), ("labels", {"labels_changed": 0})],
)
def test_what_was_scored_counts_too(reason: str, scores: dict[str, Any]) -> None:
    assert reasons(record(), Group("all splits", {**WHOLE.scores, **scores}, {}, {})) == [reason]


def test_captions_are_of_the_papers_images() -> None:
    asked = {str(int(question.image[-16:-4])): (1.0,) for question in load_questions("coco/popular")}
    assert len(asked) == 500
    theirs = Group("captions", {"matcher": "nltk"}, asked, {})
    assert reasons(record(benchmark="chair"), theirs) == []
    others = Group("captions", {"matcher": "builtin"}, {**dict(list(asked.items())[1:]), "1": (1.0,)}, {})
    assert reasons(record(benchmark="chair"), others) == ["images", "matcher"]


def test_the_papers_sizes_are_those_of_its_architectures() -> None:
    blip = InstructBlipConfig(text_config=LlamaConfig().to_dict())
    with torch.device("meta"):
        models = [
            LlavaForConditionalGeneration(LlavaConfig()),
            LlavaNextForConditionalGeneration(LlavaNextConfig()),
            InstructBlipForConditionalGeneration(blip),
        ]
    assert all(PAPER_SIZE[0] < sum(w.numel() for w in model.parameters()) < PAPER_SIZE[1] for model in models)


@pytest.mark.parametrize(
    ("low", "high", "why", "outcome"),
    [
        (0.05, 0.10, (), "yes"),
        (0.05, 0.12, (), "not decided"),  # 7 points wide, and DAMRO changes 6.4
        (0.07, 0.09, (), "no"),
        (0.07, 0.99, (), "no"),
        (float("-inf"), float("inf"), (), "not decided"),
        (0.05, 0.10, ("dtype: float16",), "not comparable"),
    ],
)
def test_a_wide_interval_is_no_agreement(low: float, high: float, why: tuple[str, ...], outcome: str) -> None:
    measured = Interval(0.06, low, high, 0.95, 2000)
    assert Beside("damro", "chair_s", CAPTIONS["chair_s"], 0.06, measured, 0.064, why).outcome == outcome
    assert Beside("damro", "chair_s", CAPTIONS["chair_s"], 0.06, None, 0.064).outcome == "-"


def test_another_family_has_no_figures() -> None:
    run = record(resolved={"model": {"family": "gpt"}})
    comparison = Comparison("pope", "m", (Entry("damro", (WHOLE,), 1, {}, 0.0),), 1)
    with pytest.raises(EvalError, match="family in the paper"):
        put_beside(comparison, {"damro": run})


def write(folder: Path, run: dict[str, Any], questions: int, wrong: int, split: str | None = None) -> str:
    """A run of which every `wrong`-th answer of each split is wrong."""
    folder.mkdir()
    run["resolved"]["data"] = {}
    (folder / "run.json").write_text(json.dumps(run))
    with (folder / "records.jsonl").open("w") as file:
        for name in PAPER_SPLITS if split is None else PAPER_SPLITS[:1]:
            for place, asked in enumerate(load_questions(name)[:questions]):
                other = {"yes": "no", "no": "yes"}[asked.label]
                fields = {"split": split or name, "image": asked.image, "question": asked.text, "label": asked.label}
                answer = asked.label if place % wrong else other
                file.write(json.dumps({"id": f"{name}/{place}", **fields, "answer": answer}) + "\n")
    return str(folder)


def test_a_small_model_on_few_questions_agrees_with_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"model": "/models/llava", "data": {"questions": "own.jsonl"}}
    small = {"model": {"parameters": 3_900_000}}
    folders = [
        write(tmp_path / method, record(method, resolved=small, **options), 48, 6, split="own.jsonl")
        for method in ("greedy", "damro")
    ]
    assert call("reproduce", "pope", *folders, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["rows"]) == 8
    assert {row["outcome"] for row in found["rows"]} == {"not comparable"}
    names = [reason.partition(":")[0] for reason in found["not_comparable"]["damro@1"]]
    assert names == ["model", "size", "questions", "samples", "rule"]
    assert call("reproduce", "pope", *folders) == 0
    shown = capsys.readouterr().out
    assert shown.count("not comparable") == 8 + 2
    assert "size: 3.9 million parameters" in shown


def test_a_whole_run_is_put_beside_the_paper(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "damro", record(), 3000, 7)
    assert call("reproduce", "pope", folder, "--rules", "all", "--json") == 0
    assert "rule" in json.loads(capsys.readouterr().out)["not_comparable"]["damro@1"][0]
    assert call("reproduce", "pope", folder, "--rules", "vcd", "pope", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    # Of each 3000 every 7th is wrong, 429: 85.7 % right, beside the paper's 85.31, by 3.23 more than without DAMRO.
    accuracy = {row["metric"]: row for row in found["rows"]}["accuracy"]
    assert accuracy["measured"] == pytest.approx(1 - 429 / 3000)
    assert (accuracy["published"], accuracy["paper_effect"], accuracy["outcome"]) == (0.8531, 0.0323, "yes")
    assert found["not_comparable"] == {}
