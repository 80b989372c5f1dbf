import json
from pathlib import Path
from typing import Any

import pytest
from test_formats_tables import write_excel

from damro.eval.errors import DataFormatError
from damro.eval.formats.answers import read_answers

QUESTION = "Is there a dog in the image?"
POST = "\nAnswer the question using a single word or phrase."
# As lmms-eval 0.7 writes a sample of its task pope; older versions keep "doc" and write lists.
NEW = {
    "doc_id": 0,
    "target": "yes",
    "filtered_resps": "Yes",
    "input": QUESTION + POST,
    "doc_hash": "ab",
    "pope_accuracy": {"question_id": "7", "score": 1.0, "prediction": "yes", "ground_truth": "yes"},
}
OLD = {
    "doc_id": 0,
    "target": "yes",
    "resps": [["Yes"]],
    "filtered_resps": ["Yes"],
    "arguments": [[QUESTION + POST, {"until": ["\n\n"]}]],
    "doc": {
        **{"id": "6", "question_id": "7", "question": QUESTION, "answer": "yes"},
        **{"image_source": "COCO_val2014_000000000042", "category": "popular"},
    },
}


def write(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def fields(path: Path) -> list[dict[str, Any]]:
    return [record.fields for record in read_answers(path)]


def test_lmms_eval(tmp_path: Path) -> None:
    path = write(tmp_path / "20260101_000000_samples_pope.jsonl", NEW)
    assert fields(path) == [{"answer": "Yes", "question_id": "7", "question": QUESTION + POST, "label": "yes"}]
    told = {"answer": "Yes", "question_id": "7", "question": QUESTION, "label": "yes", "category": "popular"}
    path = write(tmp_path / "old.jsonl", OLD)
    assert fields(path) == [{**told, "image": "COCO_val2014_000000000042.jpg"}]


def test_lmms_eval_s_processes_write_behind_each_other(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *({**NEW, "doc_id": n, "filtered_resps": str(n)} for n in (1, 3, 0, 2)))
    assert [one["answer"] for one in fields(path)] == ["0", "1", "2", "3"]


def test_an_empty_answer_stays_one(tmp_path: Path) -> None:
    assert fields(write(tmp_path / "a.jsonl", {**NEW, "filtered_resps": [""]}))[0]["answer"] == ""


VLMEVAL = [
    {"index": 1, "question": QUESTION, "answer": "Yes", "category": "popular,random", "prediction": "Yes."},
    {"index": 2, "question": QUESTION, "answer": "No", "category": "popular", "prediction": ""},
]


@pytest.mark.parametrize("name", ["m_POPE.xlsx", "m_POPE.tsv", "m_POPE.json"])
def test_vlmevalkit(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("xlsx"):
        write_excel(path, VLMEVAL)
    elif name.endswith("json"):
        path.write_text(json.dumps(VLMEVAL, indent=4))
    else:
        rows = [list(VLMEVAL[0]), *(list(map(str, row.values())) for row in VLMEVAL)]
        path.write_text("\n".join("\t".join(f'"{cell}"' for cell in row) for row in rows))
    assert fields(path) == [
        {"answer": "Yes.", "question": QUESTION, "label": "Yes", "category": "popular,random"},
        {"answer": "", "question": QUESTION, "label": "No", "category": "popular"},
    ]


def test_an_image_column_is_a_name_or_nothing(tmp_path: Path) -> None:
    rows = [
        {**VLMEVAL[0], "image_path": "existence/1.jpg"},
        {**VLMEVAL[0], "image": "iVBOR" * 100},
        {**VLMEVAL[0], "image": "7"},
    ]
    images = [one.get("image") for one in fields(write(tmp_path / "a.jsonl", *rows))]
    assert images == ["existence/1.jpg", None, None]


def test_what_no_tool_wrote_stays_as_it_is(tmp_path: Path) -> None:
    record = {"question_id": 1, "prompt": QUESTION, "text": "No", "answer_id": "x", "model_id": "m", "metadata": {}}
    assert fields(write(tmp_path / "a.jsonl", record)) == [record]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"results": {}, "configs": {}}], "holds scores of lmms-eval: give the samples it writes with --log_samples"),
        ([{"split": "Overall", "Overall": "85.9", "acc": "86"}], "holds scores of VLMEvalKit: give its predictions"),
        ([NEW, {"question_id": 1}], r"line 2: must be an answer of lmms-eval like the first of the file, got keys"),
        ([{**NEW, "filtered_resps": [[-1.5, True]]}], "must be one text under 'filtered_resps'"),
        ([{**NEW, "filtered_resps": ["a", "b"]}], "must be one text under 'filtered_resps'"),
        ([{**NEW, "doc_id": "0"}], "doc_id must be a whole number, got '0'"),
        ([{**VLMEVAL[0], "prediction": None}], "'prediction' must be text, got None"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, records: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataFormatError, match=message):
        read_answers(write(tmp_path / "a.jsonl", *records))
