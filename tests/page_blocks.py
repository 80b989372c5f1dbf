"""The code blocks of Markdown pages: found, run from top to bottom, what they print compared with what stands there.

- A block of Python is run in the names that the blocks before it left. A ``text`` block right behind it is its output.
- A ``console`` block holds commands, each behind ``$ ``, and below each what it prints on stdout.
- ``...`` in an output stands for anything, as in doctests.
- Any other block is marked by a line right in front of it, which no reader sees: ``<!-- not run: the reason -->``.

``python tests/page_blocks.py PAGE ...`` runs pages and writes into them what has changed.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from damro.cli import main
from damro.decoding.families import FAMILIES
from damro.eval.benchmark import BENCHMARKS
from damro.methods import METHODS

ROOT = Path(__file__).parents[1]
RUN = ("python", "console")
WIDTH = 80
"""Columns of the terminal that tables are made for."""

_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>\S[^\n]*?) -->\n)?"
    r"(?P<fence>```+)(?P<told>[^\n`]*)\n(?P<body>.*?)^(?P=fence)\n",
    re.MULTILINE | re.DOTALL,
)
_SNIPPET = re.compile(r'^--8<-- "(.+?)"$', re.MULTILINE)
_COMMAND = re.compile(r"^\$ ((?:[^\n]*\\\n)*[^\n]*)\n", re.MULTILINE)


class Step(NamedTuple):
    """A program or a command, what stands there as its output, and where that stands in the page."""

    source: str
    wanted: str
    start: int
    end: int


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: as the fence tells it.
        code: what is in it, files that it includes in their place.
        line: of the page, from 1.
        reason: why it is not run, if it is marked so.
        steps: what is run.
    """

    language: str
    code: str
    line: int
    reason: str | None
    steps: tuple[Step, ...]


def pages() -> list[Path]:
    """The README and all pages of the documentation; of those that are a file from elsewhere, that file."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    included = [_SNIPPET.fullmatch(page.read_text().strip()) for page in found]
    return [page if one is None else ROOT / one[1] for page, one in zip(found, included, strict=True)]


def include(text: str) -> str:
    """The text with the files that it includes in their place."""
    return _SNIPPET.sub(lambda match: (ROOT / match[1]).read_text(), text)


def find_blocks(text: str) -> list[Block]:
    """The blocks of a page, but for those that are the output of another."""
    found: list[Block] = []
    program: re.Match[str] | None = None  # that which an output may follow
    for match in _BLOCK.finditer(text):
        told = match["told"].strip()
        language = "python" if told.startswith("{ .py") else told
        if language == "text" and program is not None and not text[program.end() : match.start()].strip():
            step = Step(found[-1].code, match["body"], *match.span())
            found[-1] = Block(found[-1].language, step.source, found[-1].line, None, (step,))
            program = None
            continue
        code, reason = include(match["body"]), match["reason"]
        runs = reason is None and language == "python"
        steps = (Step(code, "", match.end(), match.end()),) if runs else ()
        if reason is None and language == "console":
            steps = tuple(_commands(match["body"], match.start("body")))
        found.append(Block(language, code, text.count("\n", 0, match.start("fence")) + 1, reason, steps))
        program = match if runs else None
    return found


def _commands(body: str, at: int) -> Iterator[Step]:
    commands = list(_COMMAND.finditer(body))
    ends = [*(command.start() for command in commands[1:]), len(body)]
    for command, end in zip(commands, ends, strict=True):
        yield Step(command[1].replace("\\\n", ""), body[command.end() : end], at + command.end(), at + end)


def command_lines(block: Block) -> list[list[str]]:
    """The words of each command line of a shell's block that calls damro."""
    lines = [step.source for step in block.steps] or block.code.replace("\\\n", "").splitlines()
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [one for one in words if one[:1] == ["damro"]]


def perform(language: str, source: str, names: dict[str, Any], where: str) -> str:
    """What a program or a command prints, without blanks at the ends of lines; the program leaves its names."""
    if language == "console" and not source.startswith("damro "):
        done = subprocess.run(source, shell=True, check=True, capture_output=True, text=True)
        return _trim(done.stdout)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out):
        if language == "python":
            exec(compile(source, where, "exec", dont_inherit=True), names)
        else:
            with contextlib.redirect_stderr(err):
                code = main(shlex.split(source, comments=True)[1:])
            assert code == 0, f"{where}: {source} ends with {code}: {err.getvalue()}"
    return _trim(out.getvalue())


def _trim(printed: str) -> str:
    lines = "".join(line.rstrip() + "\n" for line in printed.splitlines())
    return lines.strip("\n") + "\n" if lines.strip() else ""


def is_told(step: Step, printed: str) -> bool:
    """Whether what is printed is what stands there."""
    return doctest.OutputChecker().check_output(_trim(step.wanted), printed, doctest.ELLIPSIS)


def play(text: str, names: dict[str, Any], where: str = "page") -> Iterator[tuple[Step, str]]:
    """Runs the blocks of a page in the current folder; tells of each step what it printed.

    Args:
        text: the page.
        names: what Python's blocks begin with, and leave behind.
        where: the page's name.
    """
    names.setdefault("__name__", "__main__")
    for block in find_blocks(text):
        for step in block.steps:
            yield step, perform(block.language, step.source, names, f"{where}, line {block.line}")


@contextlib.contextmanager
def reader_at(folder: Path) -> Iterator[None]:
    """A reader's place: a folder, a terminal of `WIDTH` columns; what is registered there is taken out again."""
    before = {id(registry): set(registry) for registry in (METHODS, BENCHMARKS, FAMILIES)}
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(WIDTH)
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        os.environ.pop("COLUMNS") if columns is None else os.environ.update(COLUMNS=columns)
        for registry in (METHODS, BENCHMARKS, FAMILIES):
            for name in set(registry) - before[id(registry)]:
                registry.remove(name)


def rewrite(page: Path) -> int:
    """Runs a page and writes into it what it prints now; returns how many outputs have changed."""
    text = page.read_text()
    with tempfile.TemporaryDirectory() as folder, reader_at(Path(folder)):
        changed = [(step, printed) for step, printed in play(text, {}, page.name) if not is_told(step, printed)]
    for step, printed in reversed(changed):
        old = text[step.start : step.end]
        if old.startswith("```") or not old and text[: step.start].endswith("```\n"):  # the output of Python
            printed = f"{'' if old else chr(10)}```text\n{printed}```\n" if printed else ""
        text = text[: step.start] + printed + text[step.end :]
    page.write_text(text)
    return len(changed)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"{name}: {rewrite(Path(name))} outputs changed")
