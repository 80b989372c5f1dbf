import json
from pathlib import Path
from typing import Any

import pytest
from test_formats_tables import write_excel

from damro.eval.errors import DataFormatError, EvalError
from damro.eval.mme import MMEAnswer, load_answers
from damro.eval.mme.files import load_files

OFFICIAL = Path(__file__).parent / "data" / "mme" / "llava-v1.5-7b_existence.txt"
ANSWERS = load_answers(OFFICIAL)
POST = "\nAnswer the question using a single word or phrase."


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def in_form_of(tool: str) -> list[dict[str, Any]]:
    records = []
    for number, one in enumerate(ANSWERS):
        name = f"existence/{Path(one.image).stem}.jpg"
        gold = one.gold.capitalize()
        records.append(
            {
                "damro": {
                    **{"question_id": name, "gt_answer": gold, "category": "existence"},
                    **{"prompt": one.question, "output": one.answer, "model_id": "m"},
                },
                "llava": {"question_id": name, "prompt": one.question + POST, "text": one.answer, "metadata": {}},
                "lmms": {
                    **{"doc_id": number, "target": gold, "filtered_resps": [one.answer], "input": one.question + POST},
                    "mme_perception_score": {"question_id": name, "category": "existence", "score": 1.0},
                },
                "vlmeval": {
                    **{"index": number, "question": one.question, "answer": gold, "prediction": one.answer},
                    **{"category": "existence", "image_path": name},
                },
            }[tool]
        )
    return records


def told(answers: list[MMEAnswer]) -> list[tuple[str, ...]]:
    plain = [one._replace(image=Path(one.image).stem, question=one.question.removesuffix(POST)) for one in answers]
    return [tuple(one) for one in plain]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """MME's folder with the questions of the recorded answers; the images are not looked into."""
    base = tmp_path / "MME" / "existence"
    base.mkdir(parents=True)
    for one in ANSWERS:
        (base / one.image).with_suffix(".jpg").touch()
        with (base / one.image).open("a") as file:
            file.write(f"{one.question}\t{one.gold.capitalize()}\n")
    return tmp_path / "MME"


@pytest.mark.parametrize("tool", ["damro", "lmms", "vlmeval"])
def test_records_of_tools_equal_the_official_file(tmp_path: Path, tool: str) -> None:
    path = tmp_path / "answers.xlsx"
    path = write_excel(path, in_form_of(tool)) if tool == "vlmeval" else write(tmp_path / "a.jsonl", in_form_of(tool))
    assert told(load_files(path)) == told(ANSWERS)
    assert load_files(OFFICIAL) == ANSWERS


def test_llava_s_answers_take_their_labels_from_the_folder(tmp_path: Path, folder: Path) -> None:
    path = write(tmp_path / "llava.jsonl", in_form_of("llava"))
    assert told(load_files(path, folder)) == told(ANSWERS)
    with pytest.raises(EvalError, match="a.jsonl, line 1: an answer must have its gold label .* give --questions"):
        load_files(write(tmp_path / "a.jsonl", in_form_of("llava")))
    other = [{**in_form_of("llava")[0], "prompt": "Is there a unicorn?"}]
    with pytest.raises(EvalError, match="--questions must hold the question about existence/000000494427"):
        load_files(write(tmp_path / "b.jsonl", other), folder)


def test_the_folder_of_images_is_no_category(tmp_path: Path) -> None:
    record = {"question_id": "OCR/images/0001.jpg", "question": "?", "label": "yes", "answer": "Yes"}
    assert load_files(write(tmp_path / "a.jsonl", [record])) == [MMEAnswer("OCR", "0001.jpg", "?", "yes", "Yes")]
    record["question_id"] = "0001.jpg"
    assert load_files(write(tmp_path / "my_count.jsonl", [record]))[0].category == "count"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category": "colour"}, r"category must be one of .*, got 'colour'"),
        ({"label": "maybe"}, r"line 1: label must be yes or no"),
        ({"answer": None}, r"must have its answer as text"),
        ({"question": 7}, r"must have its question as text"),
        ({"question_id": None}, r"must have its image as text"),
    ],
)
def test_what_a_record_lacks_is_said(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    record = {"question_id": "count/1.jpg", "question": "?", "label": "yes", "answer": "Yes", **change}
    with pytest.raises(DataFormatError, match=message):
        load_files(write(tmp_path / "a.jsonl", [record]))
