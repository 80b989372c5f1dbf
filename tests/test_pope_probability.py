import json
import math
import random

import pytest

from damro.eval.benchmark import score_run
from damro.eval.errors import DataFormatError, EvalError
from damro.eval.pope.benchmark import Pope, PopeScoring
from damro.eval.pope.probability import score_shares
from damro.eval.pope.questions import Question
from damro.eval.thresholds import p_yes_of


def pairs_of(*shares: tuple[str, float | None]) -> list[tuple[Question, float | None]]:
    return [(Question(str(n), f"{n // 3}.jpg", "?", label), value) for n, (label, value) in enumerate(shares)]


def test_by_hand() -> None:
    shares = [("yes", 0.9), ("yes", 0.4), ("no", 0.5), ("no", 0.1), ("no", 0.4), ("yes", None)]
    found = score_shares("s", pairs_of(*shares))
    scores = found.scores
    assert [scores[name] for name in ("tp", "fp", "tn", "fn", "undecided", "n")] == [1, 1, 2, 1, 1, 6]
    assert scores["accuracy"] == 3 / 6
    # Of 2 x 3 pairs, 0.9 wins three; 0.4 wins one and ties one.
    assert scores["auc"] == pytest.approx(4.5 / 6)
    # From just below 0.9 on: one yes and three noes right of six questions.
    assert scores["best_accuracy"] == pytest.approx(4 / 6)
    assert 0.5 < scores["threshold"] <= 0.9
    assert (scores["rule"], found.notes[3].name, found.notes[3].doubtful) == ("logits", "undecided", True)


def test_auc_equals_counting_pairs_and_thresholds_equal_trying_them() -> None:
    dice = random.Random(0)
    # Log-odds in the middle of steps, so that rounding changes no order.
    odds = [(dice.choice(["yes", "no"]), 0.05 * dice.randint(-80, 80) + 0.025) for _ in range(200)]
    shares = [(label, 1 / (1 + math.exp(-value))) for label, value in odds]
    scores = score_shares("s", pairs_of(*shares)).scores
    there = [value for label, value in shares if label == "yes"]
    absent = [value for label, value in shares if label == "no"]
    won = sum((a > b) + 0.5 * (a == b) for a in there for b in absent)
    assert scores["auc"] == pytest.approx(won / len(there) / len(absent))

    def accuracy(threshold: float) -> float:
        return sum((value >= threshold) == (label == "yes") for label, value in shares) / len(shares)

    assert scores["best_accuracy"] == pytest.approx(max(map(accuracy, [0.0, *there, *absent, 1.1])))
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


@pytest.mark.parametrize("fields", [{"answer": "Yes"}, {"answer": "No", "p_yes": 1.5}, {"answer": "No", "p_yes": True}])
def test_no_probability(fields: dict[str, object]) -> None:
    with pytest.raises(DataFormatError, match="record '7' must have a probability under 'p_yes'"):
        p_yes_of(fields, "7")


def test_a_run_over_splits_has_the_mean_beside_the_pooled_questions() -> None:
    """For answers and for P(yes): the mean is that of the splits' figures, the last group pools."""
    dice = random.Random(1)
    records: dict[str, dict[str, object]] = {}
    for split, n in (("coco/random", 30), ("coco/popular", 12)):
        for number in range(n):
            share = dice.random()
            told = {"split": split, "image": f"{number // 3}.jpg", "question": "?", "label": dice.choice(["yes", "no"])}
            records[f"{split}/{number}"] = {**told, "answer": "Yes" if share >= 0.5 else "No", "p_yes": share}
    for benchmark in (Pope(), Pope(read="logits")):
        *splits, mean, pooled = score_run(benchmark, records, PopeScoring())
        assert [group.name for group in (*splits, mean, pooled)] == [
            *("coco/random", "coco/popular", "mean of splits", "all splits")
        ]
        for name in benchmark.reads_logits * ["auc"] + ["accuracy", "f1"]:
            values = [group.scores[name] for group in splits]
            assert mean.scores[name] == pytest.approx(sum(values) / 2) != pooled.scores[name]
            interval = mean.intervals()[name]
            assert interval is not None and interval.estimate == pytest.approx(mean.scores[name])
        assert (mean.notes[-1].name, mean.notes[-1].value) == ("splits", 2)
    named = [group.name for group in score_run(Pope(), records, PopeScoring(rules=("pope", "opera")))]
    assert named[2:4] == ["mean of splits", "all splits"] and named[6] == "mean of splits (opera)"
