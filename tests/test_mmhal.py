"""eval/mmhal: ratings of MMHal-Bench, beside what its own scripts count."""

import json
from pathlib import Path
from typing import Any

import pytest
from judge_server import serve

from damro.cli import main
from damro.eval.benchmark import DataRequest, Group, score_run
from damro.eval.errors import AlignmentError, DataFormatError, EvalError
from damro.eval.judged.prompts import Prompt
from damro.eval.judged.replies import Judge, collect
from damro.eval.judged.scoring import JudgedScoring
from damro.eval.mmhal.benchmark import Mmhal, to_answer
from damro.eval.mmhal.command import load_answers
from damro.eval.mmhal.judging import OWN, ask_about
from damro.eval.mmhal.questions import TYPES, load_questions
from damro.eval.mmhal.scoring import ALL, parse_rating
from damro.eval.report.comparison import compare

# What Eval/eval_gpt_mmhal.py and Eval/summarize_gpt_mmhal.py of repository llava-rlhf/LLaVA-RLHF (commit 830a083) print
# for the answers and replies below, with a module `openai` that returns these replies; informativeness is that of
# eval/summarize_gpt_mmhal_review.py of repository RLHF-V/RLHF-V (commit 8daac8a) for the same file.
OFFICIAL = {"score": 2.73, "hallucination": 0.47, "informativeness": 0.3785}
OFFICIAL_BY_TYPE = (2.5, 2.58, 2.08, 2.75, 3.17, 2.75, 2.92, 3.08)
COUNT = 96


def made() -> list[dict[str, Any]]:
    return [
        {
            "question_type": TYPES[n % 8],
            "question_topic": "outdoor",
            "image_id": f"{n:016x}",
            "image_src": f"https://farm1.staticflickr.com/1/{n}_o.jpg",
            "image_content": ["Cat", f"Thing {n % 5}"],
            "question": f"What is {{{n % 90}}} in the image?",
            "gt_answer": f"It is a cat, number {n}.",
            "model_answer": f"I see {n % 7} cats.",
        }
        for n in range(COUNT)
    ]


def reply(n: int) -> str:
    """A judge's reply; some have no rating, some two, and some one that the scripts do not read."""
    grade = (n * 37 + n // 8 * 3 + 5) % 7
    kind = (n * 29 + 3) % 23
    if kind == 0:
        return "I cannot tell."
    if kind == 1:
        return f"Rating: {grade}, or rather Rating: {(grade + 1) % 7}"
    if kind == 2:
        return f"**Rating**: {grade}"
    return f"Analysis of {n}.\n\n{'RATING' if kind % 2 else '- Rating'}: {grade}, as asked"


def number_in(text: str) -> int:
    """Which question a judge is asked about."""
    return int(text.partition("It is a cat, number ")[2].partition(".")[0])


def completions() -> list[dict[str, Any]]:
    return [{"choices": [{"message": {"role": "assistant", "content": reply(n)}}]} for n in range(COUNT)]


def written(place: Path, content: Any) -> str:
    place.write_text(json.dumps(content))
    return str(place)


def check_official(found: dict[str, Any]) -> None:
    """As the scripts print: two digits, and four for informativeness in percent of two."""
    assert {name: round(found[ALL][name], 4 if name == "informativeness" else 2) for name in OFFICIAL} == OFFICIAL
    assert tuple(round(found[name]["score"], 2) for name in TYPES) == OFFICIAL_BY_TYPE
    unparsed = [n for n in range(COUNT) if (n * 29 + 3) % 23 <= 2]
    assert found[ALL]["unparsed"] == len(unparsed) > 5
    low, high = found[ALL]["ci"]["score"]
    assert low < found[ALL]["score"] < high


def test_the_official_numbers_of_the_official_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers, said = written(tmp_path / "a.json", made()), written(tmp_path / "e.json", completions())
    assert main(["score", "mmhal", "--answers", answers, "--judgements", said, "--json"]) == 0
    check_official(json.loads(capsys.readouterr().out))
    reviewed = [{**one, "gpt4_review": reply(n)} for n, one in enumerate(made())]
    assert main(["score", "mmhal", "--answers", written(tmp_path / "r.json", reviewed), "--json"]) == 0
    check_official(json.loads(capsys.readouterr().out))
    rows = [
        {"question_id": n, "prompt": one["question"], "text": f"Assistant: {one['model_answer']}"}
        for n, one in enumerate(made())
    ]
    lines = tmp_path / "l.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["score", "mmhal", "--answers", str(lines), "--questions", answers, "--judgements", said]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "2.73 [" in shown
    assert "WARNING: unparsed: replies without one rating, and counted as 0" in shown
    assert load_answers([str(lines)], answers)[0] == load_answers([answers], None)[0]


def test_a_judge_is_asked_once_and_scores_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openai")
    answers, said = written(tmp_path / "a.json", made()), str(tmp_path / "j.jsonl")
    prompt = tmp_path / "script.py"
    prompt.write_text("template = '''Contents {}\nQ {}\nGold {}\nAnswer {}'''\n")
    words = ["score", "mmhal", "--answers", answers, "--judgements", said, "--json"]
    with serve(lambda text: reply(number_in(text))) as (endpoint, seen):
        asking = [*words, "--judge", "m", "--endpoint", endpoint, "--judge-prompt", str(prompt)]
        assert main(asking) == 0
        assert len(seen) == COUNT
        assert main(asking) == 0
        assert len(seen) == COUNT
    first = seen[9]
    assert first["messages"][0]["content"][0]["text"] == (
        "Contents Cat, Thing 4\nQ What is {9} in the image?\nGold It is a cat, number 9.\nAnswer I see 2 cats."
    )
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("m", 0, 1024)
    capsys.readouterr()
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    check_official(found)
    assert (found[ALL]["judge"], found[ALL]["prompt"][:9]) == ("m", "script.py")


def test_secrets_stand_in_no_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hidden")
    words = ["score", "mmhal", "--answers", written(tmp_path / "a.json", made()), "--judge", "m"]
    said = tmp_path / "j.jsonl"
    words += ["--judgements", str(said), "--endpoint", "http://user:secret@127.0.0.1:1/v1", "--timeout", "20"]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert "--endpoint http://***@127.0.0.1:1/v1 must answer" in told
    assert "secret" not in told + said.read_text()
    assert "hidden" not in told + said.read_text()


def run_records(folder: Path, said: str = "") -> dict[str, dict[str, Any]]:
    written(folder / "response_template.json", made())
    dataset = Mmhal().load(DataRequest(images=folder))
    assert (dataset.samples[1].image, dataset.samples[1].prompt) == ("1_o.jpg", "What is {1} in the image?")
    return {
        one.sample_id: {**one.fields, "image": one.image, "answer": said + answer["model_answer"], "seconds": 1.0}
        for one, answer in zip(dataset.samples, made(), strict=True)
    }


def judged(records: dict[str, dict[str, Any]], path: Path, shift: int = 0) -> str:
    answers = [to_answer(fields, "", key) for key, fields in records.items()]

    def ask(text: str, image: bytes | None) -> str:
        return reply((number_in(text) + shift) % COUNT)

    collect(ask_about(answers, OWN), path, ask, Judge("m", OWN.name))
    return str(path)


def scores_of(groups: list[Group]) -> dict[str, Any]:
    return {group.name: group.to_dict() for group in groups}


def test_a_run_scores_the_same(tmp_path: Path) -> None:
    records = run_records(tmp_path)
    (group,) = score_run(Mmhal(), records, JudgedScoring())
    assert group.scores == {"words": 4.0, "n": COUNT}
    assert [note.name for note in group.notes if note.doubtful] == ["not judged"]
    said = judged(records, tmp_path / "j.jsonl")
    groups = score_run(Mmhal(), records, JudgedScoring(judgements=(said,)))
    check_official(scores_of(groups))
    assert [note.value for note in groups[-1].notes if note.name == "prompt" and note.doubtful] == [OWN.name]
    official = written(tmp_path / "e.json", completions())
    check_official(scores_of(score_run(Mmhal(), records, JudgedScoring(judgements=(official,)))))
    with pytest.raises(EvalError, match="lacks 96 of 96"):
        score_run(Mmhal(), run_records(tmp_path, "Well. "), JudgedScoring(judgements=(said,)))


def test_two_runs_are_compared_by_their_own_judgements(tmp_path: Path) -> None:
    one, two = run_records(tmp_path), run_records(tmp_path, "Well. ")
    files = judged(one, tmp_path / "one.jsonl"), judged(two, tmp_path / "two.jsonl", shift=8)
    found = compare(Mmhal(), "m", {"one": one, "two": two}, JudgedScoring(judgements=files)).to_dict()["methods"]
    for name, of in (("one", 0), ("two", 8)):
        rated = [parse_rating(reply((n + of) % COUNT)) or 0 for n in range(COUNT)]
        assert found[name]["scores"][ALL]["score"] == pytest.approx(sum(rated) / COUNT)
    official = written(tmp_path / "e.json", completions())
    with pytest.raises(EvalError, match="their order alone"):
        compare(Mmhal(), "m", {"one": one, "two": two}, JudgedScoring(judgements=(official,)))


def test_what_the_judge_did_not_rate_is_left_out_and_told(tmp_path: Path) -> None:
    records = dict(list(run_records(tmp_path).items())[:16])
    path = tmp_path / "j.jsonl"
    judged(records, path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    del lines[3]["reply"]
    lines[3]["error"] = "no reply"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    groups = score_run(Mmhal(), records, JudgedScoring(judgements=(str(path),)))
    rated = [parse_rating(reply(n)) or 0 for n in range(16) if n != 3]
    assert groups[-1].scores["score"] == sum(rated) / 15
    assert (groups[-1].scores["n"], groups[-1].scores["failed"]) == (15, 1)
    assert [note.value for note in groups[-1].notes if note.name == "not judged" and note.doubtful] == [1]
    for line in lines:
        line.pop("reply", None)
        line["error"] = "no reply"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(EvalError, match="at least one that was judged, got none; the first failed with: no reply"):
        score_run(Mmhal(), records, JudgedScoring(judgements=(str(path),)))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"question_type": "colour"}, "question_type must be one of attribute"),
        ({"image_content": "Cat"}, "image_content must be a list"),
        ({"gt_answer": None}, "'gt_answer' as texts"),
        ({"model_answer": 3}, "'model_answer' or 'answer', got 3"),
    ],
)
def test_malformed_answers(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match=rf"record 2: .*{told}"):
        load_answers([written(tmp_path / "a.json", [made()[0], {**made()[1], **change}])], None)


def test_files_that_do_not_belong_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = written(tmp_path / "a.json", made())
    short = written(tmp_path / "e.json", completions()[:95])
    for words, told in (
        (["--answers", answers], "must be judged to be scored"),
        (["--answers", answers, "--judgements", short], "got 95 for 96 answers"),
        (["--answers", answers, "--judgements", answers], "must be a chat completion"),
        (["--answers", answers, answers], "a further one for question 1"),
        (["--answers", written(tmp_path / "t.json", [{**made()[0], "model_answer": ""}])], "at least one text"),
        (["--answers", written(tmp_path / "o.json", [{"id": 1, "answer": "x"}])], "must have 'gt_answer'"),
    ):
        assert main(["score", "mmhal", *words]) == 2
        assert told in capsys.readouterr().err
    row = {"question_id": 1, "prompt": "Else?", "text": "A cat."}
    with pytest.raises(EvalError, match="needs --questions"):
        load_answers([written(tmp_path / "l.json", [row])], None)
    with pytest.raises(AlignmentError, match="must be the place of its question"):
        load_answers([written(tmp_path / "l.json", [row])], answers)
    failed = written(tmp_path / "f.json", [made()[0], {"id": "2", "error": "no such file"}])
    found, notes = load_answers([failed], None)
    assert (len(found), [note.value for note in notes]) == (1, [1])


def test_what_a_run_needs(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match=r"needs its images.*give --images"):
        Mmhal().load(DataRequest())
    with pytest.raises(EvalError, match=r"needs response_template.json, found none"):
        Mmhal().load(DataRequest(images=tmp_path))
    with pytest.raises(DataFormatError, match="image_src must be the image's address"):
        load_questions(written(tmp_path / "q.json", [{**made()[0], "image_src": ""}]))


def test_the_judge_reads_answers_as_they_are() -> None:
    answer = to_answer({**made()[0], "model_answer": "A set {} and {0}."}, "", "1")
    (asked,) = ask_about([answer], Prompt("{}|{}|{}|{}", ""))
    assert asked.text == "Cat, Thing 0|What is {0} in the image?|It is a cat, number 0.|A set {} and {0}."
