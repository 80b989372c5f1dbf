"""Images and what they show: embedded scenes, folders with COCO's instances or lists of objects, and what is wrong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from damro.decoding.errors import ParameterError
from damro.diagnosis import Settings, folder_images, scene_images
from damro.diagnosis.instances import read_instances
from damro.diagnosis.questions import questions_of
from damro.diagnosis.samples import AnnotatedImage
from damro.eval.benchmark import DataRequest
from damro.eval.chair.vocabulary import load_vocabulary
from damro.eval.errors import DataFormatError, EvalError
from damro.eval.pope.benchmark import Pope
from damro.tiny.coco_files import write_coco
from damro.tiny.scenes import scene


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco"), "test", 8)


def test_instances_of_scenes_are_the_scenes(coco: Path) -> None:
    found = {image.name: image for image in folder_images(coco / "images", coco / "instances_test.json")}
    scenes = scene_images(8)
    assert found.keys() == {image.name for image in scenes}
    for image in scenes:
        other = found[image.name]
        assert other.objects == image.objects
        assert image.open_mask is not None and other.open_mask is not None
        assert np.array_equal(other.open_mask(), image.open_mask())
        assert np.array_equal(np.asarray(other.open_image()), np.asarray(image.open_image()))


def test_a_mask_of_a_scene_is_where_its_objects_are() -> None:
    open_mask = scene_images(1)[0].open_mask
    assert open_mask is not None
    mask = open_mask()
    expected = np.zeros((96, 96), dtype=bool)
    for thing in scene("test", 0).objects:
        expected |= thing.mask
    assert np.array_equal(mask, expected) and 0 < mask.mean() < 1


def test_lists_of_objects_tell_no_places(coco: Path, tmp_path: Path) -> None:
    file = tmp_path / "objects.json"
    file.write_text(json.dumps({"test_000003.png": ["bike", "dog"], "test_000005.png": []}))
    found = folder_images(coco / "images", file)
    assert {image.name: image.objects for image in found} == {
        "test_000003.png": frozenset({"bicycle", "dog"}),
        "test_000005.png": frozenset(),
    }
    assert all(image.open_mask is None for image in found)


def test_the_seed_chooses_so_many(coco: Path) -> None:
    some = [image.name for image in folder_images(coco / "images", coco / "instances_test.json", limit=3)]
    assert len(set(some)) == 3
    others = [folder_images(coco / "images", coco / "instances_test.json", limit=3, seed=seed) for seed in range(5)]
    assert len({tuple(image.name for image in images) for images in others}) > 1


def annotated(**annotation: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 1, "file_name": "val/a.png", "height": 4, "width": 6}],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [{"image_id": 1, "category_id": 1, **annotation}],
    }


def test_outlines_are_filled_and_boxes_taken_without() -> None:
    polygon = read_instances(annotated(segmentation=[[1, 1, 4, 1, 4, 3, 1, 3]], bbox=[0, 0, 6, 4]), "here")
    expected = np.zeros((4, 6), dtype=bool)
    expected[1:3, 1:4] = True
    assert np.array_equal(polygon.mask("a.png"), expected)
    box = read_instances(annotated(segmentation=[], bbox=[1, 1, 3, 2]), "here")
    assert np.array_equal(box.mask("a.png"), expected)
    runs = read_instances(annotated(segmentation={"size": [4, 6], "counts": [4, 2, 18]}), "here")
    columns = np.zeros(24, dtype=bool)
    columns[4:6] = True
    assert np.array_equal(runs.mask("a.png"), columns.reshape(6, 4).T)


def test_annotations_that_are_none_are_told() -> None:
    with pytest.raises(DataFormatError, match="here: must hold COCO's instances, reading it gave KeyError"):
        read_instances({**annotated(), "annotations": [{"image_id": 9, "category_id": 1}]}, "here")
    with pytest.raises(DataFormatError, match="must have COCO's segmentation or bbox, got 'dog' of image a.png"):
        read_instances(annotated(), "here").mask("a.png")


def test_folders_without_these_images_are_refused(coco: Path, tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="--images must be a folder"):
        folder_images(tmp_path / "absent", coco / "instances_test.json")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(EvalError, match="--images must hold annotated images"):
        folder_images(empty, coco / "instances_test.json")
    others = tmp_path / "objects.json"
    others.write_text(json.dumps({"elsewhere.png": ["dog"]}))
    with pytest.raises(EvalError, match="--images must hold annotated images"):
        folder_images(coco / "images", others)


def test_objects_that_are_no_words_are_refused(coco: Path, tmp_path: Path) -> None:
    file = tmp_path / "objects.json"
    file.write_text(json.dumps({"test_000003.png": ["gazebo"]}))
    with pytest.raises(DataFormatError, match="got 'gazebo'"):
        folder_images(coco / "images", file)
    words = tmp_path / "words.txt"
    words.write_text("gazebo, pavilion\n")
    found = folder_images(coco / "images", file, vocabulary=load_vocabulary(str(words)))
    assert found[0].objects == frozenset({"gazebo"})


def test_questions_are_those_of_the_benchmark() -> None:
    images = scene_images(30)
    asked = questions_of(images, 42)
    expected: dict[str, dict[tuple[str, bool], int]] = {}
    for sample in Pope().load(DataRequest(scenes=30, seed=42)).samples:
        key = (sample.prompt, sample.fields["label"] == "yes")
        of_image = expected.setdefault(sample.image, {})
        of_image[key] = of_image.get(key, 0) + 1
    found = {name: {(one.prompt, one.present): one.splits for one in of_image} for name, of_image in asked.items()}
    assert found == expected


def test_images_with_few_objects_are_asked_about_fewer() -> None:
    names = ["cat", "dog", "car", "bus"]

    def image(number: int, count: int) -> AnnotatedImage:
        return AnnotatedImage(str(number), lambda: Image.new("RGB", (8, 8)), frozenset(names[number % 4 :][:count]))

    asked = questions_of([image(number, 1) for number in range(8)])
    assert len(asked) == 8
    assert {sum(one.splits for one in of_image if one.present) for of_image in asked.values()} == {3}
    with pytest.raises(EvalError, match="objects must be known of at least half of the images"):
        questions_of([image(0, 1), image(1, 0), image(2, 0)])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": (0.0,)}, "alpha must be in \\(0, 100\\]"),
        ({"beta": (1.5,)}, "beta must be in"),
        ({"alpha": ()}, "alpha must be at least one number, got none"),
        ({"top_k": 0}, "top_k must be a whole number of at least 1"),
        ({"matcher": "guess"}, "matcher must be one of"),
    ],
)
def test_settings_out_of_range_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        Settings(**given)


def test_the_grid_is_put_in_order() -> None:
    settings = Settings(alpha=(2.0, 0.5, 2.0), beta=(0.4, 0.1))
    assert (settings.alpha, settings.beta) == ((0.5, 2.0), (0.1, 0.4))
