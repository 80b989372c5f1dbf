"""Which objects a description names, as ``inference.py`` of github.com/junyangwang0410/AMBER counts them.

Oversights of that script move its figures, and are kept:

* Nouns are not lower-cased: the "Dogs" that begins a sentence is no dog.
* Of an image with a person and a man, "man" is a synonym of the person and covers that one alone; of an object that
  is annotated twice, the second is never covered.
* A noun of the list that counts for no object of the image is hallucinated, whether or not the image shows it.
* A synonym of an imagined object that is alike to one that is there counts for both, and as no hallucination.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from damro.eval.amber.questions import WordLists
from damro.eval.errors import EvalError

Similar = Callable[[str, str], bool]
"""Whether a noun counts as another word."""
THRESHOLD = 0.8
"""The script's: words are alike whose vectors have a greater cosine."""
VECTORS = "en_core_web_lg"
"""spaCy's model whose vectors the script takes."""


class Described(NamedTuple):
    """What a description names.

    Attributes:
        nouns: How many of its nouns are words of the lists, repetitions included.
        hallucinated: Those of them that are not in the image.
        covered: How many of the image's objects are named.
        objects: How many there are.
        imagined: How many of the objects are named that people imagine.
        imaginable: How many of these there are.
    """

    nouns: int
    hallucinated: tuple[str, ...]
    covered: int
    objects: int
    imagined: int
    imaginable: int


def extract_nouns(text: str) -> list[str]:
    """Return the nouns of a text in their base form, in order: NLTK's tokens, tags and WordNet's lemmas.

    Raises:
        EvalError: NLTK's data is missing.
    """
    import nltk
    from nltk.stem import WordNetLemmatizer

    lemmatizer = WordNetLemmatizer()
    try:
        tagged = nltk.pos_tag(nltk.word_tokenize(text))
        return [lemmatizer.lemmatize(word) for word, tag in tagged if tag.startswith("NN")]
    except LookupError as error:
        raise EvalError(
            "AMBER's descriptions need NLTK's data packages punkt_tab, averaged_perceptron_tagger_eng and wordnet, not "
            "all found; run 'damro setup-nltk' on a networked machine, or set NLTK_DATA to a folder that holds them"
        ) from error


def describe_objects(
    nouns: Sequence[str], truth: Sequence[str], hallu: Sequence[str], words: WordLists, similar: Similar
) -> Described:
    """Count the nouns of a description.

    Args:
        nouns: What `extract_nouns` returned.
        truth: The objects that are in the image.
        hallu: Those that people imagine there.
        words: The lists.
        similar: Whether a noun counts as another word.

    Example:
        >>> words = WordLists({"dog": ("puppy",), "cat": (), "tree": ()}, frozenset())
        >>> describe_objects(["puppy", "cat", "cat", "joy"], ["dog", "tree"], ["cat"], words, str.__eq__)
        Described(nouns=3, hallucinated=('cat', 'cat'), covered=1, objects=2, imagined=1, imaginable=1)
    """
    listed = [noun for noun in nouns if noun in words.objects]
    seen, imagined = _Objects(truth, words), _Objects(hallu, words)
    hallucinated = []
    for noun in listed:
        if noun in words.safe or seen.name(noun, str.__eq__):
            continue
        imagined.name(noun, str.__eq__)
        imagined.name(noun, similar)
        if not seen.name(noun, similar):
            hallucinated.append(noun)
    return Described(len(listed), tuple(hallucinated), len(seen.named), len(truth), len(imagined.named), len(hallu))


class _Objects:
    """The objects of a list, and which of them were named."""

    def __init__(self, objects: Sequence[str], words: WordLists) -> None:
        # All synonyms come before the objects' own names: the first word that fits decides.
        self._words = [(word, place) for place, name in enumerate(objects) for word in words.synonyms[name]]
        self._words += [(name, place) for place, name in enumerate(objects)]
        self.named: set[int] = set()

    def name(self, noun: str, similar: Similar) -> bool:
        """Count a noun for the first word that it is similar to; whether there is one."""
        place = next((place for word, place in self._words if similar(noun, word)), None)
        if place is not None:
            self.named.add(place)
        return place is not None


@functools.cache
def load_similarity(name: Literal["exact", "spacy"]) -> Similar:
    """Return the rule by which a noun counts as another word.

    Args:
        name: ``exact`` for the same word; ``spacy`` for the script's: a cosine above `THRESHOLD` of spaCy's vectors.

    Raises:
        EvalError: spaCy or its model is not installed.
    """
    return str.__eq__ if name == "exact" else load_vectors(VECTORS)


def load_vectors(model: str) -> Similar:
    """Return whether two words have vectors alike in a model of spaCy.

    Raises:
        EvalError: spaCy or the model is not installed, or the model has no vectors.
    """
    try:
        import spacy

        nlp: Any = spacy.load(model)
    except (ImportError, OSError) as error:
        raise EvalError(
            f"--similarity spacy needs spaCy and its model {model}, not found: pip install spacy, then python -m spacy "
            f"download {VECTORS}; or leave it out for the same words and their synonyms alone"
        ) from error
    if not nlp.vocab.vectors.size:
        raise EvalError(f"--similarity spacy needs a model with word vectors, {model} has none: take {VECTORS}")
    # A text's vector is the mean of its words', which needs no part of the model's pipeline.
    to_text = functools.cache(nlp.make_doc)

    @functools.cache
    def similar(noun: str, word: str) -> bool:
        first, second = to_text(noun), to_text(word)
        if noun == word:
            return True
        known = first.vector_norm and second.vector_norm
        return bool(known and first.similarity(second) > THRESHOLD)

    return similar
