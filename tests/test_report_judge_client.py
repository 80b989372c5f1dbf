"""eval/report/judge_client.py against a server on loopback that replies in every odd way."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from run_cli import main

from damro.eval.errors import EvalError
from damro.eval.report.judge import JUDGEMENTS, judge_runs
from damro.eval.report.judge_client import MAX_REPLY, mask_endpoint, openai_judge
from damro.eval.runs.sharding import BusyRunError, lock_folder
from tests.test_report_judge import PINNED, biased, records

pytest.importorskip("openai")

GRADES = "Accuracy: A=4 B=8\nDetailedness: A=5 B=5"


def completion(content: Any, end: str = "stop") -> bytes:
    message = {"role": "assistant", "content": content}
    choices = [{"index": 0, "finish_reason": end, "message": message}]
    return json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": choices}).encode()


class Server(BaseHTTPRequestHandler):
    """Grades, but replies to what names "ab 1" with `odd`: its status and body, and how it is sent."""

    odd: tuple[int, bytes, str] = (200, b"", "")
    seen: list[dict[str, Any]] = []
    leave = threading.Event()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append({"login": self.headers["Authorization"], "body": body.decode()})
        status, reply, manner = self.odd if "ab 1" in body.decode() else (200, completion(GRADES), "")
        if manner == "echo":
            reply = completion(f"You are {self.headers['Authorization']}. {reply.decode()}")
        if manner == "silent":
            self.leave.wait(30)
            return
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if reply.startswith(b"<") else "application/json")
        self.send_header("retry-after-ms", "1")
        if manner == "cut":
            self.send_header("Content-Length", str(len(reply) + 10))
        self.end_headers()
        self.wfile.write(reply)
        while manner == "drip" and not self.leave.wait(0.05):
            self.wfile.write(b" ")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


class Quiet(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Visitors that left are no news."""


@pytest.fixture
def address() -> Iterator[str]:
    Server.seen.clear()
    Server.leave.clear()
    with Quiet(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}/v1"
        Server.leave.set()
        server.shutdown()


ODD = {
    "html": (200, b"<html><body>Bad gateway</body></html>", "", "holds a text, got '<html>"),
    "null": (200, b"null", "", "holds a text, got 'null'"),
    "list": (200, b"[]", "", "holds a text, got '\\[\\]'"),
    "object": (200, b"{}", "", "holds a text"),
    "empty": (200, b"", "", "holds a text, got ''"),
    "half": (200, completion(GRADES)[:-30], "", "holds a text"),
    "cut": (200, completion(GRADES), "cut", "must be whole, was cut"),
    "no choice": (200, b'{"choices": []}', "", "holds a text"),
    "null choice": (200, b'{"choices": [null]}', "", "holds a text"),
    "null text": (200, completion(None), "", "holds a text"),
    "empty text": (200, completion(" \n"), "", "holds a text"),
    "number": (200, completion(7), "", "holds a text"),
    "latin": (200, b'{"choices": "\xe9"}', "", "holds a text"),
    "deep": (200, b"[" * 100_000, "", "holds a text"),
    "long": (200, b" " * (MAX_REPLY + 1), "", f"at most {MAX_REPLY} bytes"),
    "cut grade": (200, completion(GRADES[:-1] + "1", "length"), "", "was cut after 64 tokens"),
    "words": (200, completion("Both are fine."), "", "must grade accuracy"),
    "endless text": (200, completion("Accuracy: A=" + "." * 500_000), "", "must grade accuracy"),
}


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_reply_is_the_failure_of_its_pair(kind: str, address: str, tmp_path: Path) -> None:
    *Server.odd, told = ODD[kind]  # type: ignore[misc]
    ask = openai_judge(f"http://{address}", "m", None)
    verdict = judge_runs(records("ab"), records("abcd"), tmp_path, ask, PINNED)
    assert verdict.judged == 3 and list(verdict.failed) == ["1"]
    assert len(Server.seen) == 6 + 2 * 3
    with pytest.raises(EvalError, match=told):
        raise EvalError(verdict.failed["1"])
    assert len(verdict.failed["1"]) < 400 and "\n" not in verdict.failed["1"]
    assert (tmp_path / JUDGEMENTS).stat().st_size < 10_000


def test_failures_are_asked_for_again_when_told(address: str, tmp_path: Path) -> None:
    Server.odd = (200, b"null", "")
    ask = openai_judge(f"http://{address}", "m", None)
    judge_runs(records("ab"), records("abcd"), tmp_path, ask, PINNED, limit=2)
    Server.odd = (200, completion(GRADES), "")
    Server.seen.clear()
    assert judge_runs(records("ab"), records("abcd"), tmp_path, ask, PINNED, limit=2).judged == 1
    assert not Server.seen
    assert judge_runs(records("ab"), records("abcd"), tmp_path, ask, PINNED, limit=2, retry_failed=True).judged == 2
    assert len(Server.seen) == 2 and all("ab 1" in one["body"] for one in Server.seen)
    Server.seen.clear()
    assert judge_runs(records("ab"), records("abcd"), tmp_path, ask, PINNED).judged == 4
    assert len(Server.seen) == 4 and not any("ab 1" in one["body"] for one in Server.seen)


def test_one_at_a_time_judges_in_a_folder(tmp_path: Path) -> None:
    with lock_folder(tmp_path), pytest.raises(BusyRunError, match="one run at a time"):
        judge_runs(records("ab"), records("abcd"), tmp_path, biased, PINNED)
    assert not (tmp_path / JUDGEMENTS).exists()
    assert judge_runs(records("ab"), records("abcd"), tmp_path, biased, PINNED).judged == 4


@pytest.mark.parametrize("manner", ["silent", "drip"])
def test_a_server_that_does_not_finish_is_told(manner: str, address: str, tmp_path: Path) -> None:
    Server.odd = (200, b"{", manner)
    ask = openai_judge(f"http://{address}", "m", None, timeout=0.5)
    begun = time.monotonic()
    with pytest.raises(EvalError, match="must answer within 0.5 s, did not: .* --timeout more seconds"):
        judge_runs(records("ab"), records("abcd"), tmp_path, ask, PINNED)
    assert time.monotonic() - begun < 15  # the server waits 30
    assert len((tmp_path / JUDGEMENTS).read_text().splitlines()) == 2  # pair 0 is not lost


@pytest.mark.parametrize("status", [401, 404, 500])
def test_a_refusal_ends_the_judging_in_one_sentence(status: int, address: str, tmp_path: Path) -> None:
    for body, told in ((b"<html>\n\x1b[31m" + b"no " * 9999, "<html>"), (b" " * (MAX_REPLY + 9), "at most")):
        Server.odd = (status, body, "")
        with pytest.raises(EvalError, match=told) as caught:
            openai_judge(f"http://{address}", "m", None)("ab 1", None)
        assert len(str(caught.value)) < 500 and str(caught.value).isprintable()


def test_nobody_there() -> None:
    with pytest.raises(EvalError, match=r"--endpoint http://127.0.0.1:1/v1 must answer, failed: .*refused"):
        openai_judge("http://127.0.0.1:1/v1", "m", None)("text", None)


@pytest.mark.parametrize("wrong", ["host:8000/v1", "ftp://host", "http://", "http://u:secret@h:port", "http://[:", ""])
def test_an_endpoint_that_is_none_is_told(wrong: str) -> None:
    with pytest.raises(EvalError, match="--endpoint must be an address such as") as caught:
        mask_endpoint(wrong)
    assert "secret" not in str(caught.value)


def test_settings_that_are_none_are_told() -> None:
    for timeout in (0, -1, float("nan"), float("inf")):
        with pytest.raises(EvalError, match="--timeout must be a number of seconds above 0"):
            openai_judge("http://h/v1", "m", None, timeout=timeout)
    with pytest.raises(EvalError, match="printable ASCII") as caught:
        openai_judge("http://h/v1", "m", "k\u00e9y")
    assert "k\u00e9y" not in str(caught.value)


def test_half_a_surrogate_pair_is_sent(address: str) -> None:
    assert openai_judge(f"http://{address}", "m", None)("\ud83d cut", None) == GRADES
    assert "? cut" in Server.seen[0]["body"]


@pytest.mark.parametrize("user", ["", "user:p%40ss@", "token-9@"])
@pytest.mark.parametrize("status", [200, 401])
def test_key_and_password_stand_nowhere(
    user: str, status: int, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    for name, text in (("one", "ab"), ("two", "abcd")):
        (tmp_path / name).mkdir()
        method = {"name": name, "method": "greedy", "temperature": 0.0, "parameters": {}}
        run = {
            "format": 2,
            "request": {"benchmark": "chair", "model": "m"},
            "resolved": {"method": method, "data": {}},
        }
        (tmp_path / name / "run.json").write_text(json.dumps(run))
        lines = [json.dumps({"id": key, **fields}) for key, fields in records(text, 2).items()]
        (tmp_path / name / "records.jsonl").write_text("\n".join(lines) + "\n")
    sent = {"": "Bearer sk-secret", "token-9@": "Basic " + base64.b64encode(b"token-9:").decode()}
    login = sent.get(user, "Basic " + base64.b64encode(b"user:p@ss").decode())
    secrets = ["sk-secret", "p%40ss", "p@ss", "token-9", login.split()[1]]
    Server.odd = (status, f"{' '.join(secrets)}\n{GRADES}".encode(), "echo")
    arguments = [str(tmp_path / "one"), str(tmp_path / "two"), "--endpoint", f"http://{user}{address}", "--no-images"]
    folder = tmp_path / "one/judge-two"
    assert main(["judge", *arguments, "--model", "m"]) == (0 if status == 200 else 2)
    assert {one["login"] for one in Server.seen} == {login}
    told = capsys.readouterr()
    written = "".join(path.read_text() for path in folder.iterdir()) + told.out + told.err
    hidden = secrets[:1] + {"": [], "token-9@": ["token-9", login.split()[1]]}.get(user, secrets[1:3] + secrets[4:])
    assert not [one for one in hidden if one in written] and "***" in written
    # A folder that holds the password, and another judge: the difference is told without it.
    run = json.loads((folder / "run.json").read_text())
    run["request"].update(endpoint=f"http://{user}{address}", judge="other")
    (folder / "run.json").write_text(json.dumps(run))
    assert main(["judge", *arguments, "--model", "m"]) == 2
    told = capsys.readouterr()
    assert "request.judge" in told.err and not [one for one in hidden if one in told.err]
