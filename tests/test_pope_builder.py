"""eval/pope/builder.py: random, popular and adversarial questions from annotated images."""

import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from damro.eval.errors import DataFormatError, EvalError
from damro.eval.pope import build, score
from damro.eval.pope.builder import SPLITS, with_article
from damro.eval.records import read_json
from damro.eval.resources import coco_objects_path

# The same cases every time, and no time limits: the machines that run the tests are slow and shared.
steady = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# Four images, all chosen. Frequencies: person 4, cat 3, dog 2, cup 1, bus 1.
SCENES = {
    "a.jpg": ["person", "cat"],
    "b.jpg": ["person", "cat", "dog"],
    "c.jpg": ["person", "cat", "cup"],
    "d.jpg": ["person", "dog", "bus"],
}


def noun(record):
    return record["text"].removeprefix("Is there ").removesuffix(" in the image?").split(" ", 1)[1]


def negatives(records):
    """(image, object asked for just before, absent object) of every pair of records."""
    return [(no["image"], noun(yes), noun(no)) for yes, no in zip(records[::2], records[1::2], strict=True)]


def test_popular_by_hand():
    found = negatives(build(SCENES, "popular", images=4, per_image=2))
    by_image = {image: [absent for name, _, absent in found if name == image] for image in SCENES}
    # Most frequent first (person, cat, dog, bus, cup: the last two tie, by name), those of the image left out.
    assert by_image == {
        "a.jpg": ["dog", "bus"],
        "b.jpg": ["bus", "cup"],
        "c.jpg": ["dog", "bus"],
        "d.jpg": ["cat", "cup"],
    }


@pytest.mark.parametrize("seed", range(10))
def test_adversarial_by_hand(seed):
    # Companions, most frequent first: person: cat 3, dog 2, bus 1, cup 1. cat: person 3, cup 1, dog 1. dog: person 2,
    # bus 1, cat 1. cup: cat 1, person 1. bus: dog 1, person 1. Absent ones of each image, per object asked for:
    best = {
        ("a.jpg", "person"): "dog",
        ("a.jpg", "cat"): "cup",
        ("b.jpg", "person"): "bus",
        ("b.jpg", "cat"): "cup",
        ("b.jpg", "dog"): "bus",
        ("c.jpg", "person"): "dog",
        ("c.jpg", "cat"): "dog",
        ("c.jpg", "cup"): None,  # exhausted: any absent object
        ("d.jpg", "person"): "cat",
        ("d.jpg", "dog"): "cat",
        ("d.jpg", "bus"): None,
    }
    found = negatives(build(SCENES, "adversarial", images=4, per_image=1, seed=seed))
    assert len(found) == 4
    for image, asked, absent in found:
        assert absent == best[image, asked] or (best[image, asked] is None and absent not in SCENES[image])


def test_adversarial_follows_the_positive_not_the_whole():
    # "fork" goes with "cup" alone. Over all images "person" is far more frequent, and never with "cup".
    scenes = {"1.jpg": ["cup"], "2.jpg": ["cup", "fork"], **{f"p{n}.jpg": ["person"] for n in range(9)}}
    found = negatives(build(scenes, "adversarial", images=11, per_image=1))
    assert ("1.jpg", "cup", "fork") in found
    assert ("1.jpg", "cup", "person") in negatives(build(scenes, "popular", images=11, per_image=1))


def test_counts_are_taken_over_the_chosen_images_only():
    # "person" is everywhere but in the images with two objects, the only ones eligible.
    scenes = {f"p{n}.jpg": ["person"] for n in range(50)} | {"a.jpg": ["cat", "dog"], "b.jpg": ["cup", "bus"]}
    for split in SPLITS:
        asked = {noun(record) for record in build(scenes, split, images=2, per_image=2)}
        assert asked == {"cat", "dog", "cup", "bus"}


def test_random_reaches_every_absent_object():
    seen = {absent for seed in range(60) for _, _, absent in negatives(build(SCENES, "random", 4, 1, seed))}
    assert seen == {"cat", "dog", "cup", "bus"}  # person is in every image


def test_same_images_and_positives_in_all_splits():
    objects = {n: ["person", "cat", "dog", "cup", "bus", "car"][n % 3 : n % 3 + 3] for n in range(40)}
    positives = [
        [
            (record["image"], record["text"])
            for record in build(objects, split, 10, 2, seed=3)
            if record["label"] == "yes"
        ]
        for split in SPLITS
    ]
    assert positives[0] == positives[1] == positives[2]
    assert positives[0] != [
        (record["image"], record["text"])
        for record in build(objects, "random", 10, 2, seed=4)
        if record["label"] == "yes"
    ]


def test_format_and_names():
    records = build({25: ["giraffe", "umbrella"], "61": ["cup", "giraffe"]}, "random", images=2, per_image=1)
    assert [list(record) for record in records] == [["question_id", "image", "text", "label"]] * 4
    assert [record["question_id"] for record in records] == [1, 2, 3, 4]
    assert [record["label"] for record in records] == ["yes", "no"] * 2
    assert {record["image"] for record in records} == {
        "COCO_val2014_000000000025.jpg",
        "COCO_val2014_000000000061.jpg",
    }
    renamed = build({25: ["giraffe"], "x.png": ["cup"]}, "random", images=2, per_image=1, image_name="{}.jpg")
    assert {record["image"] for record in renamed} == {"25.jpg", "x.png"}


def test_records_are_scored_as_they_are():
    records = build(SCENES, "popular", images=4, per_image=2)
    answers = [{"question_id": record["question_id"], "answer": record["label"]} for record in records]
    assert score(records, answers).accuracy == 1.0


@pytest.mark.parametrize(
    ("word", "article"),
    [
        *((word, "an") for word in ("apple", "elephant", "oven", "orange", "umbrella", "unnamed thing", "hour glass")),
        *((word, "a") for word in ("cat", "tv", "hot dog", "unicycle", "uniform", "university", "one-way sign", "ewe")),
        *((word, "a") for word in ("European car", "utensil", "ukulele", "horse")),
        *((word, "an") for word in ("urn", "usher", "udder", "heirloom", "otter", "onion")),
    ],
)
def test_articles(word, article):
    assert with_article(word) == f"{article} {word}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "hard"}, "split must be one of random, popular, adversarial, got 'hard'"),
        ({"images": 0}, "images must be at least 1, got 0"),
        ({"per_image": 0}, "per_image must be at least 1, got 0"),
        ({"images": 5}, r"images must not exceed the 4 images \(of 4\) that show at least 1 objects, got 5"),
        ({"per_image": 3}, r"images must not exceed the 3 images \(of 4\) that show at least 3 objects, got 4"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {"split": "random", "images": 4, "per_image": 1, **change}
    with pytest.raises(EvalError, match=message):
        build(SCENES, **arguments)


def test_no_absent_object_left():
    with pytest.raises(EvalError, match="per_image must leave an object to ask for that is not there, got 1"):
        build({"a.jpg": ["cat", "dog"], "b.jpg": ["cat", "dog"]}, "popular", images=2, per_image=1)


@pytest.mark.parametrize("objects", ["cat", ["cat", 3], [""]])
def test_bad_objects(objects):
    with pytest.raises(DataFormatError, match="objects of image 'a.jpg' must be a list of names"):
        build({"a.jpg": objects}, "random", images=1, per_image=1)


def test_image_given_twice():
    with pytest.raises(DataFormatError, match="every image must stand once, got 'COCO_val2014_000000000009.jpg' twice"):
        build({9: ["cat"], "9": ["dog"]}, "random", images=1, per_image=1)


NOUNS = [f"thing{letter}" for letter in "abcdefghijkl"]
datasets = st.dictionaries(
    st.integers(0, 999), st.sets(st.sampled_from(NOUNS), max_size=5).map(sorted), min_size=6, max_size=30
)


@steady
@given(datasets, st.sampled_from(SPLITS), st.integers(1, 3), st.integers(0, 2**32))
def test_properties(objects, split, per_image, seed):
    eligible = {key for key, names in objects.items() if len(names) >= per_image}
    images = max(1, len(eligible) // 2)
    try:
        records = build(objects, split, images, per_image, seed)
    except EvalError as error:
        # Only two reasons are left: no image is eligible, or the chosen images show too few different objects.
        assert not eligible or "not there" in str(error)
        return
    assert len(records) == 2 * images * per_image
    asked = Counter((record["image"], record["text"]) for record in records)
    assert set(asked.values()) == {1}  # nothing twice within an image
    assert Counter((record["image"], record["label"]) for record in records) == {
        (image, label): per_image for image in {record["image"] for record in records} for label in ("yes", "no")
    }
    for record in records:
        shown = objects[int(record["image"][-16:-4])]
        assert (noun(record) in shown) == (record["label"] == "yes")
    shuffled = list(objects.items())
    random.Random(1).shuffle(shuffled)
    assert build({key: names[::-1] for key, names in shuffled}, split, images, per_image, seed) == records


def test_on_the_shipped_coco_objects():
    """Against the paper's order of difficulty: popular and adversarial ask for far more frequent objects."""
    objects = read_json(coco_objects_path())
    frequency = Counter(name for names in objects.values() for name in names)
    mean = {}
    for split in SPLITS:
        records = build(objects, split)
        assert len(records) == 3000
        absent = [noun(record) for record in records if record["label"] == "no"]
        mean[split] = sum(frequency[name] for name in absent) / len(absent)
    assert mean["random"] < mean["adversarial"] < mean["popular"]
