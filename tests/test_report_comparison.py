import json
from pathlib import Path
from typing import Any

import pytest

from damro.eval.benchmark import find_benchmark
from damro.eval.chair.benchmark import ChairScoring
from damro.eval.chair.groups import MEASURES as CAPTIONS
from damro.eval.errors import EvalError
from damro.eval.pope.benchmark import PopeScoring
from damro.eval.pope.groups import MEASURES as ANSWERS
from damro.eval.report.comparison import Comparison, compare, find_runs, load_runs
from damro.eval.report.html import Page, render, write_report
from damro.eval.report.published import load_published
from damro.eval.report.tables import notes, to_csv, to_json, to_markdown
from damro.eval.report.terminal import to_terminal
from damro.eval.report.verdict import CONTROLS, is_better, judge_controls, judge_sampling
from damro.eval.statistics import Interval


def answers(wrong: int, count: int = 60, failed: int = 0) -> dict[str, dict[str, Any]]:
    """Questions, two an image, of which every `wrong`-th is answered wrongly and the first `failed` not at all."""
    records = {}
    for number in range(count):
        label = "yes" if number % 2 else "no"
        said = label if number % wrong else {"yes": "no", "no": "yes"}[label]
        fields = {"split": "s", "image": f"{number // 2}.jpg", "question": f"Is there {number}?", "label": label}
        records[str(number)] = {
            **fields,
            **({"error": "broken"} if number < failed else {"answer": said}),
            "seconds": 0.5,
        }
    return records


def captions(text: str, count: int = 20) -> dict[str, dict[str, Any]]:
    return {str(n): {"image_id": n, "answer": text if n % 2 else "A cat.", "seconds": 0.1} for n in range(count)}


def compare_captions(**texts: str) -> Comparison:
    runs = {name.replace("_", "-"): captions(text) for name, text in texts.items()}
    objects = {str(n): ["cat", "dog"] for n in range(20)}
    return compare(find_benchmark("chair"), "m", runs, ChairScoring("builtin", truth=objects))


def compare_answers(failed: int = 0) -> Comparison:
    runs = {"greedy": answers(4), "damro": answers(6, failed=failed)}
    return compare(find_benchmark("pope"), "m", runs, PopeScoring())


def test_comparison_is_on_what_all_answered() -> None:
    comparison = compare_answers(failed=6)
    assert comparison.compared == 54
    assert [entry.groups[0].scores["n"] for entry in comparison.entries] == [54, 54]
    found = comparison.to_dict()
    assert found["methods"]["damro"]["failed"] == 6
    assert "difference" not in found["methods"]["greedy"]["scores"]["s"]
    # Wrong: of 6..59 every 4th from 8 on is 13, every 6th is 9.
    value, low, high = found["methods"]["damro"]["scores"]["s"]["difference"]["accuracy"]
    assert value == pytest.approx((13 - 9) / 54)
    assert low < value < high
    assert any("WARNING: damro: 6 of 60 samples failed" in line for line in notes(comparison))


def test_tables_show_the_same_numbers() -> None:
    comparison = compare_answers()
    assert json.loads(to_json(comparison)) == comparison.to_dict()
    header, *lines = to_csv(comparison).splitlines()
    assert len(lines) == 2 * 5
    cells = dict(zip(header.split(","), lines[5].split(","), strict=True))
    assert (cells["method"], cells["metric"]) == ("damro", "accuracy")
    assert (cells["benchmark"], cells["model"], cells["value"]) == ("pope", "m", "0.8333")
    assert cells["difference"] == "0.0833"
    markdown = to_markdown(comparison)
    assert "| damro | 83.3 [" in markdown
    assert "<br>+8.3 [" in markdown
    ((table, _),) = to_terminal(comparison, 200)
    assert table.row_count == 2
    assert [str(cell) for cell in table.columns[0].cells] == ["greedy", "damro"]


def test_the_page_shows_text_as_text(tmp_path: Path) -> None:
    evil = 'A cat and a bus <script>alert("x")</script> & more.'
    comparison = compare_captions(greedy="A cat.", damro=evil)
    write_report(comparison, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert html.count("<script") == 2 and "alert(" in html  # the page's own: its data and its code; no pictures
    assert "<script>alert" not in html and r"\u003cscript\u003ealert(\"x\")\u003c/script\u003e \u0026 more." in html
    assert "://" not in html
    assert render(Page('"><b>title')).count("&#34;&gt;&lt;b&gt;title") == 2


def all_methods(damro: str, control: str) -> Comparison:
    return compare_captions(greedy=control, damro=damro, random_k=control, least_k=control, no_image=control)


def all_answers(damro: int, control: int) -> Comparison:
    runs = {name: answers(control) for name in ("greedy", *CONTROLS)}
    runs = {"greedy": runs.pop("greedy"), "damro": answers(damro), **runs}
    return compare(find_benchmark("pope"), "m", runs, PopeScoring())


def test_the_verdict_follows_the_intervals() -> None:
    better = judge_controls(all_answers(30, 3), all_methods("A cat and a dog.", "A cat and a bus."))
    assert better[0].startswith("DAMRO beats all its controls on both measures")
    # Half of 20 captions name a bus beside a cat: CHAIRi 10 / 30 against none of 30.
    assert "CHAIRi by -33.3 [" in better[1]
    assert "recall by +25.0 [" in better[1]
    # Wrong: 2 of 60 with DAMRO (every 30th), 20 without (every 3rd).
    assert "POPE accuracy by +30.0 [" in better[1]
    same = judge_controls(all_answers(3, 3), all_methods("A cat.", "A cat."))
    assert same[0].startswith("DAMRO does not beat its controls")
    half = judge_controls(all_answers(3, 3), all_methods("A cat.", "A cat and a bus."))
    assert half[0].startswith("DAMRO beats its controls in 3 of 6 comparisons only")
    worse = judge_controls(all_answers(3, 30), all_methods("A bus.", "A cat."))
    assert worse[0].startswith("DAMRO does not beat its controls")


def test_sampling_is_judged_beside_cooler_sampling() -> None:
    captioned = compare_captions(greedy="A cat.", hot="A bus.", cool="A cat.", ours="A cat.", best="A cat and a dog.")
    told = judge_sampling(captioned, "ours", "hot", "cool")
    assert "ours does not beat plain sampling at a lower temperature: CHAIRi -50.0 [" in told
    assert "+0.0 [+0.0, +0.0] against cool" in told
    assert "ours beats" in judge_sampling(captioned, "ours", "cool", "hot")


def test_an_interval_that_holds_zero_is_no_improvement() -> None:
    assert not is_better(ANSWERS["accuracy"], Interval(0.01, -0.001, 0.02, 0.95, 2000))
    assert not is_better(CAPTIONS["chair_i"], Interval(0.01, 0.005, 0.02, 0.95, 2000))
    assert not is_better(ANSWERS["recall"], None)


def test_a_run_without_an_answer_hides_nothing_of_the_others() -> None:
    alone = compare(find_benchmark("pope"), "m", {"greedy": answers(4), "damro": answers(6)}, PopeScoring())
    runs = {"vcd": answers(4, failed=60), "greedy": answers(4), "damro": answers(6)}
    comparison = compare(find_benchmark("pope"), "m", runs, PopeScoring())
    assert (comparison.rows(), comparison.compared) == (alone.rows(), 60)
    assert comparison.baseline.name == "greedy"
    assert [(entry.name, entry.total, len(entry.failed)) for entry in comparison.unscored] == [("vcd", 60, 60)]
    assert notes(comparison)[-1] == "WARNING: vcd: all 60 samples failed and are not scored, e.g. 0: broken"
    found = json.loads(to_json(comparison))
    assert found["methods"].pop("vcd") == {"samples": 60, "failed": 60, "seconds": 30.0, "scores": {}}
    assert found == alone.to_dict()
    with pytest.raises(EvalError, match="got none; the first of 60 failed with: broken"):
        compare(find_benchmark("pope"), "m", {"vcd": answers(4, failed=60)}, PopeScoring())


def test_runs_without_an_answered_sample_in_common_are_refused_with_their_names() -> None:
    first, second = answers(4, count=2), answers(4, count=2, failed=1)
    first["1"] = {"error": "broken"}
    with pytest.raises(EvalError, match="in common to be compared, got none among a, b: score them one by one"):
        compare(find_benchmark("pope"), "m", {"a": first, "b": second}, PopeScoring())


def test_the_whole_of_a_run_is_read_as_its_first_rule_does() -> None:
    parts = {key: {**fields, "split": "t"} for key, fields in answers(4).items()}
    runs = {"greedy": {**answers(4), **{f"t/{key}": fields for key, fields in parts.items()}}}
    comparison = compare(find_benchmark("pope"), "m", runs, PopeScoring(rules=("opera", "lmms")))
    assert [group.name for group in comparison.baseline.groups] == [
        *("s", "t", "mean of splits", "all splits"),
        *("s (lmms)", "t (lmms)", "mean of splits (lmms)", "all splits (lmms)"),
    ]
    assert (comparison.baseline.whole.name, comparison.baseline.whole.scores["rule"]) == ("all splits", "opera")


def test_published_figures_are_consistent() -> None:
    """F1 is the harmonic mean of precision and recall, if of one split; of three averaged splits nearly so."""
    for table in load_published()["pope"].values():
        for figures in table.values():
            precision, recall = figures["precision"], figures["recall"]
            assert figures["f1"] == pytest.approx(2 * precision * recall / (precision + recall), abs=0.2)


def write_run(folder: Path, method: str, data: str = "a", benchmark: str = "pope") -> Path:
    folder.mkdir(parents=True)
    resolved = {"method": {"name": method, "method": method, "temperature": 0.0, "parameters": {}}, "data": data}
    run = {"format": 2, "request": {"benchmark": benchmark, "model": "m"}, "resolved": resolved}
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "records.jsonl").write_text("".join(json.dumps({"id": k, **v}) + "\n" for k, v in answers(4).items()))
    return folder


def test_a_folder_of_runs_stands_for_those_in_it(tmp_path: Path) -> None:
    for age, method in (("2", "damro"), ("3", "greedy"), ("1", "vcd")):
        folder = write_run(tmp_path / method, method)
        run = json.loads((folder / "run.json").read_text())
        run["request"]["method"] = method
        (folder / "run.json").write_text(json.dumps({**run, "created": age}))
    assert [one.name for one in find_runs(tmp_path)] == ["greedy", "vcd", "damro"]
    assert find_runs(tmp_path / "vcd") == [tmp_path / "vcd"]
    assert find_runs(tmp_path / "absent") == [tmp_path / "absent"]  # which `load_runs` refuses by its name


def test_runs_are_loaded_under_names_of_their_own(tmp_path: Path) -> None:
    one, two = write_run(tmp_path / "one", "greedy"), write_run(tmp_path / "two", "damro")
    assert list(load_runs([one, two]).runs) == ["greedy", "damro"]
    again = write_run(tmp_path / "again", "greedy")
    assert list(load_runs([one, again]).runs) == ["greedy (one)", "greedy (again)"]
    with pytest.raises(EvalError, match="same questions and truth"):
        load_runs([one, write_run(tmp_path / "other", "greedy", data="b")])
    with pytest.raises(EvalError, match="of one benchmark"):
        load_runs([one, write_run(tmp_path / "chair", "greedy", benchmark="chair")])
    (two / "records.jsonl").write_text("")
    with pytest.raises(EvalError, match="at least one record"):
        load_runs([one, two])
