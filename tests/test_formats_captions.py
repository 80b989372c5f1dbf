import json
from pathlib import Path

import pytest
from test_formats_tables import write_excel

from damro.eval.chair import Caption, parse_captions
from damro.eval.errors import DataFormatError
from damro.eval.formats.captions import read_captions

CAPTIONS = [Caption("42", "A dog."), Caption("73", "A cat.")]


def parsed(path: Path) -> list[Caption]:
    return parse_captions(read_captions(path))


@pytest.mark.parametrize("key", ["image_id", "image", "img_id", "image_path", "file_name", "id"])
@pytest.mark.parametrize("text", ["caption", "answer", "output", "response", "prediction"])
def test_records_under_many_keys(tmp_path: Path, key: str, text: str) -> None:
    path = tmp_path / "a.jsonl"
    records = [{key: "42", text: "A dog."}, {key: "val2014/COCO_val2014_000000000073.jpg", text: "A cat."}]
    path.write_text("\n".join(map(json.dumps, records)))
    assert parsed(path) == CAPTIONS


def test_of_several_names_of_an_image_the_first_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    records = [
        {"id": 0, "image_id": 42, "caption": "A dog."},
        {"id": 1, "image_id": None, "image": "73", "caption": "A cat."},
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    assert parsed(path) == CAPTIONS


@pytest.mark.parametrize("indent", [None, 2])
def test_a_mapping_from_images(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"42": "A dog.", "COCO_val2014_000000000073.jpg": "A cat."}, indent=indent))
    assert parsed(path) == CAPTIONS


def test_input_of_the_original_script_with_nan(tmp_path: Path) -> None:
    """Python's json writes NaN where a caption has no score; JSON itself knows none."""
    scores = {"Bleu_1": 0.5, "SPICE": {"All": {"f": float("nan")}}}
    captions = {image: {"image_id": int(image), "caption": text, **scores} for image, text in CAPTIONS}
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"overall": {"CIDEr": float("nan")}, "imgToEval": captions}))
    assert "NaN" in path.read_text()
    assert parsed(path) == CAPTIONS
    bare = {image: {"caption": text} for image, text in CAPTIONS}
    path.write_text(json.dumps({"imgToEval": bare}))
    assert parsed(path) == CAPTIONS


def test_output_of_chair_scripts(tmp_path: Path) -> None:
    sentences = [{"image_id": int(image), "caption": text, "mscoco_hallucinated_words": []} for image, text in CAPTIONS]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"sentences": sentences, "overall_metrics": {"CHAIRs": 0.5}}))
    assert parsed(path) == CAPTIONS


def test_tables(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('file_name,prediction\nCOCO_val2014_000000000042.jpg,A dog.\n73,"A cat."\n')
    assert parsed(path) == CAPTIONS
    rows = [{"image_id": int(image), "caption": text} for image, text in CAPTIONS]
    assert parsed(write_excel(tmp_path / "a.xlsx", rows)) == CAPTIONS


def test_samples_of_lmms_eval(tmp_path: Path) -> None:
    path = tmp_path / "samples_coco2014_cap_val.jsonl"
    lines = [
        {
            "doc_id": n,
            "filtered_resps": [text],
            "target": "x",
            "coco_CIDEr": {"pred": text, "image_id": int(image), "id": n},
        }
        for n, (image, text) in enumerate(CAPTIONS)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert parsed(path) == CAPTIONS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [1], "annotations": []}', r"must hold records with a caption each, .*got an object of"),
        ("{}", "must hold records with a caption each"),
        ('{"42": "A dog.", "42": "A cat."}', "must have each key once, got '42' twice"),
        ('{"imgToEval": []}', "imgToEval: must hold captions, got"),
        ('{"imgToEval": 7}', "imgToEval: must hold captions, got 7"),
        ('{"imgToEval": {"42": "A dog."}}', "imgToEval, '42': must be an object with a caption"),
        ('{"sentences": [{"image_id": 42}]}', "must have its text under one of"),
        ('{"image_id": 42, "caption": NaN}', "not JSON"),
        ('{"image_id": 42, "caption": "A dog."', "line 1: not JSON"),
    ],
)
def test_what_is_no_captions_is_said(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(DataFormatError, match=message):
        parsed(path)
