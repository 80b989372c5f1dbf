from __future__ import annotations

import subprocess
import sys

import pytest

from damro import __version__
from damro.cli import build_parser, main


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"damro {__version__}\n"


def test_every_command_has_help_and_a_run_function() -> None:
    groups = [action for action in build_parser()._actions if hasattr(action, "choices") and action.choices]
    commands = {name: parser for group in groups for name, parser in group.choices.items()}
    assert {"score", "answer", "attention", "setup-nltk"} <= set(commands)
    for name, parser in commands.items():
        if name != "score":
            assert callable(parser.get_default("run")), name


def test_help_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys\n"
        "from damro.cli import build_parser\n"
        "build_parser().format_help()\n"
        "print(sorted({'torch', 'transformers', 'nltk', 'pycocotools', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_error_is_a_message_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "pope", "--split", "coco/popular", "--answers", "no-such-file.jsonl"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("damro: ") and "no-such-file.jsonl" in captured.err


def test_output_to_a_closed_pipe_is_quiet() -> None:
    answers = "tests/data/pope/answers_llava-v1.5-13b_adversarial.jsonl.gz"
    command = f"{sys.executable} -m damro.cli score pope --split coco/adversarial --answers {answers} | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
