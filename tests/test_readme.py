"""The README: its programs run and print what it says, its commands and links exist, its numbers are in the docs."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from damro import tiny
from damro._version import __version__
from damro.cli import build_parser
from damro.eval.benchmark import BENCHMARKS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
PROGRAMS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def printed(code: str) -> str:
    """What a program prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    return out.getvalue()


def test_the_first_program_prints_what_stands_below_it() -> None:
    [output] = re.findall(r"^```text\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert printed(PROGRAMS[0]) == output


def test_the_program_for_a_large_model_runs_on_a_small_one(tmp_path: Path) -> None:
    """The same lines, but for the model's name, its precision and the photo's place."""
    Image.new("RGB", (80, 60), "red").save(tmp_path / "photo.jpg")
    code = PROGRAMS[1]
    for large, small in (
        ("llava-hf/llava-1.5-7b-hf", str(tiny.path())),
        ("photo.jpg", str(tmp_path / "photo.jpg")),
        ("float16", "float32"),
        (', device_map="auto"', ""),
        ("max_new_tokens=256", "max_new_tokens=8"),
    ):
        assert large in code
        code = code.replace(large, small)
    assert printed(code).startswith("The image shows")


def test_commands_are_understood(capsys: pytest.CaptureFixture[str]) -> None:
    commands = [line for line in re.findall(r"`(damro [^`]+)`", TEXT)]
    assert len(commands) >= 8
    for line in commands:
        try:
            build_parser().parse_args(shlex.split(line)[1:])
        except SystemExit:
            pytest.fail(f"{line}: {capsys.readouterr().err}")


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in link]
    assert len(links) > 15
    titles = re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}
    for link in links:
        assert link[1:] in anchors if link.startswith("#") else (ROOT / link).exists(), link


def test_numbers_are_those_of_the_page_on_the_control() -> None:
    control = (ROOT / "docs/control.md").read_text()
    for number in re.findall(r"\d+\.\d(?= |\))", TEXT[TEXT.index("## What was found") : TEXT.index("## More")]):
        assert number in control or f"-{number}" in control, number


def test_benchmarks_are_named() -> None:
    [named] = re.findall(r"Benchmarks: ([^.]+)\.", " ".join(TEXT.split()))
    assert len(named.split(", ")) == len(BENCHMARKS)


def test_the_citation_is_of_this_version() -> None:
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
