import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from damro.eval.chair.coco import build_objects, image_key, normalize_objects, read_objects
from damro.eval.errors import AlignmentError, DataFormatError

CATEGORIES = [{"id": 1, "name": "person"}, {"id": 2, "name": "bicycle"}, {"id": 89, "name": "hair drier"}]


def write_annotations(folder: Path, split: str = "val2014", first: int = 1) -> Path:
    """Three images: the first annotated and captioned, the second only captioned, the third neither."""
    images = [{"id": first + n} for n in range(3)]
    instances = [
        {"id": 10 * first, "image_id": first, "category_id": 1, "bbox": [0, 0, 1, 1]},
        {"id": 10 * first + 1, "image_id": first, "category_id": 89, "bbox": [0, 0, 1, 1]},
    ]
    captions = [
        {"id": 10 * first, "image_id": first, "caption": "A woman on her bike."},
        {"id": 10 * first + 1, "image_id": first + 1, "caption": "Two puppies."},
        {"id": 10 * first + 2, "image_id": first + 1, "caption": "Dogs at a table"},
    ]
    folder.mkdir(exist_ok=True)
    content: dict[str, Any] = {"images": images, "annotations": instances, "categories": CATEGORIES}
    (folder / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")
    content = {"images": images, "annotations": captions}
    (folder / f"captions_{split}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_instances_and_captions_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_annotations(tmp_path)
    assert build_objects(folder, "builtin") == {
        "1": ["bicycle", "hair drier", "person"],
        "2": ["dining table", "dog"],
        "3": [],
    }
    assert capsys.readouterr() == ("", "")


def test_splits_are_put_together(tmp_path: Path) -> None:
    write_annotations(tmp_path, "train2014", first=100)
    write_annotations(tmp_path)
    assert set(build_objects(tmp_path, "builtin")) == {"1", "2", "3", "100", "101", "102"}


def test_progress_is_told_the_end_of_every_file(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    build_objects(write_annotations(tmp_path), "builtin", progress=lambda *call: calls.append(call))
    assert calls == [
        ("instances_val2014.json", 0, 2),
        ("instances_val2014.json", 2, 2),
        ("captions_val2014.json", 0, 3),
        ("captions_val2014.json", 3, 3),
    ]


class Counting:
    """A matcher that finds nothing and counts how often it was asked."""

    def __init__(self, name: str = "counting") -> None:
        self.name = name
        self.asked = 0

    def find(self, caption: str) -> list[Any]:
        self.asked += 1
        return []


def test_cache_is_json_and_is_used_until_something_changes(tmp_path: Path) -> None:
    folder = write_annotations(tmp_path / "annotations")
    cache = tmp_path / "objects.json"
    matcher = Counting()
    built = build_objects(folder, matcher, cache=cache)
    assert json.loads(cache.read_text(encoding="utf-8"))["objects"] == built
    assert build_objects(folder, matcher, cache=cache) == built
    assert matcher.asked == 3  # the second time it was not asked

    build_objects(folder, other := Counting("other"), cache=cache)
    assert other.asked == 3  # another matcher

    write_annotations(folder, "train2014", first=100)
    assert "100" in build_objects(folder, other, cache=cache)  # another file
    assert list(tmp_path.glob("*.part")) == []


@pytest.mark.parametrize("content", ["{", "[]", '{"made_from": {}}', '{"objects": {"1": ["dog"]}}'])
def test_a_spoilt_cache_is_made_anew(tmp_path: Path, content: str) -> None:
    folder = write_annotations(tmp_path / "annotations")
    cache = tmp_path / "objects.json"
    cache.write_text(content, encoding="utf-8")
    assert build_objects(folder, "builtin", cache=cache)["2"] == ["dining table", "dog"]
    assert "dining table" in cache.read_text(encoding="utf-8")


def test_a_folder_without_annotations(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match="instances_val2014.json and captions_val2014.json"):
        build_objects(tmp_path)


def test_a_split_without_its_captions(tmp_path: Path) -> None:
    (write_annotations(tmp_path) / "captions_val2014.json").unlink()
    with pytest.raises(DataFormatError, match="lacks captions_val2014.json"):
        build_objects(tmp_path)


@pytest.mark.parametrize(
    "content", ["{", "[]", "[" * 100_000, '{"images": [], "annotations": [{"id": 1, "image_id": 2}]}']
)
def test_a_broken_annotation_file(tmp_path: Path, content: str) -> None:
    (write_annotations(tmp_path) / "instances_val2014.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataFormatError, match="instances_val2014.json: must be a COCO annotation file"):
        build_objects(tmp_path, "builtin")


def test_a_category_outside_coco(tmp_path: Path) -> None:
    folder = write_annotations(tmp_path)
    path = folder / "instances_val2014.json"
    path.write_text(path.read_text(encoding="utf-8").replace("bicycle", "unicorn"), encoding="utf-8")
    assert build_objects(folder, "builtin")["3"] == []  # a category that no annotation uses does no harm
    path.write_text(path.read_text(encoding="utf-8").replace("hair drier", "unicorn"), encoding="utf-8")
    with pytest.raises(DataFormatError, match="KeyError: 'unicorn'"):
        build_objects(folder, "builtin")


def test_shipped_objects_cover_coco_2014() -> None:
    objects = read_objects()
    assert len(objects) == 82_783 + 40_504  # train2014 and val2014
    assert objects["9"] == ["bowl", "broccoli", "orange"]


@pytest.mark.parametrize("suffix", [".json", ".json.gz", ".jsonl", ".jsonl.gz"])
def test_forms_of_a_ground_truth_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"objects{suffix}"
    if ".jsonl" in suffix:
        text = '{"image_id": 42, "objects": ["dog"]}\n{"image": "scene-1", "objects": []}\n'
    else:
        text = '{"42": ["dog"],\n "scene-1": []}'
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith(".gz") else text.encode())
    assert normalize_objects(read_objects(path)) == {"42": frozenset({"dog"}), "scene-1": frozenset()}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("o.json", "[1]", "must hold {image_id: .*}, got a list"),
        ("o.json", '{"7": "dog"}', "o.json, image 7: must have a list of object names, got 'dog'"),
        ("o.json", '{"7": ["dog"', "o.json, line 1: not JSON"),
        ("o.jsonl", '{"image_id": 1}', "line 1: must have image_id and objects, has 'image_id'"),
        ("o.jsonl", '{"image_id": 1, "objects": [1]}', r"line 1: must have a list of object names, got \[1\]"),
        ("missing.json", None, "missing.json: cannot be read"),
    ],
)
def test_malformed_ground_truth_files(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataFormatError, match=message):
        read_objects(tmp_path / name)


def test_two_lists_for_one_image() -> None:
    with pytest.raises(AlignmentError, match="two for image 42"):
        normalize_objects({42: ["dog"], "COCO_val2014_000000000042": ["cat"]})


def test_two_lines_for_one_image(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    path.write_text('{"image_id": 1, "objects": []}\n{"image_id": "1", "objects": []}\n', encoding="utf-8")
    with pytest.raises(AlignmentError, match="line 2: one line per image, got a further one for image 1"):
        read_objects(path)


def test_synonyms_become_coco_names() -> None:
    assert normalize_objects({1: ["bike", "sofa"]}) == {"1": frozenset({"bicycle", "couch"})}


def test_image_keys() -> None:
    keys: list[str | int] = [
        "val2017/000000391895.jpg",
        "images/COCO_train2014_000000391895.jpg",
        391895,
        "391895",
        "000000391895",
        "000000391895.jpg",
    ]
    assert {image_key(key) for key in keys} == {"391895"}
    assert image_key("0") == image_key(0) == "0"
    assert image_key("42.jpg") == "42.jpg"
    assert image_key("COCO_val2014_42.jpg") == "COCO_val2014_42.jpg"  # not the form of COCO's names: left as it is
