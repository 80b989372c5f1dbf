"""eval/chair/vocabulary.py: words of a file, in both of its forms, under both matchers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from damro.eval.chair import score
from damro.eval.chair.images import read_image_ids
from damro.eval.chair.matchers import Matcher, load_matcher
from damro.eval.chair.vocabulary import load_vocabulary
from damro.eval.errors import DataFormatError

WORDS = {"cup": ["mug", "coffee cup"], "bus": [], "puppy": [], "stop light": ["traffic signal"]}


@pytest.fixture(params=["words.json", "words.txt"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    file = tmp_path / str(request.param)
    lines = [", ".join([name, *words]) for name, words in WORDS.items()]
    file.write_text(json.dumps(WORDS) if file.suffix == ".json" else "\n".join(lines) + "\n\n")
    return str(file)


def names(matcher: Matcher, caption: str) -> list[str]:
    return [mention.name for mention in matcher.find(caption)]


@pytest.mark.parametrize("kind", ["builtin", "nltk"])
def test_words_synonyms_plurals_and_pairs(path: str, kind: str, request: pytest.FixtureRequest) -> None:
    if kind == "nltk":
        request.getfixturevalue("nltk_data")
    matcher = load_matcher(kind, load_vocabulary(path))
    assert names(matcher, "A Mug and two buses.") == ["cup", "bus"]
    assert names(matcher, "Puppies under the stop lights, a coffee cup") == ["puppy", "stop light", "cup"]
    assert names(matcher, "A dog, a light and a stop; coffee.") == []  # COCO's words, and halves of pairs
    [mention] = matcher.find("The traffic signals!")
    assert (mention.word, mention.start, mention.end) == ("traffic signals", 4, 19)


def test_a_seat_beside_a_toilet_counts_where_nothing_shadows_it(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("seat\ntoilet\n")
    assert names(load_matcher("builtin", load_vocabulary(str(tmp_path / "words.txt"))), "A toilet seat") == [
        "toilet",
        "seat",
    ]
    assert names(load_matcher("builtin"), "A toilet by the seat.") == ["toilet"]


def test_captions_are_scored_by_the_names_of_the_file(path: str) -> None:
    result = score({"a": "A mug on a bus."}, {"a": ["coffee cup"]}, "builtin", load_vocabulary(path))
    assert (result.chair_i, result.recall) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "must hold at least one name, is empty"),
        ("a.json", "[]", "must hold .name: .synonym, .*, got something else"),
        ("a.json", '{"cup": "mug"}', "must hold .name: .synonym, "),
        ("a.txt", "very long name\n", "a word must be of one or two parts, got 'very long name'"),
        ("a.txt", "cup, mug\nglass, mug\n", "a word must stand for one name, got 'mug' for 'cup' too"),
    ],
)
def test_files_that_hold_no_vocabulary(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataFormatError, match=message):
        load_vocabulary(str(tmp_path / name))


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("42\n73\n", ["42", "73"]),
        ("COCO_val2014_000000000042.jpg, 000000000073.jpg", ["42", "73"]),
        ("[42, 73]", ["42", "73"]),
        ('["COCO_val2014_000000000042.jpg"]', ["42"]),
        ('{"question_id": 1, "image": "COCO_val2014_000000310196.jpg"}\n{"image_id": 7}', ["310196", "7"]),
        ('[{"image_id": 42, "file": "2014.jpg"}]', ["42"]),
        ("kitchen.png", ["kitchen.png"]),
    ],
)
def test_a_list_of_images_is_read_as_what_it_is(text: str, keys: list[str], tmp_path: Path) -> None:
    (tmp_path / "ids").write_text(text)
    assert read_image_ids(tmp_path / "ids") == keys


def test_a_record_without_an_image_is_said(tmp_path: Path) -> None:
    (tmp_path / "ids").write_text('{"question_id": 1}')
    with pytest.raises(DataFormatError, match="line 1: must name its image under one of .*, has 'question_id'"):
        read_image_ids(tmp_path / "ids")
