"""eval/report/samples.py and what benchmarks judge of single answers; eval/report/facts.py."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from PIL import Image

from damro.eval.benchmark import Records, find_benchmark
from damro.eval.chair.benchmark import ChairScoring
from damro.eval.choices import ChoiceScoring
from damro.eval.errors import EvalError
from damro.eval.pope.benchmark import PopeScoring
from damro.eval.report.comparison import Comparison, compare
from damro.eval.report.facts import Origin, facts_of
from damro.eval.report.samples import count_objects, list_samples, make_thumbnails, to_thumbnail

ASKED = {"1": ("cat", "yes"), "2": ("dining table", "no"), "3": ("orange", "no")}


def answers(**said: str) -> Records:
    return {
        key: {
            **{"split": "s", "image": f"{key}.jpg", "question": f"Is there a {noun} in the image?", "label": label},
            **{"answer": said[f"a{key}"]},
        }
        for key, (noun, label) in ASKED.items()
    }


def pope() -> Comparison:
    runs = {
        "greedy": answers(a1="No", a2="Yes", a3="No"),
        "damro": answers(a1="Yes", a2="Yes", a3="No"),
        "vcd": answers(a1="No", a2="Yes, there is.", a3="Yes"),
    }
    return compare(find_benchmark("pope"), "m", runs, PopeScoring())


def test_answers_stand_together_with_what_they_are_worth() -> None:
    listed = list_samples(pope())
    assert [method["name"] for method in listed.data["methods"]] == ["greedy", "damro", "vcd"]
    first, second, third = listed.data["samples"]
    assert first == [
        *("1", "1.jpg", "Is there a cat in the image?", "yes"),
        [["No", 0.0, False, [], "no", [0, 2]], ["Yes", 1.0, True, [], "yes", [1]]],
    ]
    assert [(one[0], one[2], one[-1]) for one in second[4]] == [("Yes", False, [0, 1]), ("Yes, there is.", False, [2])]
    assert [(one[0], one[2], one[-1]) for one in third[4]] == [("No", True, [0, 1]), ("Yes", False, [2])]
    assert (listed.images, listed.left_out) == (["1.jpg", "2.jpg", "3.jpg"], 0)


def test_objects_are_counted_by_method() -> None:
    assert [(one.name, one.counts) for one in count_objects(pope())] == [
        ("dining table", [1, 1, 1]),
        ("orange", [0, 0, 1]),
    ]


def test_every_change_is_shown_and_the_rest_while_there_is_room() -> None:
    same = {"greedy": answers(a1="No", a2="No", a3="No"), "damro": answers(a1="No", a2="Yes", a3="No")}
    comparison = compare(find_benchmark("pope"), "m", same, PopeScoring())
    assert [row[0] for row in list_samples(comparison, 2).data["samples"]] == ["1", "2"]
    short = list_samples(comparison, 0)
    assert ([row[0] for row in short.data["samples"]], short.left_out) == (["2"], 2)


def test_hallucinated_words_have_their_places() -> None:
    text = "A bus \U0001f68c, a cat and a bus."
    runs = {name: {"7": {"image_id": 7, "image": "7.jpg", "prompt": "Say.", "answer": said}} for name, said in
            (("greedy", text), ("damro", "A cat."))}  # fmt: skip
    comparison = compare(find_benchmark("chair"), "m", runs, ChairScoring("builtin", truth={"7": ["cat", "dog"]}))
    listed = list_samples(comparison)
    (sample,) = listed.data["samples"]
    (said, worth, right, spans, read, _), (_, *better) = sample[4]
    assert [said[start:end] for start, end in spans] == ["bus", "bus"]
    assert (worth, right, read) == (-2.0, False, "") and better[:2] == [0.0, True]
    assert (sample[3], listed.data["prompt"]) == ("cat, dog", "Say.")
    assert count_objects(comparison)[0].counts == [2, 0]


def test_a_benchmark_that_judges_no_single_answer_shows_them_all_the_same() -> None:
    from test_report_tables import Made, Scoring, run

    (sample, _) = list_samples(compare(Made(), "m", {"one": run(1, 0), "two": run(0, 0)}, Scoring())).data["samples"]
    assert sample[4] == [["1", None, None, [], "", [0]], ["0", None, None, [], "", [1]]]


CHOICE = {"pair": "1", "options": "(a) Open (b) Closed", "correct_answer": "(a)"}
ORDER = {"category": "x", "circle": "c", "image": "i", "question": "Q?\nA. a cat\nB. a dog", "correct_option": "A"}
ABSENT = {"split": "s", "image": "i", "question": "Q?", "label": "no"}
YES_NO = {"category": "VD", "subcategory": "chart", "set_id": "0", "figure_id": "1", "question_id": "0", "image": "a"}


@pytest.mark.parametrize(
    ("benchmark", "scoring", "fields", "right", "wrong", "truth"),
    [
        ("mme", None, {"category": "existence", "name": "1", "label": "yes"}, "Yes.", "No", "yes"),
        ("mmvp", ChoiceScoring(), CHOICE, "(a)", "(b)", "A"),
        ("crpe", ChoiceScoring(), ORDER, "A", "B", "A"),
        ("hallusion", None, {**YES_NO, "question": "Q?", "gt_answer": "1"}, "Yes", "No", "yes"),
        ("pope", PopeScoring(rules=("lmms",)), ABSENT, "No", "It is", "no"),
    ],
)
def test_every_benchmark_judges_single_answers(
    benchmark: str, scoring: Any, fields: dict[str, Any], right: str, wrong: str, truth: str
) -> None:
    records = {"good": {**fields, "answer": right}, "bad": {**fields, "answer": wrong}}
    found = find_benchmark(benchmark).judge(records, scoring, [])
    assert [(one.worth, one.truth) for one in found.values()] == [(1.0, truth), (0.0, truth)]


def test_amber_judges_its_questions_and_leaves_descriptions() -> None:
    from damro.eval.amber.benchmark import AmberScoring

    fields = {"image": "i", "question": "Q?", "kind": "discriminative-hallucination", "answer": "Yes"}
    records = {"1": {**fields, "label": "no"}, "2": {**fields, "kind": "generative"}}
    assert {key: one.worth for key, one in find_benchmark("amber").judge(records, AmberScoring(), []).items()} == {
        "1": 0.0
    }


def test_pictures_are_small_and_those_that_do_not_open_are_left_out() -> None:
    def open_image(name: str) -> Image.Image:
        if name == "gone":
            raise EvalError("no such image")
        return Image.new("RGBA", (640, 480), (0, 0, 255, 255))

    found = make_thumbnails(["a", "gone", "b"], open_image)
    assert list(found) == ["a", "b"]
    picture = Image.open(io.BytesIO(base64.b64decode(found["a"].partition(",")[2])))
    assert picture.size == (112, 84) and picture.convert("RGB").getpixel((50, 40))[2] > 200
    assert make_thumbnails(["a"], None) == {}
    whole = Image.new("RGB", (300, 300))
    to_thumbnail(whole)
    assert whole.size == (300, 300)


RUN: dict[str, Any] = {
    "created": "2026-01-02T03:04:05+00:00",
    "samples": 9,
    "machine": {"system": "Linux", "cores": "2"},
    "request": {"benchmark": "pope", "model": "org/model", "revision": "v1", "seed": 3, "data": {"split": ["a", "b"]}},
    "resolved": {
        "model": {"family": "llava", "parameters": 7_000_000, "dtype": "bfloat16", "fingerprint": "commit abc"},
        "method": {"parameters": {"alpha": 2.0, "top_k": 10}, "temperature": 1.0},
        "packages": {"torch": "2.13"},
    },
}


def test_facts_say_once_what_runs_agree_in() -> None:
    other = {
        **RUN,
        "created": "2026-01-02T05:00:00+00:00",
        "resolved": {**RUN["resolved"], "packages": {"torch": "2.14"}},
    }
    found = facts_of(pope(), Origin("damro run pope", {"damro": RUN, "vcd": other}))
    assert found["Command"] == ["damro run pope"]
    assert found["Runs begun"] == ["2026-01-02 03:04 to 2026-01-02 05:00 UTC"]
    assert found["Checkpoint"] == ["org/model, 7.0 M parameters, revision v1, llava, bfloat16, commit abc"]
    assert found["Protocol"] == ["pope, split a b, 9 samples, seed 3"]
    assert found["Methods"][0] == "damro: alpha 2, top_k 10, temperature 1"
    assert found["Machine"] == ["system Linux, cores 2"]
    assert found["Versions"] == ["torch 2.13", "torch 2.14"]
    assert facts_of(pope(), Origin()).keys() == {"Written", "Compared"}
