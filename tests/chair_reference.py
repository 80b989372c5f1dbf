"""The CHAIR word pipeline done the plain way, to compare the matchers with, and the recorded captions."""

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

CAPTIONS = Path(__file__).parent / "data" / "captions"
CAPTION_FILES = tuple(sorted(path.name.removesuffix(".jsonl.gz") for path in CAPTIONS.glob("*.jsonl.gz")))
POS = {"J": "a", "V": "v", "N": "n", "R": "r"}
ANIMALS = "bird cat dog horse sheep cow elephant bear zebra giraffe animal cub".split()


@cache
def captions(name: str) -> tuple[dict[str, Any], ...]:
    with gzip.open(CAPTIONS / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return tuple(json.loads(line) for line in file)


def recorded_objects(name: str) -> list[list[str]]:
    with gzip.open(CAPTIONS / f"{name}.objects.json.gz", "rt", encoding="utf-8") as file:
        return json.load(file)


@cache
def _tools() -> tuple[Any, Any, Any]:
    from nltk import word_tokenize
    from nltk.stem import WordNetLemmatizer
    from nltk.tag import PerceptronTagger

    return word_tokenize, PerceptronTagger(), WordNetLemmatizer()


@cache
def _double_words() -> dict[str, str]:
    data = json.loads((Path(__file__).parents[1] / "eval/data/chair_synonyms.json").read_text(encoding="utf-8"))
    qualified = {f"{kind} {animal}": animal for kind in ("baby", "adult") for animal in ANIMALS}
    return data["double_words"] | qualified | {"passenger jet": "jet", "passenger train": "train"}


@cache
def _names() -> dict[str, str]:
    data = json.loads((Path(__file__).parents[1] / "eval/data/chair_synonyms.json").read_text(encoding="utf-8"))
    return {word: name for name, synonyms in data["objects"].items() for word in (name, *synonyms)}


def tokenize(caption: str) -> list[str]:
    return _tools()[0](caption.lower())


def lemma(word: str, pos: str) -> str:
    return _tools()[2].lemmatize(word, pos)


def plain_words(caption: str) -> list[str]:
    """Every token tagged, every token lemmatised, then double words."""
    tagged = _tools()[1].tag(tokenize(caption))
    lemmas = [lemma(token, POS.get(tag[0], "n")) for token, tag in tagged]
    words = []
    while lemmas:
        double = _double_words().get(" ".join(lemmas[:2]))
        words.append(lemmas[0] if double is None else double)
        lemmas = lemmas[1 if double is None else 2 :]
    return words


def plain_objects(caption: str) -> list[str]:
    """The words without the toilet seat, and the names."""
    words = plain_words(caption)
    if "toilet" in words and "seat" in words:
        words = [word for word in words if word != "seat"]
    return [_names()[word] for word in words if word in _names()]
