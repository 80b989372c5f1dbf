"""eval/mme/benchmark.py: groups of a run, with P(yes) read from logits or without."""

import random

import pytest

from damro.eval.benchmark import score_run
from damro.eval.errors import DataFormatError
from damro.eval.mme.benchmark import Mme
from damro.eval.pope.benchmark import Pope, PopeScoring


def records_of(category: str, images: int, seed: int) -> dict[str, dict[str, object]]:
    dice = random.Random(seed)
    records: dict[str, dict[str, object]] = {}
    for image in range(images):
        for label in ("yes", "no"):
            share = min(max(dice.gauss(0.6 if label == "yes" else 0.45, 0.2), 0.001), 0.999)
            told = {"category": category, "name": f"{image}.png", "question": f"{label}?", "label": label}
            records[f"{category}/{image}/{label}"] = {
                **told, "image": f"{category}/{image}.png", "answer": "Yes" if share >= 0.5 else "No", "p_yes": share
            }  # fmt: skip
    return records


def test_logits_have_auc_and_threshold_as_pope_has() -> None:
    """The same questions under POPE's scorer, which is tested by hand, give the same figures."""
    count, color = records_of("count", 20, 0), records_of("color", 9, 1)
    *groups, sums = score_run(Mme(read="logits"), {**count, **color}, Mme.scoring())
    for group, records in zip(groups, (count, color), strict=True):
        as_pope = {key: {**fields, "split": "s"} for key, fields in records.items()}
        (pope,) = score_run(Pope(read="logits"), as_pope, PopeScoring())
        for name in ("accuracy", "auc", "best_accuracy", "threshold"):
            assert group.scores[name] == pytest.approx(pope.scores[name])
        found = group.intervals()
        assert all(found[name] for name in ("accuracy", "accuracy_plus", "score", "auc", "best_accuracy"))
        assert group.scores["accuracy"] < group.scores["best_accuracy"]
        assert "best threshold" in [note.name for note in group.notes]
    assert sums.scores["total"] == pytest.approx(sum(group.scores["score"] for group in groups))
    assert {len(row) for row in sums.counts.values()} == {8}
    plain = score_run(Mme(), {**count, **color}, Mme.scoring())
    assert [group.scores["score"] for group in plain[:-1]] == [group.scores["score"] for group in groups]
    assert "auc" not in plain[0].scores


def test_what_has_no_p_yes_is_wrong_and_an_answer_without_one_is_refused() -> None:
    records = records_of("count", 4, 2)
    for key, share in (("count/0/yes", None), ("count/1/yes", 0.9)):
        records[key] |= {"p_yes": share, "answer": "Yes" if share else ""}
    (group,) = score_run(Mme(read="logits"), records, Mme.scoring())
    assert group.scores["other"] == 1
    records["count/0/yes"]["answer"] = "Yes"
    with pytest.raises(DataFormatError, match="must have a probability under 'p_yes'"):
        score_run(Mme(read="logits"), records, Mme.scoring())
