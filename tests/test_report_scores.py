import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from damro.eval.benchmark import Group, Records, Scoring, answered_in_all, find_benchmark
from damro.eval.benchmark import score_run as score_any
from damro.eval.chair.benchmark import ChairScoring
from damro.eval.errors import DataFormatError, EvalError
from damro.eval.mme import load_answers
from damro.eval.pope import load_questions
from damro.eval.pope.benchmark import PopeScoring

DATA = Path(__file__).parent / "data"


def score_run(benchmark: str, records: Records, scoring: Scoring, keep: set[str] | None = None) -> list[Group]:
    return score_any(find_benchmark(benchmark), records, scoring, keep)


def recorded_run() -> dict[str, dict[str, Any]]:
    """LLaVA-1.5-13B's recorded answers as the records of a run."""
    split = "adversarial"
    path = DATA / f"pope/answers_llava-v1.5-13b_{split}.jsonl.gz"
    answers = [json.loads(line) for line in gzip.open(path, "rt")]
    label = {question.question_id: question for question in load_questions(f"coco/{split}")}
    return {
        f"coco/{split}/{fields['question_id']}": {
            "split": f"coco/{split}",
            "image": fields["image"],
            "question": label[str(fields["question_id"])].text,
            "label": label[str(fields["question_id"])].label,
            "answer": fields["answer"],
        }
        for fields in answers
    }


def pope_records(verdicts: str) -> dict[str, dict[str, Any]]:
    """Two questions an image; a letter says what became of each: t(p), f(p), n (tn), m (fn), x (failed)."""
    meaning = {"t": ("yes", "Yes"), "f": ("no", "Yes"), "n": ("no", "No"), "m": ("yes", "No"), "x": ("yes", "")}
    records = {}
    for number, letter in enumerate(verdicts):
        label, answer = meaning[letter]
        base = {"split": "s", "image": f"{number // 2}.jpg", "question": f"Is there {number}?", "label": label}
        records[f"s/{number}"] = {**base, "error": "broken"} if letter == "x" else {**base, "answer": answer}
    return records


def test_recorded_answers_have_the_published_counts_and_intervals_around_them() -> None:
    (group,) = score_run("pope", recorded_run(), PopeScoring())
    result = group.to_dict()
    assert [result[key] for key in ("tp", "fp", "tn", "fn", "n")] == [1182, 117, 1383, 318, 3000]
    assert len(group.counts) == 500
    for name, (low, high) in result["ci"].items():
        assert low < result[name] < high
    # 435 of 3,000 wrong: a standard error of sqrt(.145 * .855 / 3000) = .0064 were the questions independent; the six
    # of one image are nearly so.
    low, high = result["ci"]["accuracy"]
    assert 0.02 < high - low < 0.035


def test_metrics_of_counts_are_the_scorers() -> None:
    (group,) = score_run("pope", pope_records("tttfffnnmm" * 3), PopeScoring())
    for name, interval in group.intervals().items():
        assert interval is not None
        assert interval.estimate == pytest.approx(group.scores[name])


def test_a_difference_is_paired_by_image() -> None:
    before, after = pope_records("tnfm" * 20), pope_records("tnnm" * 20)
    (one,), (two,) = (score_run("pope", run, PopeScoring()) for run in (before, after))
    value, low, high = two.to_dict(one)["difference"]["accuracy"]
    assert value == pytest.approx(0.25)  # every fourth answer is right now
    # Images alternate between no gain and one of two: sd .25 over 40 images, so 1.96 * .25 / sqrt(40) = .077.
    assert low == pytest.approx(0.25 - 0.077, abs=0.02)
    assert high == pytest.approx(0.25 + 0.077, abs=0.02)
    same = one.to_dict(one)["difference"]
    assert same["accuracy"] == [0, 0, 0]


def test_failed_samples_are_left_out_of_both_sides() -> None:
    before, after = pope_records("tnxmtn"), pope_records("tntmxn")
    keep = answered_in_all([before, after])
    assert keep == {"s/0", "s/1", "s/3", "s/5"}
    (one,), (two,) = (score_run("pope", run, PopeScoring(), keep) for run in (before, after))
    assert one.scores["n"] == two.scores["n"] == 4
    assert score_run("pope", before, PopeScoring())[0].scores["n"] == 5


def test_nothing_answered_is_an_error_that_tells_why() -> None:
    with pytest.raises(EvalError, match="got none; the first of 4 failed with: broken"):
        score_run("pope", pope_records("xxxx"), PopeScoring())


def test_an_undefined_metric_is_null_and_not_zero() -> None:
    (group,) = score_run("pope", pope_records("nnnn"), PopeScoring())
    result = group.to_dict(group)
    assert result["precision"] is result["ci"]["precision"] is result["difference"]["precision"] is None
    assert result["accuracy"] == 1


def test_one_run_under_every_rule() -> None:
    records = pope_records("tn")
    records["s/1"]["answer"] = "NO"  # the official rule takes it for a yes, OPERA's for a no
    groups = {group.name: group.scores for group in score_run("pope", records, PopeScoring(rules=("pope", "opera")))}
    assert (groups["s"]["rule"], groups["s"]["fp"]) == ("pope", 1)
    assert (groups["s (opera)"]["rule"], groups["s (opera)"]["fp"]) == ("opera", 0)


def test_splits_and_all_of_them() -> None:
    records = recorded_run()
    again = {f"again/{key}": {**fields, "split": "again"} for key, fields in records.items() if fields["label"] == "no"}
    groups = score_run("pope", {**records, **again}, PopeScoring())
    assert [group.name for group in groups] == ["coco/adversarial", "again", "mean of splits", "all splits"]
    assert [group.scores.get("fp") for group in groups] == [117, 117, None, 234]
    assert len(groups[3].counts) == 500


def test_corrected_labels(tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    lines = [("0.jpg", "Is there 0?", "no"), ("0.jpg", "Is there 1?", "ambiguous")]
    file.write_text("\n".join(json.dumps(dict(zip(("image", "text", "label"), line, strict=True))) for line in lines))
    (group,) = score_run("pope", pope_records("tntn"), PopeScoring(labels=str(file)))
    assert {key: group.scores[key] for key in ("tp", "fp", "tn", "n", "labels_changed", "excluded_by_labels")} == {
        "tp": 1,
        "fp": 1,
        "tn": 1,
        "n": 3,
        "labels_changed": 1,
        "excluded_by_labels": 1,
    }
    (only,) = score_run("pope", pope_records("tntn"), PopeScoring(labels=str(file), labels_complete=True))
    assert (only.scores["n"], only.scores["fp"]) == (1, 1)
    with pytest.raises(EvalError, match="got none of 2"):
        score_run(
            "pope",
            other_image() | {"x": pope_records("t")["s/0"] | {"image": "x.jpg"}},
            PopeScoring(labels=str(file)),
        )
    file.write_text(file.read_text() + "\n" + json.dumps({"image": "0.jpg", "text": "Is there 0?", "label": "yes"}))
    with pytest.raises(DataFormatError, match="line 3: a question must have one label"):
        score_run("pope", pope_records("tntn"), PopeScoring(labels=str(file)))


def other_image() -> dict[str, dict[str, Any]]:
    return {"y": {**pope_records("t")["s/0"], "image": "y.jpg"}}


def test_captions() -> None:
    texts = {"1": "A cat and a dog.", "2": "A dog sits. The dog runs.", "3": "Nothing here."}
    records = {key: {"image_id": int(key), "answer": text} for key, text in texts.items()}
    objects = {"1": ["cat"], "2": ["dog", "cat"], "3": ["bus"]}
    scoring = ChairScoring("builtin", truth=objects)
    (group,) = score_run("chair", records, scoring)
    # Mentions cat, dog*, dog, dog; one of three captions hallucinates; unique cat, dog*, dog; recalled 2 of 4 objects.
    expected = {"chair_s": 1 / 3, "chair_i": 1 / 4, "chair_i_unique": 1 / 3, "recall": 2 / 4, "mean_length": 13 / 3}
    for name, value in expected.items():
        assert group.scores[name] == pytest.approx(value)
        interval = group.intervals()[name]
        assert interval is not None
        assert interval.estimate == pytest.approx(value)
    assert [record.hallucinated[0].word for record in group.captions if record.hallucinated] == ["dog"]
    with pytest.raises(EvalError, match=r"got none for 1 \(3"):
        score_run("chair", records, ChairScoring("builtin", truth={"1": ["cat"], "2": []}))


def test_mme_leaves_out_an_image_of_which_one_question_failed() -> None:
    def record(image: str, number: int, gold: str, answer: str) -> dict[str, Any]:
        return {"category": "count", "name": image, "question": f"{number}?", "label": gold, "answer": answer}

    records = {
        "a1": record("a", 1, "yes", "Yes"),
        "a2": record("a", 2, "no", "No"),
        "b1": record("b", 1, "yes", "Yes"),
        "b2": record("b", 2, "no", "Yes"),
        "c1": record("c", 1, "yes", "Yes"),
        "c2": {**record("c", 2, "no", ""), "error": "broken"},
    }
    (group,) = score_run("mme", records, Scoring())
    assert group.name == "count"
    assert group.scores["score"] == 125  # 3 of 4 answers, 1 of 2 images
    assert {name: interval and interval.estimate for name, interval in group.intervals().items()} == {
        "accuracy": 0.75,
        "accuracy_plus": 0.5,
        "score": 125,
    }
    assert [(note.name, note.value) for note in group.notes if note.doubtful] == [("halves", 1)]
    whole = score_run("mme", {name: fields for name, fields in records.items() if "c" not in name}, Scoring())
    assert not [note for note in whole[0].notes if note.name == "halves"]


def mme_run() -> dict[str, dict[str, Any]]:
    """LLaVA-1.5-7B's recorded answers of the hallucination subset as the records of a run."""
    answers = [answer for path in sorted((DATA / "mme").glob("*.txt")) for answer in load_answers(path)]
    return {
        str(number): {
            "category": answer.category,
            "name": answer.image,
            "question": answer.question,
            "label": answer.gold,
            "answer": answer.answer,
        }
        for number, answer in enumerate(answers)
    }


def test_mme_sums_are_the_scorers_with_intervals_around_them() -> None:
    groups = score_run("mme", mme_run(), Scoring())
    assert [group.name for group in groups] == ["color", "count", "existence", "position", "all categories"]
    result = groups[-1].to_dict()
    assert len(groups[-1].counts) == 4 * 30
    for name in ("total", "hallucination"):
        interval = groups[-1].intervals()[name]
        assert interval is not None
        assert round(result[name], 2) == round(interval.estimate, 2) == 643.33
        assert 580 < interval.low < 643 < interval.high < 700


def test_mme_sums_are_compared_in_pairs() -> None:
    groups = score_run("mme", mme_run(), Scoring())
    # All answers "yes": half of the questions right, no image with both; 50 a category.
    yes = score_run("mme", {key: {**fields, "answer": "Yes"} for key, fields in mme_run().items()}, Scoring())
    difference = yes[-1].differences(groups[-1])["total"]
    assert difference is not None
    assert difference.estimate == pytest.approx(4 * 50 - 643.333333)
    assert difference.high < 0


def test_mme_without_the_whole_subset_has_a_total_alone() -> None:
    part = {key: fields for key, fields in mme_run().items() if fields["category"] in ("count", "color")}
    *_, sums = score_run("mme", part, Scoring())
    assert list(sums.intervals()) == ["total"]
    assert sums.scores == {"total": pytest.approx(325)}
