import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from run_cli import call

from damro.eval.errors import EvalError
from damro.eval.judged.replies import JudgeReplyError
from damro.eval.report.judge import JUDGEMENTS, judge_runs, parse_grades
from damro.eval.runs.identity import ForeignRecordError
from damro.eval.runs.record import RunMismatchError

PINNED = {"format": 1, "request": {"judge": "a"}, "resolved": {}}


def records(text: str, count: int = 4) -> dict[str, dict[str, Any]]:
    return {str(n): {"image": f"{n}.png", "prompt": "Describe {first}.", "answer": f"{text} {n}"} for n in range(count)}


def biased(text: str, image: bytes | None) -> str:
    """A judge that likes long answers, and adds two for standing in front."""
    first, second = (part.split("\n")[1] for part in text.split(" answered:")[1:])
    return f"Accuracy: A={min(10, len(first) + 2)} B={len(second)}\nDetailedness: A=3 B=1"


def grades_once(reply: str) -> Any:
    """The grades by the plain expression, which takes quadratic time on many full stops."""
    found = []
    for aspect in ("accuracy", "detailedness"):
        match = re.search(rf"{aspect}\W*A\s*[=:]\s*([\d.]+)\W+B\s*[=:]\s*([\d.]+)", reply, re.IGNORECASE)
        try:
            found.append((float(match[1].rstrip(".")), float(match[2].rstrip("."))) if match else None)
        except ValueError:
            return None
    whole = all(pair and all(1 <= grade <= 10 for grade in pair) for pair in found)
    return tuple(found) if whole else None


PIECES = st.sampled_from(["7", "1", "10", ".", "..", " ", "\n", "*", "A", "B", "=", ":", ",", "accuracy", "\u0663"])


@given(st.lists(PIECES, max_size=6).map("".join), st.lists(PIECES, max_size=6).map("".join))
def test_grades_are_found_where_they_were(gap: str, more: str) -> None:
    for reply in (
        f"Accuracy{gap}A={more}B=3 Detailedness: A=1 B=2",
        f"Accuracy: A=7{gap}B={more}9 detailedness A=1{more}B=2",
        f"accuracy A={gap}{more} accuracy: A=2 B=3 Detailedness A=.{more}B=2",
    ):
        try:
            grades = tuple(parse_grades(reply))
        except JudgeReplyError:
            grades = None
        assert grades == grades_once(reply)


@pytest.mark.parametrize("start", ["", "Accuracy", "Accuracy: A", "Accuracy: A=", "Accuracy: A=7", "Accuracy: A=7 B="])
@pytest.mark.parametrize("filling", ["\n", " ", ".", "7", "7.", "a word ", "accuracy ", "Accuracy: A=7 "])
def test_endless_replies_are_read(start: str, filling: str) -> None:
    with pytest.raises(JudgeReplyError):  # after hours if it were quadratic
        parse_grades(start + filling * 200_000)


@pytest.mark.parametrize(
    "reply",
    ["", "I cannot say.", "Accuracy: A=5 B=6", "Accuracy: A=11 B=5\nDetailedness: A=1 B=1", "Accuracy: A=0 B=1"],
)
def test_a_reply_without_grades_is_an_error(reply: str) -> None:
    with pytest.raises(JudgeReplyError, match=r"must grade (accuracy|detailedness)"):
        parse_grades(reply)


def test_the_place_of_an_answer_cancels_out(tmp_path: Path) -> None:
    verdict = judge_runs(records("ab"), records("abcd"), tmp_path, biased, PINNED)
    # Lengths 4 and 6 ("ab 0", "abcd 0"), each once two higher: means 5 and 7.
    assert verdict.judged == 4
    values = {name: getattr(verdict, name)["accuracy"].estimate for name in ("first", "second", "difference")}
    assert values == {"first": 5, "second": 7, "difference": 2}
    assert verdict.difference["detailedness"].estimate == 0  # type: ignore[union-attr]


def test_the_judge_reads_prompt_and_answers_as_they_are(tmp_path: Path) -> None:
    seen: list[str] = []

    def note(text: str, image: bytes | None) -> str:
        seen.append(text)
        return biased(text, image)

    judge_runs(records("{second}", 1), records("b", 1), tmp_path, note, PINNED)
    assert "this request: Describe {first}." in seen[0]
    assert "Assistant A answered:\n{second} 0\n" in seen[0]
    assert "Assistant A answered:\nb 0\n" in seen[1]


def test_judging_goes_on_where_it_stopped(tmp_path: Path) -> None:
    asked = []

    def breaks(text: str, image: bytes | None) -> str:
        asked.append(text)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return biased(text, image)

    with pytest.raises(KeyboardInterrupt):
        judge_runs(records("ab"), records("abcd"), tmp_path, breaks, PINNED)
    assert len((tmp_path / JUDGEMENTS).read_text().splitlines()) == 3
    verdict = judge_runs(records("ab"), records("abcd"), tmp_path, breaks, PINNED)
    assert len(asked) == 4 + 5
    assert verdict.judged == 4
    with pytest.raises(RunMismatchError, match=r'request.judge: "a" -> "b"'):
        judge_runs(records("ab"), records("abcd"), tmp_path, biased, {**PINNED, "request": {"judge": "b"}})


def test_what_cannot_be_graded_is_told_and_left_out(tmp_path: Path) -> None:
    calls = []

    def silent_on_one(text: str, image: bytes | None) -> str:
        calls.append(text)
        return "Both are fine." if "ab 1" in text else biased(text, image)

    verdict = judge_runs(records("ab"), records("abcd"), tmp_path, silent_on_one, PINNED)
    assert verdict.judged == 3
    assert list(verdict.failed) == ["1"]
    assert "no grades in 3 replies" in verdict.failed["1"]
    assert len(calls) == 6 + 2 * 3
    with pytest.raises(EvalError, match="in common"):
        judge_runs(records("a"), {"9": records("a")["1"]}, tmp_path / "none", biased, PINNED)


class Server(BaseHTTPRequestHandler):
    """An OpenAI-compatible server that fails once and notes what it is sent."""

    seen: list[dict[str, Any]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append({"path": self.path, "key": self.headers["Authorization"], **body})
        content = {"role": "assistant", "content": "Accuracy: A=4 B=8\nDetailedness: A=5 B=5"}
        choices = [{"index": 0, "finish_reason": "stop", "message": content}]
        reply = json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": choices})
        overloaded = len(self.seen) == 1
        self.send_response(503 if overloaded else 200)
        self.send_header("Content-Type", "application/json")
        if overloaded:
            self.send_header("retry-after-ms", "10")
        self.end_headers()
        self.wfile.write(b"{}" if overloaded else reply.encode())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    Server.seen.clear()
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def test_the_command_asks_a_server(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    (tmp_path / "images").mkdir()
    for number in range(2):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"images/{number}.png")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        request = {"benchmark": "chair", "model": "m", "images": str(tmp_path / "images")}
        run = {
            "format": 2,
            "request": request,
            "resolved": {
                "method": {"name": name, "method": "greedy", "temperature": 0.0, "parameters": {}},
                "data": {},
            },
        }
        (tmp_path / name / "run.json").write_text(json.dumps(run))
        lines = [json.dumps({"id": key, **fields}) for key, fields in records(name, 2).items()]
        (tmp_path / name / "records.jsonl").write_text("\n".join(lines) + "\n")
    arguments = [str(tmp_path / "one"), str(tmp_path / "two"), "--endpoint", endpoint, "--model", "grader", "--json"]
    assert call("judge", *arguments) == 0
    found = json.loads(capsys.readouterr().out)
    # The server always likes the second place by 4: it cancels out.
    assert found["judged"] == 2
    assert found["difference"]["accuracy"]["estimate"] == 0
    assert found["first"]["accuracy"]["estimate"] == 6
    assert len(Server.seen) == 1 + 4  # one was tried again
    sent = Server.seen[-1]
    assert (sent["path"], sent["key"], sent["model"]) == ("/v1/chat/completions", "Bearer secret-key", "grader")
    assert sent["messages"][0]["content"][1]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    written = "".join(path.read_text() for path in (tmp_path / "one/judge-two").iterdir())
    assert "secret-key" not in written
    assert call("judge", *arguments) == 0
    assert len(Server.seen) == 5  # nothing is asked twice


def test_judgements_of_other_answers_are_refused(tmp_path: Path) -> None:
    one, two = records("ab"), records("abcd")
    judge_runs(one, two, tmp_path, biased, PINNED)
    before = (tmp_path / JUDGEMENTS).read_bytes()
    changed = {key: {**fields, "answer": "other"} if key == "2" else fields for key, fields in two.items()}
    with pytest.raises(ForeignRecordError, match="judgement '2#first first' must be of the answers that the runs have"):
        judge_runs(one, changed, tmp_path, biased, PINNED)
    assert (tmp_path / JUDGEMENTS).read_bytes() == before
    older = [{k: v for k, v in json.loads(line).items() if k != "digest"} for line in before.splitlines()]
    (tmp_path / JUDGEMENTS).write_text("".join(json.dumps(fields) + "\n" for fields in older))
    assert judge_runs(one, changed, tmp_path, refuse, PINNED).judged == 4  # written before there were digests


def test_judgements_of_an_older_version_are_gone_on_with(tmp_path: Path) -> None:
    judge_runs(records("ab"), records("abcd"), tmp_path, biased, {**PINNED, "format": 2}, limit=2)
    assert judge_runs(records("ab"), records("abcd"), tmp_path, biased, {**PINNED, "format": 3}).judged == 4


def refuse(text: str, image: bytes | None) -> str:
    raise AssertionError("asked again")


def test_a_judgement_that_a_power_cut_left_as_nul_bytes_is_asked_for_again(tmp_path: Path) -> None:
    whole = judge_runs(records("ab"), records("abcd"), tmp_path, biased, PINNED)
    file = tmp_path / JUDGEMENTS
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-1]) + b"\0" * 300)
    assert judge_runs(records("ab"), records("abcd"), tmp_path, biased, PINNED) == whole
    assert file.read_bytes().splitlines(keepends=True) == lines
