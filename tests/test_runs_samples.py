import json
import os
from pathlib import Path

import pytest
from PIL import Image

from damro.decoding.errors import ParameterError
from damro.eval import pope
from damro.eval.errors import DataFormatError, EvalError
from damro.eval.mme.questions import load_questions
from damro.eval.runs.record import differences, folder_name, load_run, to_record
from damro.eval.runs.request import RunRequest, to_request
from damro.eval.samples import folder_opener, open_scene
from damro.methods import parse
from tests.told import dataset_of, request


def test_tiny_questions_are_popes_on_scenes() -> None:
    dataset = dataset_of(request("pope", "tiny", scenes=40))
    splits = [sample.fields["split"] for sample in dataset.samples]
    assert set(splits) == {"tiny/random", "tiny/popular", "tiny/adversarial"}
    assert len({sample.sample_id for sample in dataset.samples}) == len(splits)
    images = [sample.image for sample in dataset.samples]
    # Questions about one image stand together, 18 of them.
    assert [images[start] for start in range(0, len(images), 18)] == list(dict.fromkeys(images))
    first = dataset.samples[0]
    assert first.prompt == f"{first.fields['question']} Please answer this question with one word."
    assert dataset.open_image(first.image).size == (96, 96)
    assert dataset.open_image(first.image).tobytes() == open_scene(first.image).tobytes()


def test_limit_is_for_each_split_and_one_split_is_enough() -> None:
    dataset = dataset_of(request("pope", "tiny", scenes=40, limit=6, split=("tiny/popular", "random")))
    assert [sample.fields["split"] for sample in dataset.samples].count("tiny/popular") == 6
    assert len(dataset.samples) == 12


@pytest.mark.parametrize(
    ("benchmark", "data", "message"),
    [
        ("pope", {"split": ("random", "coco/random")}, "--split must be of random, popular, .*, got 'coco/random'"),
        (
            "pope",
            {"questions": "q.jsonl"},
            "--questions must be left out for the embedded scenes.*, got 'q.jsonl': give",
        ),
        ("chair", {"objects": "o.json"}, "--objects must be left out .*, got 'o.json'"),
        ("chair", {"image_ids": "ids.txt"}, "--image-ids must be left out .*, got 'ids.txt'"),
        ("chair", {"vocabulary": "words.txt"}, "--vocabulary must be left out .*, got 'words.txt'"),
    ],
)
def test_what_embedded_scenes_cannot_heed_is_refused(benchmark: str, data: dict[str, object], message: str) -> None:
    with pytest.raises(EvalError, match=message):
        dataset_of(request(benchmark, "tiny", scenes=10, **data))


def test_a_split_beside_a_file_of_questions_is_refused(tmp_path: Path) -> None:
    asked = request("pope", "m", images=str(tmp_path), questions="q.jsonl", split=("coco/random",))
    with pytest.raises(EvalError, match="--split must be left out with --questions, got 'coco/random'"):
        dataset_of(asked)


def test_images_that_are_not_there(tmp_path: Path) -> None:
    """Half of them may be missing; each counts once, however many questions there are about it."""
    names = [f"{number}.png" for number in range(4)]
    lines = [
        json.dumps({"question_id": f"{name} {number}", "image": name, "text": f"Is it {number}?", "label": "no"})
        for name in names
        for number in range(3)
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    (tmp_path / "images").mkdir()
    dataset = dataset_of(
        request("pope", "m", images=str(tmp_path / "images"), questions=str(tmp_path / "questions.jsonl"))
    )
    message = (
        r"--images must be .*, got '.*images', which lacks 4 of 4 \(0.png, 1.png, 2.png, \.\.\.\): give the folder"
    )
    with pytest.raises(EvalError, match=message):
        dataset.missing_images()
    (tmp_path / "images/1.png").touch()
    with pytest.raises(EvalError, match=r"lacks 3 of 4 \(0.png, 2.png, 3.png\)"):
        dataset.missing_images()
    (tmp_path / "images/3.png").touch()
    assert dataset.missing_images() == ["0.png", "2.png"]
    assert dataset_of(request("pope", "tiny", scenes=10)).missing_images() == []


def test_the_shipped_splits_with_an_images_folder(tmp_path: Path) -> None:
    one = dataset_of(request("pope", "m", images=str(tmp_path), split=("coco/random_2910",)))
    assert len(one.samples) == 2910
    assert one.data["questions"]["coco/random_2910"]["file"] == "coco_random_2910.jsonl.gz"
    three = dataset_of(request("pope", "m", images=str(tmp_path)))
    assert len(three.samples) == 9000
    # 18 questions about an image over the three splits, next to each other.
    assert [sample.image for sample in three.samples[:18]] == [three.samples[0].image] * 18


def test_chair_images_are_chosen_by_seed_or_by_list(tmp_path: Path) -> None:
    for number in (42, 73, 74, 133, 999999999):
        Image.new("RGB", (2, 2)).save(tmp_path / f"COCO_val2014_{number:012d}.jpg")
    (tmp_path / "notes.txt").write_text("no image")

    def ids(**options: object) -> list[int]:
        asked = request("chair", "m", images=str(tmp_path), **options)
        return [sample.fields["image_id"] for sample in dataset_of(asked).samples]

    assert sorted(ids()) == [42, 73, 74, 133]  # 999999999 is not annotated
    for name in ("zebra_mask_42.png", "42_mask.png", "COCO_val2014_42_mask.jpg", "mask-000000000042.jpg"):
        Image.new("RGB", (2, 2)).save(tmp_path / name)  # number 42 alone does not make it image 42
    images = [sample.image for sample in dataset_of(request("chair", "m", images=str(tmp_path))).samples]
    assert sorted(images) == [f"COCO_val2014_{number:012d}.jpg" for number in (42, 73, 74, 133)]
    assert ids(limit=2) == ids(limit=2)
    assert {tuple(ids(limit=2, seed=seed)) for seed in range(20)} > {tuple(ids(limit=2))}
    (tmp_path / "ids.json").write_text("[133, 164]")
    assert ids(image_ids=str(tmp_path / "ids.json")) == [133, 164]  # 164 fails when it is opened
    (tmp_path / "ids.json").write_text("[5]")
    with pytest.raises(EvalError, match=r"got 1 others of 1 \(5\)"):
        ids(image_ids=str(tmp_path / "ids.json"))


def test_lists_of_images_by_name(tmp_path: Path) -> None:
    """DAMRO's 500 are the images of POPE, in its order; 500 of the seed are what is chosen without a list."""
    Image.new("RGB", (2, 2)).save(tmp_path / "COCO_val2014_000000000042.jpg")

    def ids(**options: object) -> list[int]:
        asked = request("chair", "m", images=str(tmp_path), **options)
        return [sample.fields["image_id"] for sample in dataset_of(asked).samples]

    named = ids(image_ids="damro-500")
    asked = [int(question.image[13:-4]) for question in pope.load_questions("coco/adversarial")]
    assert named == list(dict.fromkeys(asked)) and len(named) == 500
    assert named[:3] == [310196, 210789, 429109]
    assert ids(image_ids="seed-500") == ids() == [42]


def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "secret.png")
    os.symlink(tmp_path / "secret.png", tmp_path / "images/a.png")
    with pytest.raises(EvalError, match="a link that leaves it"):
        folder_opener(tmp_path / "images")("a.png")


def test_an_image_with_too_many_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (60, 60)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="size that Pillow allows"):
        folder_opener(tmp_path)("bomb.png")


def test_mme_folders_of_both_layouts(tmp_path: Path) -> None:
    for images, texts in (("count", "count"), ("scene/images", "scene/questions_answers_YN")):
        (tmp_path / images).mkdir(parents=True)
        (tmp_path / texts).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(tmp_path / images / "1.jpg")
        (tmp_path / texts / "1.txt").write_text("Two? Please answer yes or no.\tYes\r\nThree?\tNo\n")
    found = load_questions(tmp_path)
    assert [(q.category, q.image, q.number, q.gold) for q in found] == [
        ("count", "count/1.jpg", 1, "yes"),
        ("count", "count/1.jpg", 2, "no"),
        ("scene", "scene/images/1.jpg", 1, "yes"),
        ("scene", "scene/images/1.jpg", 2, "no"),
    ]
    (tmp_path / "count/1.txt").write_text("Two?\tPerhaps\n")
    with pytest.raises(DataFormatError, match=r"1.txt, line 1: label must be yes or no"):
        load_questions(tmp_path, ["count"])
    (tmp_path / "count/2.txt").write_text("Two?\tYes\n")
    (tmp_path / "count/1.txt").unlink()
    with pytest.raises(DataFormatError, match="must have an image of the same name"):
        load_questions(tmp_path, ["count"])
    with pytest.raises(EvalError, match="got 'color'"):
        load_questions(tmp_path, ["color"])


@pytest.mark.parametrize("text", ["magic", "greedy@1", "damro@", "damro@0", "damro@x", "damro@nan", ""])
def test_unknown_methods_are_refused(text: str) -> None:
    with pytest.raises(ParameterError, match="method"):
        parse(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("benchmark", "vqa"),
        ("limit", 0),
        ("scenes", -1),
        ("top_p", 0.0),
        ("prompt", "no mark"),
        ("quantization", "2bit"),
    ],
)
def test_requests_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(EvalError, match=name):
        RunRequest(**{"benchmark": "pope", "model": "tiny", name: value})  # type: ignore[arg-type]


def test_run_json_is_checked(tmp_path: Path) -> None:
    record = to_record(RunRequest("pope", "tiny"), {})
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert to_request(load_run(tmp_path)) == RunRequest("pope", "tiny")
    (tmp_path / "run.json").write_text(json.dumps({**record, "format": 99}))
    with pytest.raises(DataFormatError, match="must be the run.json of a run"):
        load_run(tmp_path)
    with pytest.raises(DataFormatError, match="unknown keys colour"):
        to_request({"request": {"benchmark": "pope", "model": "m", "colour": 1}})
    with pytest.raises(DataFormatError, match="right types"):
        to_request({"request": {"benchmark": "pope", "model": "m", "limit": "ten"}})


def test_differences_say_old_and_new_and_leave_out_what_changes_nothing() -> None:
    old = to_record(RunRequest("pope", "tiny", images="a", batch_size=1), {"packages": {"torch": "1"}, "x": {"y": 1}})
    new = to_record(RunRequest("pope", "tiny", images="b", batch_size=2), {"packages": {"torch": "2"}, "x": {}})
    assert differences(old, new) == ['resolved.packages.torch: "1" -> "2"', "resolved.x.y: 1 -> nothing"]


@pytest.mark.parametrize("text", ["../..", "/", "a/b", "", "damro@0.5"])
def test_folder_names_stay_one_folder(text: str) -> None:
    name = folder_name(text)
    assert "/" not in name
    assert name not in ("", ".", "..")
