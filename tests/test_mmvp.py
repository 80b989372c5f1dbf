"""eval/mmvp: pairs of MMVP, beside what its own scripts count."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_formats_images import picture, text_of, write_tsv
from test_formats_tables import write_excel, write_parquet

from damro.cli import main
from damro.eval.benchmark import DataRequest, score_run
from damro.eval.choices import ChoiceScoring
from damro.eval.errors import AlignmentError, DataFormatError, EvalError
from damro.eval.mmvp.benchmark import Mmvp, to_answer
from damro.eval.mmvp.files import load_answers
from damro.eval.mmvp.questions import load_questions
from damro.eval.mmvp.scoring import score_groups
from damro.tiny.scenes import scene

# What scripts/gpt_grader.py of repository tsb0601/MMVP (commit 7635005) prints for the answers of `made`, a judge
# saying yes to those that are right.
OFFICIAL = 0.5
COUNT = 40


def made() -> list[dict[str, Any]]:
    """Answers as scripts/evaluate_mllm.py writes them, some of which choose nothing."""
    records = []
    for number in range(1, COUNT + 1):
        gold = "ab"[number % 2]
        kind = (number * 7919 + 13) % 101
        said = gold if kind < 80 else "ab"[(number + 1) % 2]
        text = ("hard to say", f"({said})", f"{said.upper()}.", said.upper(), f"The answer is ({said}).")[
            0 if kind % 17 == 0 else 1 + number % 4
        ]
        records.append(
            {
                "question_id": number,
                "prompt": f"Is door {(number + 1) // 2}, left, open? (a) Open (b) Closed",
                "answer": f"({gold})",
                "response": text,
            }
        )
    return records


def is_right(record: dict[str, Any]) -> bool:
    """By hand: the only letters of an answer that stand alone."""
    return record["answer"] in (f"({record['response'].lower().strip('.')[-1]})", record["response"].split(" ")[-1][:3])


def folder(place: Path, number_column: str = "lndex") -> Path:
    lines = [f"{number_column},Question,Options,Correct Answer"]
    for one in made():
        question = one["prompt"].partition(" (a)")[0]
        lines.append(f'{one["question_id"]},"{question}",(a) Open (b) Closed,{one["answer"]}')
    (place / "Questions.csv").write_text("\n".join(lines) + "\n")
    return place


def test_the_official_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "answer.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in made()))
    assert main(["score", "mmvp", "--answers", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["pairs"]
    assert found["pair_accuracy"] == OFFICIAL
    assert found["single"] == sum(map(is_right, made())) / COUNT
    assert found["unparsed"] == sum(one["response"] == "hard to say" for one in made()) > 0
    assert found["ci"]["pair_accuracy"][0] < OFFICIAL < found["ci"]["pair_accuracy"][1]
    assert main(["score", "mmvp", "--answers", str(path), "--choice", "exact"]) == 0
    assert "WARNING: unparsed" in capsys.readouterr().out
    assert main(["score", "mmvp", "--answers", str(path), str(path)]) == 2
    assert "two answers" in capsys.readouterr().err


@pytest.mark.parametrize("number_column", ["Index", "lndex"])
def test_a_run_scores_the_same(number_column: str, tmp_path: Path) -> None:
    dataset = Mmvp().load(DataRequest(images=folder(tmp_path, number_column)))
    assert (dataset.samples[2].image, dataset.samples[2].prompt.splitlines()[0]) == (
        "MMVP Images/3.jpg",
        made()[2]["prompt"],
    )
    records: dict[str, dict[str, Any]] = {
        one.sample_id: {**one.fields, "answer": said["response"]}
        for one, said in zip(dataset.samples, made(), strict=True)
    }
    (group,) = score_run(Mmvp(), records, ChoiceScoring())
    assert (group.scores["pair_accuracy"], group.scores["pairs"]) == (OFFICIAL, COUNT // 2)
    records["1"] = {"error": "no such file"}
    (group,) = score_run(Mmvp(), records, ChoiceScoring())
    assert group.scores["pairs"] == COUNT // 2 - 1
    assert [note.value for note in group.notes if note.name == "left out" and note.doubtful] == [1]


def test_malformed_files(tmp_path: Path) -> None:
    path = folder(tmp_path) / "Questions.csv"
    lines = path.read_text().splitlines()
    for change, told in (
        (lines[:2], "pairs of questions"),
        ([lines[0], lines[2], lines[1]], "numbered one after the other"),
        ([lines[0], lines[1].replace(",(b)", ",(c)")], "one of the options"),
        (["a,b", "1,2"], "'Options'"),
    ):
        path.write_text("\n".join(change) + "\n")
        with pytest.raises(DataFormatError, match=told):
            load_questions(path)
    with pytest.raises(EvalError, match="--images"):
        Mmvp().load(DataRequest())
    with pytest.raises(DataFormatError, match="question_id"):
        to_answer({**made()[0], "question_id": "1"}, "line 1")
    with pytest.raises(DataFormatError, match="response"):
        to_answer({"question_id": 1}, "line 1")
    with pytest.raises(EvalError, match="at least one pair"):
        score_groups([to_answer(made()[0], "line 1")])


def of_vlmevalkit() -> list[dict[str, Any]]:
    """Predictions as VLMEvalKit writes them, whose index begins at 0 and whose order is any."""
    records = []
    for one in made():
        told = {"index": one["question_id"] - 1, "question": one["prompt"].partition(" (a)")[0]}
        told |= {"A": "Open", "B": "Closed", "answer": one["answer"][1].upper(), "prediction": one["response"]}
        records.append(told)
    return records[::-1]


def of_lmms() -> list[dict[str, Any]]:
    """Samples of lmms-eval's task mmvp, whose metrics say which row was asked, and whose options are lines."""
    records = []
    for one in made():
        row, gold = one["question_id"] - 1, one["answer"][1].upper()
        asked = one["prompt"].partition(" (a)")[0] + "\nA. Open\nB. Closed\nAnswer with the option's letter."
        told = {"index": row, "pair_index": row // 2, "pred": one["response"], "gt": gold}
        sample = {"doc_id": row, "target": gold, "input": asked, "filtered_resps": one["response"]}
        records.append({**sample, "mmvp_accuracy": told, "mmvp_pair_accuracy": told})
    return records


@pytest.mark.parametrize("tool", ["lmms", "vlmevalkit"])
def test_files_of_other_tools_score_as_the_official_form(tool: str, tmp_path: Path) -> None:
    if tool == "lmms":
        path = tmp_path / "samples_mmvp.jsonl"
        path.write_text("".join(json.dumps(one) + "\n" for one in of_lmms()))
    else:
        path = write_excel(tmp_path / "model_MMVP.xlsx", of_vlmevalkit())
    answers = load_answers(path)
    assert {one.options for one in answers} == {"(a) Open (b) Closed"}
    (group,) = score_groups(answers)
    (official,) = score_groups(to_answer(one, "made") for one in made())
    assert group.scores == official.scores and group.counts == official.counts


def test_files_that_are_no_answers_to_mmvp(tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "a.tsv", of_vlmevalkit()[:-2] + of_vlmevalkit()[-1:])
    with pytest.raises(AlignmentError, match="two predictions in a row must be of one question"):
        load_answers(path)
    write_tsv(path, [{"index": 0, "prediction": "Yes", "question": "Is it?"}])
    with pytest.raises(DataFormatError, match="prediction of VLMEvalKit for MMVP"):
        load_answers(path)
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"doc_id": 0, "filtered_resps": "Yes", "input": "Is it?"}))
    with pytest.raises(DataFormatError, match="lmms-eval's task mmvp"):
        load_answers(path)


def test_tables_ask_as_the_folder_does(tmp_path: Path) -> None:
    expected = Mmvp().load(DataRequest(images=folder(tmp_path)))
    hub = [
        {
            "Index": one["question_id"],
            "Question": one["prompt"].partition(" (a)")[0],
            "Options": "(a) Open (b) Closed",
            "Correct Answer": one["answer"],
            "image": {"bytes": picture(one["question_id"] % 3), "path": f"{one['question_id']}.jpg"},
        }
        for one in made()
    ]
    kit = [
        {
            **{key: value for key, value in one.items() if key != "prediction"},
            "image": text_of(picture(one["index"] % 3)),
        }
        for one in of_vlmevalkit()
    ]
    for path in (write_parquet(tmp_path / "a.parquet", hub), write_tsv(tmp_path / "MMVP.tsv", kit)):
        dataset = Mmvp(data=str(path)).load(DataRequest())
        found = [(one.sample_id, one.prompt, dict(one.fields)) for one in dataset.samples]
        assert found == [(one.sample_id, one.prompt, dict(one.fields)) for one in expected.samples]
        opened = dataset.open_image(str(dataset.samples[4].image))
        number = 5 if path.suffix == ".parquet" else 4
        assert opened.tobytes() == scene("test", number % 3).image.convert("RGB").tobytes()
    with pytest.raises(DataFormatError, match="options, or 'A' and 'B'"):
        Mmvp(data=str(write_tsv(tmp_path / "a.tsv", [{"image": "a.png", "question": "?", "answer": "A"}]))).load(
            DataRequest(images=tmp_path)
        )
