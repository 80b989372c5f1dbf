import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import chair_reference as reference
import pytest

from damro.eval.chair import Caption, parse_captions, score, score_readings
from damro.eval.chair.coco import read_objects
from damro.eval.chair.matchers import Mention, Reading
from damro.eval.errors import AlignmentError, DataFormatError, EvalError
from damro.eval.records import read_records

TRUTH = {1: ["person", "bicycle"], 2: ["cat"], 3: []}
CAPTIONS = {
    1: "A man rides his bike past a bus. The bus is red.",
    2: "A cat and a dog.",
    3: "Blue sky.",
}


def test_hand_worked_scores() -> None:
    result = score(CAPTIONS, TRUTH, matcher="builtin")
    # Mentions: 1 has person, bicycle, bus, bus; 2 has cat, dog; 3 none. Hallucinated: bus, bus; dog.
    assert result.n_mentions == 6
    assert result.n_hallucinated == 3
    assert result.chair_i == 3 / 6
    # Each object once per caption: person, bicycle, bus | cat, dog; hallucinated bus | dog.
    assert result.chair_i_unique == 2 / 5
    assert result.chair_s == 2 / 3
    assert result.n_hallucinated_captions == 2
    # Named and present: person, bicycle | cat, of person, bicycle | cat.
    assert result.recall == 3 / 3
    # Precision, each object once per caption: of person, bicycle, bus | cat, dog the present three.
    assert result.precision == 3 / 5
    assert result.f1 == pytest.approx(2 * (3 / 5) * 1 / (3 / 5 + 1))
    assert result.mean_length == (12 + 5 + 2) / 3
    assert result.mean_tokens == (14 + 6 + 3) / 3  # with each full stop
    assert result.n_captions == 3
    assert result.matcher == "builtin"


def test_counts_per_caption() -> None:
    counts = score(CAPTIONS, TRUTH, matcher="builtin").counts
    assert counts.n_mentions == (4, 2, 0)
    assert counts.n_hallucinated == (2, 1, 0)
    assert counts.n_unique == (3, 2, 0)
    assert counts.n_unique_hallucinated == (1, 1, 0)
    assert counts.n_recalled == (2, 1, 0)
    assert counts.n_truth == (2, 1, 0)
    assert counts.n_words == (12, 5, 2)
    assert counts.length == (14, 6, 3)


def test_a_pair_that_is_one_word_counts_once_in_the_length() -> None:
    result = score({1: "A traffic light by a train track."}, {1: []}, matcher="builtin")
    assert (result.counts.n_words, result.counts.length) == ((7,), (6,))


def test_recall_is_pooled_not_averaged_over_captions() -> None:
    result = score({1: "A cat.", 2: "A dog."}, {1: ["cat"], 2: ["dog", "bus", "car"]}, matcher="builtin")
    assert result.recall == 2 / 4  # the mean over captions would be (1 + 1/3) / 2


def test_records_show_the_hallucinated_words_and_their_place() -> None:
    record = score(CAPTIONS, TRUTH, matcher="builtin").records[0]
    assert record.hallucinated == (Mention("bus", "bus", 28, 31, 7), Mention("bus", "bus", 37, 40, 10))
    assert [record.caption[m.start : m.end] for m in record.mentions] == ["man", "bike", "bus", "bus"]
    assert record.to_dict()["hallucinated"][0] == {"name": "bus", "word": "bus", "start": 28, "end": 31, "token": 7}
    assert record.to_dict()["objects"] == ["bicycle", "person"]


def test_to_dict_is_json_with_the_documented_keys() -> None:
    result = score(CAPTIONS, TRUTH, matcher="builtin")
    values = json.loads(json.dumps(result.to_dict()))
    assert set(values) >= {
        "chair_s", "chair_i", "chair_i_unique", "recall", "n_captions", "n_mentions", "matcher", "mean_length",
    }  # fmt: skip
    assert "records" not in values
    assert len(json.loads(json.dumps(result.to_dict(records=True)))["records"]) == 3


def test_zero_denominators_are_none() -> None:
    result = score({3: "Blue sky."}, TRUTH, matcher="builtin")
    assert (result.chair_s, result.chair_i, result.chair_i_unique, result.recall) == (0.0, None, None, None)


@pytest.mark.parametrize("name", reference.CAPTION_FILES)
def test_recorded_scores_are_reproduced(name: str, nltk_data: None) -> None:
    recorded = json.loads((reference.CAPTIONS / "reference_scores.json").read_text(encoding="utf-8"))[name]["gtB"]
    result = score(read_records(reference.CAPTIONS / f"{name}.jsonl.gz"), read_objects(), matcher="nltk")
    scores = {"CHAIRs": result.chair_s, "CHAIRi": result.chair_i, "Recall": result.recall}
    assert {key: round(value or 0.0, 6) for key, value in scores.items()} == recorded


# Of arXiv 2402.14545, Table 1, whose script counts tokens and pairs of words as one.
@pytest.mark.parametrize(("name", "published"), [("r1-llava1.5-7b", 100.6)])
def test_len_is_that_of_the_published_table(name: str, published: float, nltk_data: None) -> None:
    result = score(read_records(reference.CAPTIONS / f"{name}.jsonl.gz"), read_objects(), matcher="nltk")
    assert round(result.mean_tokens, 1) == published


@pytest.mark.parametrize("name", reference.CAPTION_FILES)
def test_len_is_that_of_the_plain_pipeline(name: str, nltk_data: None) -> None:
    captions = reference.captions(name)[::10]
    result = score(captions, read_objects(), matcher="nltk")
    assert list(result.counts.length) == [len(reference.plain_words(one["caption"])) for one in captions]


def test_recorded_objects_give_the_recorded_scores_without_any_matcher() -> None:
    truth = read_objects()
    for name in reference.CAPTION_FILES:
        recorded = json.loads((reference.CAPTIONS / "reference_scores.json").read_text(encoding="utf-8"))[name]["gtB"]
        captions = parse_captions(reference.captions(name))
        found = [[Mention(o, o, 0, 0, 0) for o in objects] for objects in reference.recorded_objects(name)]
        readings = [Reading(mentions, 0, 0) for mentions in found]
        result = score_readings(captions, readings, [truth[c.image_id] for c in captions], matcher="recorded")
        assert (round(result.chair_s, 6), round(result.chair_i or 0.0, 6)) == (recorded["CHAIRs"], recorded["CHAIRi"])


@pytest.mark.parametrize("key", ["caption", "answer", "text", "output", "response"])
def test_text_keys(key: str) -> None:
    assert parse_captions([{"image_id": 1, key: "A cat."}]) == [Caption("1", "A cat.")]


@pytest.mark.parametrize("key", ["caption", "answer", "output", "response"])
def test_text_beside_a_caption_is_the_question(key: str) -> None:
    record = {"image": "COCO_val2014_000000000042.jpg", "text": "Describe this image.", key: "A dog on a shoe rack."}
    assert parse_captions([record]) == [Caption("42", "A dog on a shoe rack.")]
    assert parse_captions([dict(reversed(record.items())), record | {"image": 43}])[0].text == "A dog on a shoe rack."
    result = score([record], read_objects(), matcher="builtin")
    assert (result.n_mentions, result.n_hallucinated) == (1, 0)


@pytest.mark.parametrize(("one", "other"), [("caption", "output"), ("answer", "response"), ("caption", "answer")])
def test_two_possible_captions_are_refused(one: str, other: str) -> None:
    record = {"image_id": 1, other: "A cat.", "text": "Describe this image.", one: "A dog."}
    with pytest.raises(DataFormatError, match=f"^caption 1: must have one caption, got '{one}' and '{other}'; keep"):
        score([record], TRUTH)


def test_questions_are_no_captions() -> None:
    asked: list[dict[str, Any]] = [{"image_id": image, "text": "Describe this image."} for image in (1, 2)]
    for records in (asked, [asked[0] | {"answer": "A man."}, asked[1]]):  # no answer at all; the second one's lacking
        with pytest.raises(DataFormatError, match="must differ .* got 'Describe this image.' in all 2 records"):
            score(records, TRUTH)
    same = [{"image_id": image, "caption": "A cat."} for image in (1, 2)]
    assert score(same, TRUTH, matcher="builtin").n_hallucinated == 1


def test_ids_of_one_image_meet_whatever_their_form() -> None:
    records: list[dict[str, Any]] = [
        {"image": "COCO_val2014_000000000042.jpg", "caption": "A dog."},
        {"image_id": "7", "caption": "A dog."},
        {"image_id": "scene-12", "caption": "A dog."},
    ]
    result = score(records, {"000000000042": ["dog"], 7: ["dog"], "scene-12": ["dog"], 8: []}, matcher="builtin")
    assert result.chair_i == 0.0
    assert [record.image_id for record in result.records] == ["42", "7", "scene-12"]


def test_no_captions() -> None:
    with pytest.raises(EvalError, match="at least one is needed"):
        score([], TRUTH)


def test_two_captions_of_an_image_are_refused() -> None:
    records = [{"image_id": image, "caption": "A cat."} for image in (1, "1", 2, 3, "0003", 2)]
    with pytest.raises(AlignmentError, match=r"one per image.*1, 3, 2 \(3 in all\)"):
        score(records, TRUTH)


def test_images_without_ground_truth_are_refused() -> None:
    captions = {image: "A cat." for image in range(1, 12)}
    with pytest.raises(AlignmentError, match=r"lacks 4, 5, 6, 7, 8, \.\.\. \(8 in all\)"):
        score(captions, TRUTH)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"caption": "A cat."}, "caption 1: must name its image under one of image_id, .*, has 'caption'"),
        ({"image_id": 1, "words": "A cat."}, "under one of caption, .*; has 'image_id', 'words'"),
        ({"image_id": 1, "caption": None}, "got None under 'caption'"),
        ({"image_id": 1.5, "caption": "A cat."}, "caption 1: image_id: must be a whole number or a name, got 1.5"),
        ({"image_id": True, "caption": "A cat."}, "got True"),
        ({"image_id": " ", "caption": "A cat."}, "got ' '"),
        (["A cat."], "must be an object with image_id and caption"),
    ],
)
def test_malformed_records(record: Any, message: str) -> None:
    with pytest.raises(DataFormatError, match=message):
        score([record], TRUTH)


def test_errors_name_the_line_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text('{"image_id": 1, "caption": "A cat."}\n{"image_id": 2}\n', encoding="utf-8")
    with pytest.raises(DataFormatError, match=r"captions\.jsonl, line 2: must have its text"):
        score(read_records(path), TRUTH)


def test_objects_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(DataFormatError, match=r"got 'unicorn', 'grail' \(2 in all\)"):
        score({1: "A cat."}, {1: ["unicorn", "cat", "grail"]})


def test_lengths_must_agree() -> None:
    with pytest.raises(AlignmentError, match="got 1, 0, 1"):
        score_readings([Caption("1", "A cat.")], [], [["cat"]], matcher="builtin")


def test_importing_the_scorer_loads_neither_torch_nor_nltk_nor_pycocotools() -> None:
    code = (
        "import sys, damro.eval.chair, damro.eval.chair.coco; "
        "print([m for m in ('torch', 'nltk', 'pycocotools', 'numpy') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
