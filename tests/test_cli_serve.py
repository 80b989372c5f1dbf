from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from functools import partial

import pytest

from damro.cli import main, serve
from damro.vision.dinov2_small import MissingExtraError


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    serve.add_parser(parser.add_subparsers())
    return parser.parse_args(["serve", *arguments])


def test_it_listens_on_this_machine_alone_unless_told_otherwise() -> None:
    args = parse()
    assert (args.host, args.port, args.model, args.method) == ("127.0.0.1", 8000, "tiny", "damro")
    assert parse("--host", "0.0.0.0").host == "0.0.0.0"


@pytest.mark.parametrize("missing", ["uvicorn", "starlette.applications"])
def test_without_the_extra_it_is_named_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    monkeypatch.delitem(sys.modules, "damro.serve.app", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'damro\[serve\]'"):
        serve.run(parse("--model", "absent"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "0"], "--port must be from 1 to 65535, got 0"),
        (["--method", "damra"], "method must be one of"),
        (["--noise-step", "3"], "--noise-step must come with vcd, got '3' with damro"),
        (["--max-body", "0"], "--max-body must be a whole number of at least 1, got '0'"),
    ],
)
def test_what_is_wrong_is_told_before_a_model_is_loaded(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = main(["serve", "--model", "absent", *arguments])
    except SystemExit as left:
        code = left.code
    assert code == 2 and message in capsys.readouterr().err


def test_an_empty_key_is_no_key(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DAMRO_API_KEY", " ")
    assert main(["serve", "--model", "absent"]) == 2
    assert "DAMRO_API_KEY must be a key, got an empty one" in capsys.readouterr().err


def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["serve", "--model", "absent", "--port", port]) == 2
    assert f"--host and --port must be free, got 127.0.0.1 and {port}: Address already" in capsys.readouterr().err


@pytest.mark.slow
def test_it_serves_until_it_is_interrupted() -> None:
    pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    command = [sys.executable, "-m", "damro", "serve", "--port", port, "--method", "vcd", "--noise-step", "700"]
    served = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a background shell hands down SIG_IGN
    )
    assert served.stdout is not None
    line = served.stdout.readline()
    assert line == f"tiny with vcd:noise_step=700 at http://127.0.0.1:{port}/v1 (Ctrl-C stops it)\n"
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=60) as answer:  # what is printed is true
        assert answer.status == 200
    served.send_signal(signal.SIGINT)
    _, told = served.communicate(timeout=60)
    assert served.returncode == 130 and told == "damro: stopped\n"
