"""Write eval/data/chair_inflections.json from WordNet; with --check, compare instead.

    python benchmarks/make_chair_inflections.py [--check]

Needs NLTK's ``wordnet`` data. NLTK's lemmatiser gives a word v for a form f under a part of speech only if f is
v, or WordNet's exception list leads from f to v, or one of the suffix rules does. All three can be read
backwards, so the candidates below are all the forms there are; each is then put through the lemmatiser itself.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from nltk.corpus import wordnet
from nltk.stem import WordNetLemmatizer

DATA = Path(__file__).parents[1] / "eval" / "data"
PARTS_OF_SPEECH = ("n", "v", "a", "r")


def relevant_words() -> set[str]:
    """Single words that count, or that are half of a double word."""
    data = json.loads((DATA / "chair_synonyms.json").read_text(encoding="utf-8"))
    phrases = [word for name, synonyms in data["objects"].items() for word in (name, *synonyms)]
    words = {phrase for phrase in phrases if " " not in phrase}
    words.update(part for double in data["double_words"] for part in double.split(" "))
    for qualifier, qualified in data["qualifiers"].items():
        words.update((qualifier, *qualified))
    return words


def candidate_forms(words: set[str]) -> Iterator[str]:
    """Every form that could have one of ``words`` as its lemma."""
    yield from words
    for pos in PARTS_OF_SPEECH:
        for form, lemmas in wordnet._exception_map[pos].items():
            if words.intersection(lemmas):
                yield form
        for suffix, ending in wordnet.MORPHOLOGICAL_SUBSTITUTIONS[pos]:
            for word in words:
                if word.endswith(ending):
                    yield word[: len(word) - len(ending)] + suffix


def tabulate() -> dict[str, list[str | None]]:
    """Form -> its lemma as noun, verb, adjective, adverb; None where that is no relevant word."""
    wordnet.ensure_loaded()
    words = relevant_words()
    lemmatize = WordNetLemmatizer().lemmatize
    table: dict[str, list[str | None]] = {}
    for form in sorted(set(candidate_forms(words))):
        lemmas = [lemmatize(form, pos) for pos in PARTS_OF_SPEECH]
        if words.intersection(lemmas):
            table[form] = [lemma if lemma in words else None for lemma in lemmas]
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="compare with the shipped file, write nothing")
    args = parser.parse_args()
    rows = ",\n".join(f"  {json.dumps(form)}: {json.dumps(row)}" for form, row in tabulate().items())
    text = "{\n" + rows + "\n}\n"
    path = DATA / "chair_inflections.json"
    if not args.check:
        path.write_text(text, encoding="utf-8")
        return 0
    if path.read_text(encoding="utf-8") == text:
        return 0
    print(f"{path.name}: differs from what WordNet gives; run this script without --check", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
