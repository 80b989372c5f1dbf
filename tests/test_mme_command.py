"""damro/cli/score_mme.py: ``damro score mme``."""

import json
from pathlib import Path

import pytest

from damro.cli import main
from damro.eval.mme.scoring import CATEGORIES, COGNITION

RECORDED = Path(__file__).parent / "data" / "mme"
# Of LLaVA-1.5-7B: 100 * (accuracy + accuracy+), and their sum.
SCORES = {"existence": 190.0, "count": 155.0, "position": 128.33, "color": 170.0}


def file_of(category: str) -> str:
    return str(RECORDED / f"llava-v1.5-7b_{category}.txt")


def test_a_folder_equals_its_files(capsys: pytest.CaptureFixture[str]) -> None:
    for paths in ([str(RECORDED)], [file_of(name) for name in SCORES]):
        assert main(["score", "mme", "--answers", *paths, "--json"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    result = json.loads(first)
    assert {name: round(each["score"], 2) for name, each in result["categories"].items()} == SCORES
    assert all((each["n_questions"], each["n_images"]) == (60, 30) for each in result["categories"].values())
    assert round(result["hallucination"], 2) == round(result["total"], 2) == 643.33


def test_a_part_has_no_hallucination_sum(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "mme", "--answers", file_of("count"), file_of("color"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["hallucination"], round(result["total"], 2)) == (None, 325.0)


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "mme", "--answers", str(RECORDED)]) == 0
    lines = [line.replace("\u2502", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines if line[:1] in (["hallucination"], ["total"])] == [
        ["hallucination", "643.33"],
        ["total", "643.33"],
    ]
    assert ["128.33"] in [line[5:6] for line in lines if line[:1] == ["position"]]


def test_intervals_are_those_of_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "mme", "--answers", str(RECORDED), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result["ci"]) == [*SCORES, "all categories"]
    low, high = result["ci"]["count"]["score"]
    assert 100 < low < SCORES["count"] < high < 200
    low, high = result["ci"]["all categories"]["total"]
    assert low < result["total"] < high


def test_perception_and_cognition_sum_up_to_the_total(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """All fourteen categories; one answer of four is wrong in those of cognition."""
    for category in CATEGORIES:
        wrong = "Yes" if category in COGNITION else "No"
        lines = [f"{image}.jpg\t{q}?\t{gold}\t{said}" for image in ("a", "b") for q, gold, said in (
            ("one", "Yes", "Yes"), ("two", "No", wrong if image == "b" else "No"))]  # fmt: skip
        (tmp_path / f"{category}.txt").write_text("\n".join(lines))
    assert main(["score", "mme", "--answers", str(tmp_path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    # accuracy 3/4, accuracy+ 1/2 in the four of cognition
    assert (result["perception"], result["cognition"], result["total"]) == (2000.0, 500.0, 2500.0)
    assert main(["score", "mme", "--answers", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "perception" in out and "cognition" in out and max(map(len, out.splitlines())) <= 80


def test_what_cannot_be_scored_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["score", "mme", "--answers", str(tmp_path)]) == 2
    assert "with no *.txt in it" in capsys.readouterr().err
    assert main(["score", "mme", "--answers", file_of("count"), file_of("count")]) == 2
    assert "give each question's answer once" in capsys.readouterr().err
