import pytest

from damro.eval.benchmark import answered_in_all, find_benchmark, score_run
from damro.eval.chair.benchmark import Chair, ChairScoring
from damro.eval.chair.matchers import Mention, Reading
from damro.eval.chair.texts import cut_reading, drop_cut_sentence, shortest
from damro.eval.report.comparison import compare


@pytest.mark.parametrize(
    ("caption", "kept"),
    [
        ("A dog runs. A man is hol", "A dog runs."),
        ('He says "stop!" and lea', 'He says "stop!"'),
        ("A dog runs.", "A dog runs."),
        ("A dog runs. ", "A dog runs. "),
        ("A dog on a beach", "A dog on a beach"),
        ("It is 3.5 m long and", "It is 3.5 m long and"),
        ("Really? Yes! A dog (on a beach.) Then", "Really? Yes! A dog (on a beach.)"),
        ("", ""),
    ],
)
def test_a_cut_sentence_goes(caption: str, kept: str) -> None:
    assert drop_cut_sentence(caption) == kept


def test_reading_up_to_a_length() -> None:
    reading = Reading([Mention("dog", "dog", 2, 5, 1), Mention("cat", "cat", 20, 23, 6)], 8, 7)
    assert cut_reading(reading, 6) == Reading(reading.mentions[:1], 6, 6)
    assert cut_reading(reading, 7) == Reading(reading.mentions, 7, 7)
    assert cut_reading(reading, 99) == reading
    assert shortest([]) == {}


TRUTH = {"1": ["dog"], "2": ["cat"]}
LONG = {"1": "A dog runs on the grass. There is a car.", "2": "A cat sits here, by a bus. And a ca"}
SHORT = {"1": "A dog and a bird.", "2": "A cat sits."}


def records(captions: dict[str, str]) -> dict[str, dict[str, object]]:
    return {key: {"image_id": int(key), "image": f"{key}.jpg", "answer": text} for key, text in captions.items()}


def test_runs_at_equal_length() -> None:
    """Each image's captions are read up to the shorter one: the car and the bus stand behind that."""
    scoring = ChairScoring("builtin", equal_length=True, truth=TRUTH)
    comparison = compare(find_benchmark("chair"), "m", {"long": records(LONG), "short": records(SHORT)}, scoring)
    (whole, cut), (short, short_cut) = (entry.groups for entry in comparison.entries)
    assert (whole.scores["chair_i"], cut.scores["chair_i"]) == (2 / 4, 0.0)
    assert short.scores["chair_i"] == short_cut.scores["chair_i"] == 1 / 3
    assert cut.scores["mean_tokens"] == short.scores["mean_tokens"] == (6 + 4) / 2
    assert cut.beside and comparison.entries[0].whole is whole
    difference = short_cut.differences(cut)["chair_i"]
    assert difference is not None and difference.estimate == pytest.approx(1 / 3)


def test_only_what_all_runs_answered_settles_the_length() -> None:
    runs = {"a": records(LONG), "b": records({"1": SHORT["1"]})}
    assert answered_in_all(runs.values()) == {"1"}
    scoring = ChairScoring("builtin", equal_length=True, truth=TRUTH)
    comparison = compare(find_benchmark("chair"), "m", runs, scoring)
    assert [entry.groups[1].scores["n_captions"] for entry in comparison.entries] == [1, 1]


def test_runs_without_cut_sentences() -> None:
    scoring = ChairScoring("builtin", drop_cut_sentence=True, truth=TRUTH)
    (group,) = score_run(Chair(), records(LONG), scoring)
    assert group.captions[1].caption == "A cat sits here, by a bus."
    assert [(note.name, note.value) for note in group.notes][-1] == ("cut sentences dropped", 1)
