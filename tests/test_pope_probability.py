import json
import random

import pytest

from damro.eval.benchmark import score_run
from damro.eval.errors import DataFormatError, EvalError
from damro.eval.pope.benchmark import Pope, PopeScoring
from damro.eval.pope.probability import p_yes_of, score_shares
from damro.eval.pope.questions import Question


def pairs_of(*shares: tuple[str, float | None]) -> list[tuple[Question, float | None]]:
    return [(Question(str(n), f"{n // 3}.jpg", "?", label), value) for n, (label, value) in enumerate(shares)]


def test_by_hand() -> None:
    shares = [("yes", 0.9), ("yes", 0.4), ("no", 0.5), ("no", 0.1), ("no", 0.4), ("yes", None)]
    found = score_shares("s", pairs_of(*shares))
    assert accuracy(scores["threshold"]) == pytest.approx(scores["best_accuracy"])
    assert scores["accuracy"] == pytest.approx(accuracy(0.5))


def test_certain_ones_and_a_half() -> None:
    scores = score_shares("s", pairs_of(("yes", 1.0), ("no", 0.0), ("yes", 0.5))).scores
    assert (scores["accuracy"], scores["auc"], scores["best_accuracy"], scores["threshold"]) == (1, 1, 1, 0.5)


def test_labels_of_one_kind_have_no_auc() -> None:
    found = score_shares("s", pairs_of(("yes", 0.9), ("yes", 0.2)))
    assert found.scores["auc"] is None and found.intervals()["auc"] is None


def test_intervals_have_the_scores_as_estimates() -> None:
    dice = random.Random(1)
    found = score_shares("s", pairs_of(*((dice.choice(["yes", "no"]), dice.random()) for _ in range(60))))
    for name, interval in found.intervals().items():
        assert interval is not None and interval.estimate == pytest.approx(found.scores[name])
        assert interval.low <= interval.estimate <= interval.high


def record(label: str, **read: object) -> dict[str, object]:
    return {"split": "s", "image": "a.jpg", "question": "?", "label": label, **read}


def test_a_run_is_scored_by_its_probabilities() -> None:
    records = {
        "1": record("yes", answer="Yes", p_yes=0.9),
        "2": record("no", answer="No", p_yes=0.3),
        "3": record("no", answer=""),
    }
    (group,) = score_run(Pope(read="logits"), records, PopeScoring())
    assert (group.scores["accuracy"], group.scores["auc"], group.scores["undecided"]) == (2 / 3, 1.0, 1)
    json.dumps(group.to_dict(), allow_nan=False)
    with pytest.raises(EvalError, match="--rules must be left out where logits are read, got 'vcd'"):
        score_run(Pope(read="logits"), records, PopeScoring(rules=("vcd",)))


@pytest.mark.parametrize(
    "fields", [{"answer": "Yes"}, {"answer": "Yes", "p_yes": 1.5}, {"answer": "No", "p_yes": True}]
)
def test_no_probability(fields: dict[str, object]) -> None:
    with pytest.raises(DataFormatError, match="record '7' must have a probability under 'p_yes'"):
        p_yes_of(fields, "7")
