from __future__ import annotations

import argparse
import socket
import sys
from pathlib import Path

import pytest
from golden_models import save_golden
from gradio_server import collected_leftovers

from damro.cli import app
from damro.errors import ParameterError
from damro.vision.dinov2_small import MissingExtraError


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    app.add_parser(parser.add_subparsers())
    return parser.parse_args(["app", *arguments])


def test_it_listens_on_this_machine_alone_unless_told_otherwise() -> None:
    args = parse()
    assert (args.host, args.port, args.model) == ("127.0.0.1", 7860, "tiny")
    assert parse("--host", "0.0.0.0", "--port", "80").host == "0.0.0.0"


def test_without_gradio_the_extra_is_named_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "damro.pages.app", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'damro\[app\]'"):
        app.run(parse("--model", "absent"))


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed")
    folder = save_golden("llava", tmp_path)
    with collected_leftovers(), socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ParameterError, match=f"--port must be free on 127.0.0.1, got {port}"):
            app.run(parse("--model", str(folder), "--port", str(port)))
