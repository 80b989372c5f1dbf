"""damro completion: the script that a shell reads, and what it completes."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from run_cli import code_of

from damro.cli import main

ASK = """
source /dev/stdin
COMP_WORDS=({words}); COMP_CWORD={place}
_shtab_damro
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)  # which makes an import fail
    assert main(["completion", "bash"]) == 2
    assert "pip install 'damro[completion]'" in capsys.readouterr().err
    assert code_of(["completion", "fish"]) == 2
    assert "must be one of bash, zsh, tcsh, got 'fish'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["swe"], ["sweep"]),
        (["run", "pope", "--quant"], ["--quantization"]),
        (["run", "pope", "--quantization", ""], ["4bit", "8bit"]),
    ],
)
def test_bash_completes(words: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab", reason="needs damro[completion]")
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    line = " ".join(["damro", *(word or "''" for word in words)])
    told = subprocess.run(
        [bash, "-c", ASK.format(words=line, place=len(words))], input=script, capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == expected
