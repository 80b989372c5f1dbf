import importlib.util
import random
from pathlib import Path
from types import ModuleType

import chair_reference as reference
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from damro.eval.chair.coco import read_objects
from damro.eval.chair.matchers import load_matcher
from damro.eval.chair.matchers.closed import ClosedMatcher
from damro.eval.chair.matchers.tagged import TaggedMatcher
from damro.eval.chair.vocabulary import load_vocabulary
from damro.eval.errors import EvalError

ROOT = Path(__file__).parents[1]
ODD = ['"', "``", "''", "(", "--", "...", "…", "“", "’", "'s", "n't", "cannot", "gonna", "d'ye", "'tis", ".", ",", ":"]
ODD += ["3:4", "1,000", "İstanbul", "ΑΣ", "\n", "\u00a0", "&", "a/b", "e.g.", "U.S.", "Mr.", "–", "train.The", "\u200b"]


@pytest.fixture(scope="module")
def tagged(nltk_data: None) -> TaggedMatcher:
    return TaggedMatcher()


def names(matcher: TaggedMatcher | ClosedMatcher, caption: str) -> list[str]:
    return [mention.name for mention in matcher.find(caption)]


# --- vocabulary -------------------------------------------------------------------------------------------------


def test_vocabulary_has_the_80_categories_that_the_ground_truth_uses() -> None:
    vocabulary = load_vocabulary()
    assert len(vocabulary.names) == 80
    assert {name for objects in read_objects().values() for name in objects} == set(vocabulary.names)


def test_every_countable_word_is_reached_by_itself_as_a_noun_or_as_a_pair() -> None:
    vocabulary = load_vocabulary()
    read_as = set(vocabulary.pairs.values()) | {readings.noun for readings in vocabulary.forms.values()}
    # "bow tie" is read as "tie", which stands for the same object; "skis" and "cattle"-like words read as themselves
    # or as their singular under another part of speech.
    unreached = set(vocabulary.name_of) - read_as - {"bow tie"}
    reached_as_plural = {word for word in unreached if vocabulary.forms.get(word) is not None}
    singular = {word: vocabulary.forms[word].noun for word in reached_as_plural}
    assert all(vocabulary.name_of[noun or ""] == vocabulary.name_of[word] for word, noun in singular.items())
    # COCO's own names for which the released word list has no reading as one word.
    assert unreached - reached_as_plural == {"dining table"}


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generator", ROOT / "benchmarks" / "make_chair_inflections.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_shipped_inflections_are_what_wordnet_gives(wordnet_data: None) -> None:
    table = load_generator().tabulate()
    assert table == {form: list(readings) for form, readings in load_vocabulary().forms.items()}


def test_no_word_of_the_recorded_captions_is_missing_from_the_inflections(wordnet_data: None) -> None:
    words = load_generator().relevant_words()
    forms = load_vocabulary().forms
    tokens = {t for name in reference.CAPTION_FILES for c in reference.captions(name) for t in c["caption"].split()}
    tokens = {token.lower().strip(".,") for token in tokens}
    for token in tokens:
        expected = [lemma if (lemma := reference.lemma(token, pos)) in words else None for pos in "nvar"]
        assert list(forms.get(token, (None,) * 4)) == expected, token
    assert len(tokens & forms.keys()) > 300


# --- nltk -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", reference.CAPTION_FILES)
def test_nltk_finds_exactly_the_recorded_objects(name: str, tagged: TaggedMatcher) -> None:
    found = [names(tagged, record["caption"]) for record in reference.captions(name)]
    assert found == reference.recorded_objects(name)


def test_five_recorded_files() -> None:
    assert len(reference.CAPTION_FILES) == 5


@st.composite
def shuffled_captions(draw: st.DrawFn) -> str:
    """Words of recorded captions, inflected vocabulary and odd pieces, out of order."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    words = [w for name in reference.CAPTION_FILES for c in reference.captions(name)[:20] for w in c["caption"].split()]
    forms = list(load_vocabulary().forms)
    pieces = []
    for _ in range(draw(st.integers(0, 60))):
        word = rng.choice(rng.choices([words, forms, ODD], weights=[5, 4, 1])[0])
        word += rng.choice(ODD) if rng.random() < 0.1 else ""
        pieces.append(word.capitalize() if rng.random() < 0.1 else word)
    return " ".join(pieces)


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(caption=shuffled_captions())
def test_nltk_equals_tagging_and_lemmatising_everything(
    caption: str, tagged: TaggedMatcher, wordnet_data: None
) -> None:
    assert tagged.tokens(caption) == reference.tokenize(caption)
    assert names(tagged, caption) == reference.plain_objects(caption)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(caption=st.one_of(shuffled_captions(), st.text(max_size=80)))
def test_places_are_those_of_the_words(caption: str) -> None:
    for mention in ClosedMatcher().find(caption):
        assert 0 <= mention.start < mention.end <= len(caption)
        assert caption[mention.start : mention.end] == mention.word


def test_a_caption_that_repeats_itself_is_tagged_once(wordnet_data: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # Neither word has a fixed tag, so every window would reach back to the start: 80,000 tags for 400 words.
    matcher = TaggedMatcher()
    tagger = matcher._tagger
    tagged_tokens: list[str] = []

    def tag(tokens: list[str]) -> list[tuple[str, str]]:
        tagged_tokens.extend(tokens)
        return list(type(tagger).tag(tagger, tokens))

    monkeypatch.setattr(tagger, "tag", tag)
    caption = "umbrellas bears " * 200
    found = names(matcher, caption)
    assert len(tagged_tokens) < 4000
    assert found == reference.plain_objects(caption)


def test_places_of_double_words_quotes_and_letters_that_grow_in_lower_case(tagged: TaggedMatcher) -> None:
    caption = 'İn the "Hot Dogs" and traffic lights'
    assert [(m.name, m.word, m.start) for m in tagged.find(caption)] == [
        ("hot dog", "Hot Dogs", 8),
        ("traffic light", "traffic lights", 22),
    ]


# --- both -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("Two women ride motorcycles.", ["person", "motorcycle"]),
        ("A baby elephant and an adult zebra", ["elephant", "zebra"]),
        ("A baby and an elephant", ["person", "elephant"]),
        ("The passenger train stops", ["train"]),
        ("A passenger on the train", ["person", "train"]),
        ("A white toilet seat", ["toilet"]),
        ("The seat of the toilet", ["toilet"]),
        ("The seat of the car", ["chair", "car"]),
        ("The train tracks, near home plate", []),
        ("A table with three potted plants and wine glasses", ["dining table", "potted plant", "wine glass"]),
        ("He wears a bow tie", ["tie"]),
        ("A stop. Sign here", []),
        ("People are skiing down the slope", ["person", "skis"]),
        ("The dog's bed and a cat-like lamp", ["dog", "bed"]),
        # Faults of the released script that published numbers contain: two entries of its word list have a space
        # too many and are never met.
        ("A cheesecake", []),
        ("A motor bike", []),
        # WordNet has "men" as a word of its own, so it is not reduced to "man".
        ("Two men", []),
        ("", []),
    ],
)
@pytest.mark.parametrize("matcher", ["nltk", "builtin"])
def test_hand_worked_captions(matcher: str, caption: str, expected: list[str], request: pytest.FixtureRequest) -> None:
    found = names(request.getfixturevalue("tagged") if matcher == "nltk" else ClosedMatcher(), caption)
    assert found == expected


@pytest.mark.parametrize("matcher", ["nltk", "builtin", "plain"])
@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("There is no dog in the image.", ["dog"]),
        ("A bench without a person.", ["bench", "person"]),
        ("The man wears an orange shirt.", ["person", "orange"]),
        ("The bus is orange and white.", ["bus", "orange"]),
        ("They train for the race.", ["train"]),
        ("The dog is being trained.", ["dog", "train"]),
        ("The bride's long train trails behind her.", ["person", "train"]),
        ("The ship will sink.", ["boat", "sink"]),
        ("Two men are walking.", []),
    ],
)
def test_what_chair_cannot_see(matcher: str, caption: str, expected: list[str], request: pytest.FixtureRequest) -> None:
    """The examples of docs/protocol.md; "plain" is the pipeline of the usual scripts."""
    assert caption in " ".join((ROOT / "docs" / "protocol.md").read_text(encoding="utf-8").split())
    if matcher == "plain":
        request.getfixturevalue("wordnet_data")
        assert reference.plain_objects(caption) == expected
    else:
        assert names(request.getfixturevalue("tagged") if matcher == "nltk" else ClosedMatcher(), caption) == expected


@pytest.mark.parametrize("name", reference.CAPTION_FILES)
def test_builtin_scores_stay_near_those_of_nltk(name: str) -> None:
    truth = read_objects()
    rates = []
    found = [names(ClosedMatcher(), record["caption"]) for record in reference.captions(name)]
    for objects in (found, reference.recorded_objects(name)):
        wrong = [
            sum(o not in truth[str(record["image_id"])] for o in caption)
            for record, caption in zip(reference.captions(name), objects, strict=True)
        ]
        rates.append((100 * sum(n > 0 for n in wrong) / len(wrong), 100 * sum(wrong) / sum(map(len, objects))))
    assert rates[0][0] == pytest.approx(rates[1][0], abs=0.5)
    assert rates[0][1] == pytest.approx(rates[1][1], abs=0.3)


# --- choosing one -----------------------------------------------------------------------------------------------


def test_auto_takes_nltk_when_its_data_is_there(nltk_data: None) -> None:
    assert load_matcher().name == "nltk"


def test_without_data_auto_is_builtin_and_nltk_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    assert load_matcher("auto").name == "builtin"
    with pytest.raises(EvalError, match=r"averaged_perceptron_tagger_eng, punkt_tab not found; run 'damro setup-nltk'"):
        load_matcher("nltk")


def test_an_unknown_matcher_is_refused() -> None:
    with pytest.raises(EvalError, match="must be one of nltk, builtin or auto, got 'spacy'"):
        load_matcher("spacy")
