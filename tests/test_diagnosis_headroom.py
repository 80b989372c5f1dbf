"""The best contrast is chosen on one half and judged on the other; changes are counted by hand."""

import numpy as np
import pytest

from damro.diagnosis.asking import Answer
from damro.diagnosis.cached import Step
from damro.diagnosis.captioning import NamedObject
from damro.diagnosis.changes import changed_answers, changed_words
from damro.diagnosis.headroom import Counts, choose_setting, halves, measure_room
from damro.diagnosis.questions import Question
from damro.diagnosis.settings import PROMPTS
from damro.eval.chair.matchers import Mention

N = len(PROMPTS)
YES, NO = 3, 8


def step(full: list[float], negative: list[float], tokens: tuple[int, ...] = (YES, NO)) -> Step:
    """DAMRO's prompt says `negative`, the controls nothing."""
    rows = np.array([negative, *[[0.0] * len(tokens)] * (N - 1)], dtype=np.float32)
    return Step(np.array(tokens), np.array(full, dtype=np.float32), rows)


def answer(present: bool, full: list[float], negative: list[float], splits: int = 1) -> Answer:
    return Answer(Question("?", present, splits), full[0] > full[1], True, np.zeros(N), step(full, negative))


def test_answers_that_turn_are_counted_once_a_split() -> None:
    images = [
        [answer(False, [1.0, 0.9], [2.0, 0.0], splits=2), answer(True, [1.0, 0.9], [2.0, 0.0], splits=3)],
        [answer(False, [0.9, 1.0], [0.0, 0.0])],
    ]
    # (1 + a) f - a n: at alpha 0.01 yes keeps 1.01 - 0.02 = 0.99 above 0.909; at alpha 1 it has 0 below 1.8.
    counts = changed_answers(images, [0.01, 1.0], [0.1, 0.99], lambda token: token == YES)
    assert counts.better[:, 0, :, 0].tolist() == [[0, 2], [0, 0]]
    assert counts.worse[:, 0, :, 0].tolist() == [[0, 3], [0, 0]]
    assert not counts.better[:, 0, :, 1].any() and not counts.worse[:, 0, :, 1].any()  # one plausible token
    assert not counts.better[:, 1:].any()
    assert (counts.wrong.tolist(), counts.right.tolist()) == ([2, 0], [3, 1])
    assert counts.total.tolist() == [5, 1]


def word(hallucinated: bool, gives_way_to: int) -> NamedObject:
    """A word that DAMRO's prompt takes out."""
    kinds = np.array([-1 if hallucinated else 1, gives_way_to])
    return NamedObject(Mention("cat", "cat", 0, 3, 0), hallucinated, step([1.0, 0.9], [5.0, 0.0]), kinds, np.zeros(N))


@pytest.mark.parametrize(
    ("hallucinated", "gives_way_to", "better", "worse", "avoided", "lost"),
    [
        (True, 1, 1, 0, 1, 0),
        (True, 0, 0, 0, 1, 0),
        (True, -1, 0, 0, 0, 0),
        (False, -1, 0, 1, 0, 1),
        (False, 0, 0, 0, 0, 1),
        (False, 1, 0, 0, 0, 0),
    ],
)
def test_words_are_mended_and_spoilt_by_what_they_give_way_to(
    hallucinated: bool, gives_way_to: int, better: int, worse: int, avoided: int, lost: int
) -> None:
    counts = changed_words([[word(hallucinated, gives_way_to)]], [1.0], [0.1])
    found = [int(part[0, 0, 0, 0]) for part in (counts.better, counts.worse, counts.avoided, counts.lost)]
    assert found == [better, worse, avoided, lost]
    assert [part[0, 1:].sum() for part in counts[:4]] == [0, 0, 0, 0]  # the controls change nothing here
    assert (counts.wrong[0], counts.right[0]) == (hallucinated, not hallucinated)


def test_of_equals_the_setting_that_changes_least_is_chosen() -> None:
    assert choose_setting(np.zeros((3, 4))) == (0, 3)
    assert choose_setting(np.array([[0.0, 1.0, 1.0], [2.0, 2.0, 0.0]])) == (1, 1)


def test_halves_are_disjoint_and_the_same_for_the_same_seed() -> None:
    one, two = halves(11, 42)
    assert (len(one), len(two)) == (5, 6)
    assert sorted([*one, *two]) == list(range(11))
    assert np.array_equal(one, halves(11, 42)[0]) and not np.array_equal(one, halves(11, 43)[0])


def test_the_best_of_one_half_is_judged_on_the_other() -> None:
    images = 40
    choosing, judging = halves(images, 1)
    better, worse = np.zeros((images, N, 2, 1)), np.zeros((images, N, 2, 1))
    better[choosing, 0, 1] = 1.0  # alpha 2 mends what it was chosen on,
    worse[judging, 0, 1] = 1.0  # and spoils the rest
    worse[judging[:5], 1, 0] = 2.0
    counts = Counts(better, worse, better, worse, np.full(images, 1.0), np.full(images, 3.0))
    opens = [np.array([[1.0], [0.0]]) for _ in range(images)]
    room = measure_room(counts, opens, [0.5, 2.0], [0.1], 1)
    best = room.best["damro"]
    assert (best.alpha, best.beta, best.where_chosen) == (2.0, 0.1, 0.25)
    assert best.change is not None and best.change.estimate == -0.25
    assert best.avoided is not None and best.avoided.estimate == 0.0
    assert best.lost is not None and best.lost.estimate == pytest.approx(1 / 3)
    control = room.best["random-k"].change
    assert room.best["random-k"].alpha == 0.5 and control is not None
    assert control.estimate == pytest.approx(-10 / 80)
    above = room.above_controls["random-k"]
    assert above is not None and above.estimate == pytest.approx(-0.25 + 10 / 80)
    assert room.change["damro"] == ((0.0,), (0.0,))  # over all images the two halves cancel
    assert room.open_steps[0.1] is not None and room.open_steps[0.1].estimate == 0.5
    assert room.held_out == 20
