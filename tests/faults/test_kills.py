"""Every command that writes, killed at random moments: what is there is whole, and the command goes on from it."""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from damro.tiny.scenes import scene
from tests.faults.commands import call
from tests.faults.conftest import RUN
from tests.faults.test_judge import GOOD, Quiet, Server

KILLS = 6
COMMANDS = {
    "run": f"{RUN} --method greedy --out OUT",
    "judge": "judge WHOLE/greedy WHOLE/no-image --endpoint SERVER --model m --no-images --out OUT",
    "compare": "compare WHOLE/greedy WHOLE/no-image --out OUT",
    "attention": "attention PLACE/1.png --model tiny --device cpu --out OUT/map.png",
    "explain": "explain PLACE/1.png Yes --model tiny --device cpu --max-new-tokens 2 --out OUT/report.html",
}
_ROOMS = ("damro.eval.runs.engine", "damro.eval.report.html", "damro.pages.explain_page", "damro.figures", "openai")
FAULTS = KILLS * len(COMMANDS)
"""Kills that the test tries."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    Server.odd = (200, GOOD)
    with Quiet(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def whole_json(path: Path) -> None:
    json.loads(path.read_text())


def whole_lines(path: Path) -> None:
    """All lines but the last, which a kill may have cut, are records."""
    for line in path.read_text().split("\n")[:-1]:
        json.loads(line)


def whole_picture(path: Path) -> None:
    from PIL import Image

    with Image.open(path) as image:
        image.load()


def whole_page(path: Path) -> None:
    assert path.read_text().rstrip().endswith("</html>")


CHECKS: dict[str, Callable[[Path], None]] = {
    ".json": whole_json,
    ".jsonl": whole_lines,
    ".png": whole_picture,
    ".html": whole_page,
}


def files(out: Path) -> dict[str, Path]:
    """What a command left, but for what it was writing when it was killed."""
    found = {str(path.relative_to(out)): path for path in sorted(out.rglob("*")) if path.is_file()}
    return {name: path for name, path in found.items() if ".part" not in name and ".lock" not in name}


def work(words: list[str]) -> None:
    """The command, in a process that has imported all it needs: what is interrupted is the work."""
    told = call(words)
    sys.stderr.write(told.err)
    sys.exit(told.code)


@pytest.fixture(scope="module")
def begin() -> Callable[[str], Any]:
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["damro.cli", "damro.loading", "damro.tiny", "damro.inspection", __name__, *_ROOMS])

    def start(line: str) -> Any:
        process = context.Process(target=work, args=(line.split(),))
        process.start()
        return process

    return start


def answers(out: Path) -> list[Any]:
    """The records of a run without their times."""
    lines = [line for path in sorted(out.rglob("records.jsonl")) for line in path.read_text().splitlines()]
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_random_moments(
    command: str, begin: Callable[[str], Any], two_runs: Path, address: str, tmp_path: Path
) -> None:
    scene("test", 1).image.save(tmp_path / "1.png")
    line = COMMANDS[command].replace("WHOLE", str(two_runs)).replace("PLACE", str(tmp_path)).replace("SERVER", address)

    def run(out: Path, seconds: float | None = None) -> float | None:
        """Runs the command; how long it took, or None if it was killed."""
        out.mkdir(exist_ok=True)
        began = time.perf_counter()
        process = begin(line.replace("OUT", str(out)))
        process.join(seconds)
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            return None
        assert process.exitcode == 0
        return time.perf_counter() - began

    run(tmp_path / "warm")
    lasts = run(tmp_path / "undisturbed")
    random_of, out, kills = random.Random(command), tmp_path / "killed", 0
    while kills < KILLS:
        took = run(out, (lasts or 0) * random_of.uniform(0.1, 1.0))
        if took is not None:  # it was quicker
            lasts = took
            shutil.rmtree(out)
            continue
        kills += 1
        for path in files(out).values():
            CHECKS.get(path.suffix, lambda path: None)(path)
    run(out)
    assert set(files(out)) == set(files(tmp_path / "undisturbed"))
    assert answers(out) == answers(tmp_path / "undisturbed")
