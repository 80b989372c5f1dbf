"""The verdict on made-up numbers."""

import pytest

from damro.diagnosis.headroom import Effect, HeadRoom
from damro.diagnosis.knowledge import CaptionKnowledge, QuestionKnowledge
from damro.diagnosis.settings import CONTROLS, PROMPTS
from damro.diagnosis.verdict import (
    CANNOT_TELL,
    FEWEST,
    LEAST_AUC,
    LIKELY,
    NO_REASON,
    Claim,
    caption_claims,
    judge,
    question_claims,
)
from damro.eval.statistics import Interval


def between(low: float, high: float) -> Interval:
    return Interval((low + high) / 2, low, high, 0.95, 2000, 100)


ABOVE, BELOW, OPEN = between(0.06, 0.2), between(-0.1, 0.0), between(-0.1, 0.3)


def room(change: Interval | None, held_out: int = 100) -> HeadRoom:
    best = {name: Effect(0.5, 0.1, change if name == "damro" else OPEN, OPEN, OPEN, 0.0) for name in PROMPTS}
    return HeadRoom({}, best, dict.fromkeys(CONTROLS, OPEN), {}, (0.5,), (0.1,), held_out)


def questions(difference: Interval | None, above: Interval | None, rate: Interval = ABOVE) -> QuestionKnowledge:
    return QuestionKnowledge(
        dict.fromkeys(PROMPTS, OPEN),
        dict.fromkeys(PROMPTS, OPEN),
        dict.fromkeys(PROMPTS, difference),
        dict.fromkeys(CONTROLS, above),
        rate,
        {},
        80,
    )


def captions(above_chance: Interval, above: Interval) -> CaptionKnowledge:
    return CaptionKnowledge(
        dict.fromkeys(PROMPTS, OPEN),
        dict.fromkeys(PROMPTS, above_chance),
        dict.fromkeys(CONTROLS, above),
        ABOVE,
        {},
        80,
    )


@pytest.mark.parametrize(
    ("value", "images", "holds"),
    [
        (ABOVE, FEWEST, True),
        (BELOW, FEWEST, False),
        (between(-0.1, LEAST_AUC - 0.001), FEWEST, False),
        (between(-0.1, LEAST_AUC), FEWEST, None),
        (OPEN, FEWEST, None),
        (None, FEWEST, None),
        (ABOVE, FEWEST - 1, None),
        (BELOW, FEWEST - 1, None),
        (Interval(0.1, float("-inf"), float("inf"), 0.95, 2000, 1), FEWEST, None),
    ],
)
def test_a_claim_is_settled_by_its_interval(value: Interval | None, images: int, holds: bool | None) -> None:
    assert Claim("", value, LEAST_AUC, images).holds is holds


def test_all_claims_of_one_task_make_it_likely() -> None:
    claims = {
        "questions": question_claims(questions(BELOW, BELOW), room(BELOW), 100),
        "captions": caption_claims(captions(ABOVE, ABOVE), room(ABOVE), 100),
    }
    judged = judge(claims)
    assert judged.verdict == LIKELY
    assert judged.tasks == {"questions": False, "captions": True}
    assert [len(of_task) for of_task in claims.values()] == [6, 6]


def test_one_claim_that_fails_on_each_task_leaves_no_reason() -> None:
    known = questions(ABOVE, ABOVE)
    assert judge({"questions": question_claims(known, room(ABOVE), 100)}).verdict == LIKELY
    assert judge({"questions": question_claims(known, room(BELOW), 100)}).verdict == NO_REASON
    assert judge({"questions": question_claims(questions(ABOVE, BELOW), room(ABOVE), 100)}).verdict == NO_REASON
    assert judge({"questions": question_claims(questions(BELOW, ABOVE), room(ABOVE), 100)}).verdict == NO_REASON


def test_a_model_that_hallucinates_nothing_has_nothing_to_mend() -> None:
    nothing = questions(None, None, rate=between(0.0, 0.0))
    assert judge({"questions": question_claims(nothing, room(between(0.0, 0.0)), 100)}).verdict == NO_REASON


def test_what_is_open_cannot_be_told() -> None:
    assert judge({"questions": question_claims(questions(OPEN, ABOVE), room(ABOVE), 100)}).verdict == CANNOT_TELL
    assert judge({"questions": question_claims(questions(ABOVE, ABOVE), room(ABOVE, 8), 16)}).verdict == CANNOT_TELL
    mixed = {
        "questions": question_claims(questions(BELOW, BELOW), room(BELOW), 100),
        "captions": caption_claims(captions(OPEN, ABOVE), room(ABOVE), 100),
    }
    assert judge(mixed).verdict == CANNOT_TELL
    assert judge(mixed).tasks == {"questions": False, "captions": None}
