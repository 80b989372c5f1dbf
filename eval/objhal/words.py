"""Which words count for COCO's 80 objects in Object HalBench, and what the names that a judge extracts become of them.

As in ``eval_gpt_obj_halbench.py`` of repository RLHF-V/RLHF-V: CHAIR's words with some more (``synonyms_refine.txt``
there), each word reduced as a noun whatever its part of speech. Of an extracted name, pairs of words that are read as
one ("baby elephant", "dining table") count and nothing else of it; in a name without such a pair, each run of nouns
counts as a whole: of "man in a hat" the man and the hat, while "dog bowl" is no object. Each word counts once in a
description, so that a man who is a person too is two mentions.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from damro.eval.chair.vocabulary import Readings, Vocabulary, load_vocabulary
from damro.eval.errors import EvalError
from damro.eval.judged.replies import JudgeReplyError

Tagger = Callable[[str], Sequence[tuple[str, bool]]]
"""From a text to the lemma of each of its words, and whether it is a noun."""
PIPELINE = "en_core_web_trf"
"""spaCy's model, which the official script takes."""
SOURCE = "synonyms_refine.txt of RLHF-V"
_NAMES = {
    "brother": "person",
    "pedestrian": "person",
    "motor bike": "motorcycle",
    "cheesecake": "cake",
    "coffee table": "dining table",
    "remote control": "remote",
    "iPhone": "cell phone",
    "stove top oven": "oven",
}
"""What stands for an object beside the words of `damro.eval.chair.vocabulary`; half of it is in CHAIR's list, too,
where its script cannot meet it."""
_PAIRS = (("dining", "table"), ("coffee", "table"), ("remote", "control"))
_FORMS = {
    **dict.fromkeys(("brother", "brothers", "brethren"), "brother"),
    **dict.fromkeys(("pedestrian", "pedestrians"), "pedestrian"),
    **dict.fromkeys(("cheesecake", "cheesecakes"), "cheesecake"),
    **dict.fromkeys(("coffee", "coffees"), "coffee"),
    **dict.fromkeys(("control", "controls"), "control"),
    **dict.fromkeys(("dining", "dinings"), "dining"),
}
"""What WordNet reduces to these words, as ``chair_inflections.json`` has it of the others."""
_NOUNS = ("NN", "NNS", "NNP", "NNPS")


@functools.cache
def load_words() -> Vocabulary:
    """Return the words.

    Example:
        >>> words = load_words()
        >>> words.name_of["coffee table"], words.pairs["dining", "table"], words.forms["seated"].noun
        ('dining table', 'dining table', None)
    """
    shipped = load_vocabulary()
    nouns = {form: readings.noun for form, readings in shipped.forms.items()} | _FORMS
    return replace(
        shipped,
        name_of={**shipped.name_of, **_NAMES},
        pairs={**shipped.pairs, **{pair: " ".join(pair) for pair in _PAIRS}},
        forms={form: Readings(noun, noun, noun, noun) for form, noun in nouns.items()},
        source=SOURCE,
    )


def parse_names(reply: str) -> list[str]:
    r"""Read the JSON list of names in a judge's reply: all of it, its last line, or what its outer brackets enclose.

    The official script takes the first two, and asks again without them. "()" is an empty list, as its prompt has it.

    Raises:
        JudgeReplyError: There is no list of texts.

    Example:
        >>> parse_names('["man", "dogs"]'), parse_names('The objects:\n["cat"]'), parse_names("()")
        (['man', 'dogs'], ['cat'], [])
    """
    text = reply.strip()
    if text == "()":
        return []
    for part in (text, text.rpartition("\n")[2], text[text.find("[") : text.rfind("]") + 1]):
        try:
            found = json.loads(part)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, list) and all(isinstance(one, str) for one in found):
            return found
    raise JudgeReplyError(f"reply must hold a JSON list of names, got {reply[:120]!r}")


def read_names(names: Sequence[str], tag: Tagger) -> list[str]:
    """Return the object that each word of some names stands for, in order; the same word counts once.

    Args:
        names: Of one description.
        tag: Of `load_tagger`.

    Example:
        >>> read_names(["dining tables", "man", "person", "dog bowl"], lambda text: [
        ...     (word.rstrip("s"), True) for word in text.split()[1:]])
        ['dining table', 'person', 'person']
    """
    words = load_words()
    found: dict[str, None] = {}
    for name in names:
        tagged = tag(f"a {name}")
        found |= dict.fromkeys(list(_pairs([lemma for lemma, _ in tagged], words)) or list(_runs(tagged)))
    return [words.name_of[word] for word in found if word in words.name_of and words.shadowed.get(word) not in found]


def _pairs(lemmas: Sequence[str], words: Vocabulary) -> Iterator[str]:
    """What pairs of words are read as, merged from the left."""
    place = 0
    while place + 1 < len(lemmas):
        pair = words.pairs.get((lemmas[place], lemmas[place + 1]))
        if pair is not None:
            yield pair
        place += 1 if pair is None else 2


def _runs(tagged: Sequence[tuple[str, bool]]) -> Iterator[str]:
    """Nouns that follow each other, as one text each."""
    run: list[str] = []
    for lemma, is_noun in (*tagged, ("", False)):
        if is_noun:
            run.append(lemma)
        elif run:
            yield " ".join(run)
            run = []


def load_tagger(name: Literal["nltk", "spacy"]) -> Tagger:
    """Return what finds lemmas and nouns in a name.

    Args:
        name: ``nltk`` for NLTK's tagger and the table of forms, in lower case, where a name's last word is a noun in
            any case if it stands for an object; ``spacy`` for `PIPELINE`, as in the official script.

    Raises:
        EvalError: NLTK's data, or spaCy or its model, is not installed.
    """
    return _spacy_tagger() if name == "spacy" else _nltk_tagger()


@functools.cache
def _nltk_tagger() -> Tagger:
    from damro.eval.chair.matchers.tagged import missing_data

    missing = missing_data()
    if missing:
        raise EvalError(
            f"names that a judge extracts need NLTK's data packages, {', '.join(missing)} not found; run 'damro "
            "setup-nltk' on a networked machine, set NLTK_DATA to a folder that holds them, or give --tagger spacy"
        )
    import nltk

    tagger: Any = nltk.tag.PerceptronTagger()
    words = load_words()

    def tag(text: str) -> list[tuple[str, bool]]:
        tagged = tagger.tag(nltk.word_tokenize(text.lower()))
        *found, (last, is_noun) = [(_lemma(word, words), kind in _NOUNS) for word, kind in tagged]
        # The tagger takes "a puppy" and "a pedestrian" for adjectives; what a name ends with is what it names.
        return [*found, (last, is_noun or last in words.name_of)]

    return tag


def _lemma(word: str, words: Vocabulary) -> str:
    return (words.forms[word].noun if word in words.forms else None) or word


@functools.cache
def _spacy_tagger() -> Tagger:
    try:
        import spacy

        nlp: Any = spacy.load(PIPELINE)
    except (ImportError, OSError) as error:
        raise EvalError(
            f"--tagger spacy needs spaCy and its model {PIPELINE}, not found: pip install spacy, then python -m spacy "
            f"download {PIPELINE}; or leave it out for NLTK's tagger"
        ) from error
    return lambda text: [(token.lemma_, token.tag_ in _NOUNS) for token in nlp(text)]
