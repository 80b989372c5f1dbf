"""What a run costs: counted by hand on a small run, kept beside the records, and told by every comparison."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import damro
from damro.cli import main
from damro.cli.options import every_method
from damro.decoding.counting import answer_lengths, counting
from damro.eval.errors import DataFormatError
from damro.eval.runs.costs import Costs, read_costs
from damro.methods import METHODS, Method
from tests.golden_cases import inputs_of, model_of
from tests.llava_models import llava_inputs, llava_of

CHAIR = ["run", "chair", "--model", "tiny:llava", "--device", "cpu", "--max-new-tokens", "4", "--batch-size", "2"]


def answers(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def test_rows_and_looks_are_counted() -> None:
    """Without an end token: a prompt, and a row for each token but the last, in both branches."""
    model, inputs = llava_of(), llava_inputs(2)
    for method, branches, looks in (("greedy", 1, 1), ("vcd:beta=1e-9", 2, 2), ("no-image:alpha=1,beta=1e-9", 2, 1)):
        with counting(model) as passes:
            damro.generate(model, inputs, method, max_new_tokens=5, strategy="lazy")
        assert (passes.rows, passes.looks) == (2 * 5 * branches, looks), method
    with counting(model) as passes:
        damro.generate(model, inputs, damro.methods.OPERA(2, num_attn_candidates=3), max_new_tokens=4)
    # Each prompt by itself; behind each of four tokens 2 beams try out 3, and behind three of them they are continued.
    assert passes.rows == 2 * (1 + 4 * 2 * 3 + 3 * 2)
    assert not any(part._forward_pre_hooks for part in (model.model.vision_tower, model.model.language_model))


@torch.no_grad()
def test_an_image_of_several_tiles_is_one_look() -> None:
    model, inputs = model_of("llava_next"), inputs_of("llava_next_img0")
    with counting(model) as passes:
        damro.generate(model, inputs, "vcd", max_new_tokens=2)
    assert passes.looks == 2 and len(passes.tower_rows) == 2 and passes.tower_rows[0] > 1


def test_what_stands_behind_an_end_is_no_token() -> None:
    assert answer_lengths(torch.tensor([[4, 5, 2, 2], [4, 2, 0, 0], [4, 5, 6, 7]]), [2, 9]) == [3, 2, 4]
    assert answer_lengths(torch.tensor([[4, 5]]), []) == [2]


def test_costs_stand_beside_records_that_do_not_know_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*CHAIR, "--limit", "3", "--methods", "greedy", "vcd"]
    assert main([*command, "--out", str(tmp_path / "plain")]) == 0
    assert not list((tmp_path / "plain").glob("*/costs*"))
    folder = tmp_path / "measured"
    assert main([*command, "--out", str(folder), "--cost", "--json"]) == 0
    for method, looks in (("greedy", 1), ("vcd", 2)):
        assert answers(folder / method) == answers(tmp_path / "plain" / method)
        told = [json.loads(line) for line in (folder / method / "costs.jsonl").read_text().splitlines()]
        assert [(one["samples"], one["images"], one["vision"]) for one in told] == [(2, 2, 2 * looks), (1, 1, looks)]
        assert all(0 < one["tokens"] <= 4 * one["samples"] and one["seconds"] > 0 for one in told)
    greedy = read_costs(folder / "greedy")
    assert greedy is not None and greedy.tokens == greedy.language  # none of these answers ends before the others
    # A batch of which a part is lost is answered as a whole again; the records are the same, and the costs add up.
    lines = (folder / "greedy/records.jsonl").read_text().splitlines(keepends=True)
    (folder / "greedy/records.jsonl").write_text(lines[0])
    assert main([*command, "--out", str(folder), "--cost"]) == 0
    assert answers(folder / "greedy") == answers(tmp_path / "plain/greedy")
    again = read_costs(folder / "greedy")
    assert again is not None and again.samples == 6
    for name in ("scores.md", "report.html", "scores.json"):
        text = (folder / name).read_text()
        assert ("vision passes an image" if name != "scores.json" else '"tokens_per_second"') in text
    capsys.readouterr()
    assert main(["compare", str(folder / "greedy"), str(tmp_path / "plain/vcd"), "--cost", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["methods"]
    assert found["greedy"]["cost"]["looks"] == 1 and "cost" not in found["vcd"]
    assert main(["compare", str(folder / "greedy"), str(folder / "vcd")]) == 0
    assert "tokens/s" not in capsys.readouterr().out


def test_answers_read_from_logits_cost_no_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", "pope", "--model", "tiny", "--read", "logits", "--out", str(tmp_path)]
    assert main([*command, "--cost"]) == 2
    assert "--cost must come with answers that are written" in capsys.readouterr().err
    assert main([*command, "--limit", "2", "--method", "opera"]) == 2
    assert "got 'opera', which searches by itself" in capsys.readouterr().err


def test_a_file_of_something_else(tmp_path: Path) -> None:
    assert read_costs(tmp_path) is None
    (tmp_path / "costs.jsonl").write_text('{"samples": 1}\n')
    with pytest.raises(DataFormatError, match=r"costs.jsonl.*must hold the numbers images, language"):
        read_costs(tmp_path)
    (tmp_path / "costs.jsonl").write_text(json.dumps(Costs(1, 1, 4, 2.0, 5, 1.0).__dict__) + "\n")
    (tmp_path / "costs-1.jsonl").write_text(json.dumps(Costs(3, 1, 4, 2.0, 3, 2.0).__dict__) + "\n")
    assert read_costs(tmp_path) == Costs(4, 2, 8, 4.0, 8, 3.0)


# Every method


@dataclass(frozen=True)
class Directed(Method):
    """Needs a file."""

    name: ClassVar = "directed"
    source: ClassVar = "test"

    file: str = ""

    def __post_init__(self) -> None:
        raise damro.errors.ParameterError("file must be named, got none; make one")


@dataclass(frozen=True)
class Elsewhere(Method):
    """Works with another model."""

    name: ClassVar = "elsewhere"
    source: ClassVar = "test"

    def contrast(self, model: Any, inputs: Any, scene: Any) -> Any:
        raise damro.errors.UnsupportedModelError("model must be another, got this")


def test_every_method_that_works_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    some = {"greedy": METHODS["greedy"], "directed": Directed, "elsewhere": Elsewhere, "m3id": METHODS["m3id"]}
    monkeypatch.setattr(METHODS, "_places", dict.fromkeys(some, "."))
    monkeypatch.setattr(METHODS, "_found", some)
    assert main([*CHAIR, "--limit", "1", "--methods", "all", "--out", str(tmp_path), "--json"]) == 0
    out, err = capsys.readouterr()
    assert list(json.loads(out)["methods"]) == ["greedy", "m3id"]
    assert "damro: directed is left out: file must be named, got none; make one" in err
    assert "damro: elsewhere is left out: model must be another, got this" in err
    told: list[str] = []
    assert every_method(told.append) == ["greedy", "elsewhere", "m3id"] and len(told) == 1
