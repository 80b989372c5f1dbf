"""eval/judged: replies of a judge are recorded, found again, and never asked for twice; prompts come from scripts."""

import argparse
import hashlib
import json
from pathlib import Path

import pytest

from damro.eval.errors import DataFormatError, EvalError
from damro.eval.judged.command import add_judge_flags, check_judge_flags
from damro.eval.judged.prompts import OFFICIAL, Prompt, note_of, own_prompt, read_prompt
from damro.eval.judged.replies import Asked, Judge, JudgeReplyError, collect, key_of, read_judgements

JUDGE = Judge("a", "p")
ASKED = [Asked(str(n), f"key {n}", f"text {n}") for n in range(4)]


class Asking:
    """A judge that repeats the text, but has no words for some, and is unplugged at others."""

    def __init__(self, silent: str = "", ends: str = "") -> None:
        self.silent, self.ends = silent, ends
        self.asked: list[str] = []

    def __call__(self, text: str, image: bytes | None) -> str:
        assert image is None
        self.asked.append(text)
        if text == self.ends:
            raise EvalError("unplugged")
        if text == self.silent:
            raise JudgeReplyError("nothing came")
        return f"said {text}"


def test_what_is_recorded_is_not_asked_for_again(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    first = Asking(ends="text 2")
    with pytest.raises(EvalError, match="unplugged"):
        collect(ASKED, path, first, JUDGE)
    path.write_text(path.read_text() + '{"id": "2", "key": "ke')  # as a killed process leaves it
    second = Asking()
    found = collect(ASKED, path, second, JUDGE)
    assert (first.asked, second.asked) == (["text 0", "text 1", "text 2"], ["text 2", "text 3"])
    assert {key: one.reply for key, one in found.by_key.items()} == {f"key {n}": f"said text {n}" for n in range(4)}
    assert read_judgements([path]).by_key == found.by_key
    assert read_judgements([path]).judge == JUDGE
    third = Asking()
    told: list[tuple[int, int]] = []
    collect([*ASKED, ASKED[0]._replace(sample_id="again")], path, third, JUDGE, progress=lambda *at: told.append(at))
    assert third.asked == []
    assert told == [(n, 4) for n in range(1, 5)]


def test_replies_of_no_use_are_failures_until_they_are_asked_for_again(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"

    def no_three(reply: str) -> None:
        if "3" in reply:
            raise JudgeReplyError(f"odd: {reply}")

    asking = Asking(silent="text 1")
    found = collect(ASKED, path, asking, JUDGE, check=no_three).by_key
    assert [found[f"key {n}"].reply for n in range(4)] == ["said text 0", None, "said text 2", None]
    assert found["key 1"].failure == "no reply of use in 3, the last: nothing came"
    assert found["key 3"].failure == "no reply of use in 3, the last: odd: said text 3"
    assert asking.asked == ["text 0", *["text 1"] * 3, "text 2", *["text 3"] * 3]
    assert collect(ASKED, path, Asking(ends="text 1"), JUDGE).by_key == found
    assert collect(ASKED, path, Asking(), JUDGE, retry_failed=True).by_key["key 1"].reply == "said text 1"
    assert read_judgements([path]).by_key["key 3"].reply == "said text 3"


def test_files_of_other_judges_are_refused(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    collect(ASKED[:2], one, Asking(), JUDGE)
    for other in (Judge("b", "p"), Judge("a", "q")):
        with pytest.raises(EvalError, match=rf"judge '{other.name}' with prompt '{other.prompt}'.*of 'a' with"):
            collect(ASKED, one, Asking(), other)
        two.unlink(missing_ok=True)
        collect(ASKED[2:], two, Asking(), other)
        with pytest.raises(EvalError, match="of one judge and one prompt"):
            read_judgements([one, two])
    two.unlink()
    collect(ASKED[2:], two, Asking(), JUDGE)
    both = read_judgements([one, two])
    assert list(both.find({"x": "key 3", "y": "key 0"})) == ["x", "y"]
    with pytest.raises(EvalError, match=r"lacks 1 of 2 \(y\): have them judged"):
        both.find({"x": "key 3", "y": "key 9"})


def test_malformed_judgements(tmp_path: Path) -> None:
    whole = {"id": "1", "key": "k", "judge": "a", "prompt": "p", "reply": "r"}
    for change in ({"key": 1}, {"judge": None}, {"reply": None}, {"error": "e"}):
        (tmp_path / "j.jsonl").write_text(json.dumps({**whole, **change}) + "\n")
        with pytest.raises(DataFormatError, match=r"j.jsonl, line 1: a judgement must have"):
            read_judgements([tmp_path / "j.jsonl"])
    with pytest.raises(DataFormatError, match="cannot be read"):
        read_judgements([tmp_path / "none.jsonl"])


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"

    def meddle(text: str, image: bytes | None) -> str:
        with pytest.raises(EvalError, match="by one process at a time"):
            collect(ASKED, path, Asking(), JUDGE)
        return "r"

    assert collect(ASKED[:1], path, meddle, JUDGE).by_key["key 0"].reply == "r"


def test_keys_tell_what_is_judged() -> None:
    assert key_of("a", ("b", "c"), "d") == key_of("a", ["b", "c"], "d")
    assert len({key_of("a", "bc"), key_of("ab", "c"), key_of("a", "b", "c")}) == 3


def test_a_prompt_is_read_from_a_script_that_is_not_run(tmp_path: Path) -> None:
    text = "Question {q}\nAnswer {a} {{}}"
    script = tmp_path / "official.py"
    script.write_text(f"import nowhere\nother = 'no {{q}}'\ntemplate = {text!r}\n\nraise SystemExit(template)\n")
    digest = hashlib.sha256(text.encode()).hexdigest()
    found = read_prompt(script, "template", ("{q}", "{a}"), digest)
    assert found == Prompt(text, OFFICIAL)
    assert found.fill(("{q}", "{a} {q}?"), ("{a}", "{q}!")) == "Question {a} {q}?\nAnswer {q}! {{}}"
    assert not note_of(found.name).doubtful
    plain = tmp_path / "mine.txt"
    plain.write_text(text)
    other = read_prompt(plain, "template", ("{q}", "{a}"), "0" * 64)
    assert other == Prompt(text, f"mine.txt {digest[:8]}")
    assert note_of(other.name).doubtful
    assert own_prompt(text).name == f"damro's own {digest[:8]}"


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.py", "other = '{q} {a}'", "must set the variable 'template'"),
        ("a.py", "template = 3", "must set the variable 'template'"),
        ("a.py", "template = '{q}", "must be a Python script"),
        ("a.py", "template = '{q}'", "once each and in this order"),
        ("a.txt", "{a} {q}", "once each and in this order"),
        ("a.txt", "{q} {a} {q}", "once each and in this order"),
        ("a.txt", "{a} {q} {a}", "once each and in this order"),
    ],
)
def test_prompts_that_are_none(name: str, text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataFormatError, match=told):
        read_prompt(tmp_path / name, "template", ("{q}", "{a}"), "")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--judge a", "without --endpoint and --judgements"),
        ("--judge a --endpoint http://h/v1", "without --judgements"),
        ("--endpoint http://h/v1", "--endpoint must come with --judge"),
        ("--judge-prompt p.py --judgements j", "--judge-prompt must come with --judge"),
        ("--retry-failed", "--retry-failed must come with --judge"),
    ],
)
def test_options_that_lack_each_other(words: str, told: str) -> None:
    parser = argparse.ArgumentParser()
    add_judge_flags(parser, "official.py")
    with pytest.raises(EvalError, match=told):
        check_judge_flags(parser.parse_args(words.split()))
    check_judge_flags(parser.parse_args(["--judgements", "j"]))
