"""A judge that replies in 35 ways: each pair gets its grades or a reason, and what was graded stays graded."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.faults.commands import Told, call, check_refused

pytest.importorskip("openai")

GRADES = "Accuracy: A=4 B=8\nDetailedness: A=5 B=5"


def completion(content: Any, **changes: Any) -> bytes:
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    whole = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    return json.dumps({**whole, **changes}).encode()


GOOD = completion(GRADES)
REPLIES: dict[str, tuple[int, bytes]] = {
    "html": (200, b"<html><body>Bad gateway</body></html>"),
    "html that is cut": (200, b"<html><bo"),
    "null": (200, b"null"),
    "true": (200, b"true"),
    "a number": (200, b"7"),
    "a text": (200, b'"fine"'),
    "a list": (200, b"[]"),
    "an empty object": (200, b"{}"),
    "nothing": (200, b""),
    "half": (200, GOOD[: len(GOOD) // 2]),
    "all but the end": (200, GOOD[:-1]),
    "two in a row": (200, GOOD + GOOD),
    "no choice": (200, completion("", choices=[])),
    "choices null": (200, completion("", choices=None)),
    "choices a text": (200, completion("", choices="A")),
    "a null choice": (200, completion("", choices=[None])),
    "no message": (200, completion("", choices=[{"index": 0}])),
    "a null message": (200, completion("", choices=[{"index": 0, "message": None}])),
    "a null text": (200, completion(None)),
    "an empty text": (200, completion("  \n")),
    "a text of numbers": (200, completion([1, 2])),
    "a text that is an object": (200, completion({"accuracy": 3})),
    "latin 1": (200, b'{"choices": "\xe9"}'),
    "UTF-16": (200, GOOD.decode().encode("utf-16")),
    "NUL bytes": (200, b"\0" * 1000),
    "deep brackets": (200, b"[" * 100_000),
    "ten megabytes": (200, b" " * 10_000_000),
    "no grades": (200, completion("Both are fine.")),
    "grades out of range": (200, completion("Accuracy: A=400 B=-8\nDetailedness: A=5 B=5")),
    "half of the grades": (200, completion("Accuracy: A=4 B=8")),
    "grades with a lone surrogate": (200, completion("\ud800 nothing")),
    "an error as JSON": (400, b'{"error": {"message": "no such thing"}}'),
    "an error as HTML": (500, b"<html>oops</html>"),
    "too many requests": (429, b"{}"),
    "a redirect to nowhere": (302, b""),
}
NAMES = ("greedy", "no-image")
GRADED = ("UTF-16",)
"""Replies that hold grades all the same."""
FAULTS = len(REPLIES)
"""Replies that the test gives; each is given for one of two pairs."""


class Server(BaseHTTPRequestHandler):
    """Grades, but replies to what asks about the first answer with `odd`."""

    odd: tuple[int, bytes] = (200, b"")
    asked = 0

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        Server.asked += 1
        status, reply = self.odd if "first answer" in body else (200, GOOD)
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if reply.startswith(b"<") else "application/json")
        self.send_header("retry-after-ms", "1")
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


class Quiet(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Visitors that left are no news."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with Quiet(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


@pytest.fixture(scope="module")
def runs(two_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs whose first answers are words that the server knows."""
    folder = tmp_path_factory.mktemp("judged")
    for name in NAMES:
        shutil.copytree(two_runs / name, folder / name)
        file = folder / name / "records.jsonl"
        first, *others = file.read_text().splitlines()
        file.write_text("\n".join([json.dumps(json.loads(first) | {"answer": "first answer"}), *others]) + "\n")
    return folder


def judge(runs: Path, address: str, out: Path, *more: str) -> Told:
    words = ["judge", *(runs / name for name in NAMES), "--endpoint", address, "--model", "m", "--no-images"]
    return call([*words, "--out", out, "--limit", "2", "--json", *more])


@pytest.mark.parametrize("kind", REPLIES)
def test_an_odd_reply_is_told_and_costs_no_grade(kind: str, runs: Path, address: str, tmp_path: Path) -> None:
    Server.odd = REPLIES[kind]
    told = judge(runs, address, tmp_path / "out")
    assert "Traceback" not in told.err
    if told.code:  # the server is told to be of no use
        check_refused(told, kind)
    else:
        scores = json.loads(told.out)
        assert scores["judged"] + scores["failed"] == 2 and scores["judged"] >= 1, scores
        assert (scores["judged"] == 2) == (kind in GRADED), scores
    Server.odd, Server.asked = (200, GOOD), 0
    again = json.loads(judge(runs, address, tmp_path / "out", "--retry-failed").out)
    assert (again["judged"], again["failed"]) == (2, 0)
    assert again["first"]["accuracy"]["estimate"] == 6.0  # (4 + 8) / 2: each pair is asked in both orders
    assert told.code or Server.asked == (0 if kind in GRADED else 2)  # and what has its grades is not asked for again
