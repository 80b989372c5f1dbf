"""eval/objhal/words.py: what the names in a judge's reply become."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from damro.eval.errors import EvalError
from damro.eval.judged.replies import JudgeReplyError
from damro.eval.objhal.words import PIPELINE, load_tagger, load_words, parse_names, read_names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('["a", "b"]', ["a", "b"]),
        ('Here they are:\n["a"]\n', ["a"]),
        ('```json\n["a",\n "b"]\n```', ["a", "b"]),
        ("()", []),
        (" [] ", []),
    ],
)
def test_lists_in_replies(text: str, names: list[str]) -> None:
    assert parse_names(text) == names


@pytest.mark.parametrize("text", ["", "None.", '{"a": 1}', '["a", 1]', '["a"', '"a"', "[" * 5000])
def test_replies_without_a_list(text: str) -> None:
    with pytest.raises(JudgeReplyError, match="must hold a JSON list of names"):
        parse_names(text)


@pytest.mark.parametrize(
    ("names", "objects"),
    [
        (["man", "person", "men"], ["person", "person"]),  # man and men are one word
        (["woman with a tennis racket"], ["tennis racket"]),  # a pair alone counts
        (["man in a car"], ["person", "car"]),
        (["dog bowl", "kitchen table"], []),
        (["baby elephants", "train tracks", "home plate"], ["elephant"]),
        (["seat", "toilet"], ["toilet"]),
        (["seat"], ["chair"]),
        (["stove top oven", "red umbrella"], ["oven", "umbrella"]),
    ],
)
def test_names_become_objects(names: list[str], objects: list[str], nltk_data: None) -> None:
    assert read_names(names, load_tagger("nltk")) == objects


def test_every_word_and_its_plural_is_an_object(nltk_data: None) -> None:
    words, tag = load_words(), load_tagger("nltk")
    alone = {form: lemma for form, (lemma, *_) in words.forms.items() if lemma in words.name_of}
    assert {form: read_names([form], tag) for form in alone} == {
        form: [words.name_of[lemma]] for form, lemma in alone.items()
    }
    pairs = [word for word in words.name_of if len(word.split()) == 2]
    assert [read_names([pair.upper()], tag) for pair in pairs] == [[words.name_of[pair]] for pair in pairs]


def test_forms_are_those_of_wordnet(wordnet_data: None) -> None:
    from nltk.stem import WordNetLemmatizer

    lemmatize = WordNetLemmatizer().lemmatize
    words = load_words()
    singles = {part for word in words.name_of for part in word.split() if part != "iPhone"}
    candidates = {ending for word in singles for ending in (word, f"{word}s", f"{word}es")} | {"brethren"}
    for form in candidates:
        lemma = lemmatize(form)
        found = words.forms[form].noun if form in words.forms else None
        alone = lemma in words.name_of or any(lemma in pair for pair in words.pairs)
        assert found == (lemma if alone else None), form


def test_spacy_tells_lemmas_and_nouns(monkeypatch: pytest.MonkeyPatch) -> None:
    tags = {"a": "DT", "two": "CD", "iPhone": "NNP", "ovens": "NNS", "red": "JJ"}

    def load(name: str) -> Any:
        assert name == PIPELINE
        return lambda text: [SimpleNamespace(lemma_=word.rstrip("s"), tag_=tags[word]) for word in text.split()]

    spacy = ModuleType("spacy")
    monkeypatch.setattr(spacy, "load", load, raising=False)
    monkeypatch.setitem(sys.modules, "spacy", spacy)
    load_tagger.__globals__["_spacy_tagger"].cache_clear()
    try:
        assert read_names(["iPhone", "two ovens", "red"], load_tagger("spacy")) == ["cell phone", "oven"]
    finally:
        load_tagger.__globals__["_spacy_tagger"].cache_clear()
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(EvalError, match="--tagger spacy needs spaCy and its model en_core_web_trf"):
        load_tagger("spacy")
