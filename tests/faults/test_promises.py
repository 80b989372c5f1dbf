"""The page of promises: every test that it names is there, and tries as many faults as it says."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/promises.md").read_text()


def test_every_number_is_that_of_its_test() -> None:
    rows = re.findall(r"^\|.*\| `tests/faults/(test_\w+)\.py` \| (\d+) \|$", PAGE, re.MULTILINE)
    tried = {}
    for name, _ in rows:
        module = import_module(f"tests.faults.{name}")
        tried[name] = sum(getattr(module, key, 0) for key in ("FAULTS", "SLOW_FAULTS", "SLOW_RESUMES"))
    assert {name: int(number) for name, number in rows} == tried
    modules = {path.stem for path in (ROOT / "tests/faults").glob("test_*.py")}
    assert modules - set(tried) == {"test_promises"}


def test_every_test_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)`", PAGE)
    assert len(named) > 10 and all((ROOT / name).is_file() for name in named)
