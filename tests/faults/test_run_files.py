"""Damaged run.json and records: commands refuse them in one line or go on, and never score what is not there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.faults.commands import Told, call, check_refused
from tests.faults.conftest import RUN
from tests.test_malformed_files import damage

FAULTS, SLOW_FAULTS, SLOW_RESUMES = 80, 500, 30
"""Damaged files that the tests make: read by one command, by three in turn, and gone on with."""

FILES = {"run.json": False, "records.jsonl": True}
"""Whether a file holds a record a line."""
COMMANDS = {
    "compare": "compare PLACE/greedy PLACE/no-image --json",
    "reproduce": "reproduce pope PLACE/greedy --json",
    "run --from": "run --from PLACE/greedy --out PLACE/again --batch-size 0",
}


def chosen(count: int) -> Any:
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def place(two_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")
    for name in ("greedy", "no-image"):
        shutil.copytree(two_runs / name, folder / name)
    return folder


def damage_file(data: st.DataObject, place: Path, two_runs: Path) -> str:
    """Damages one file of the first run; returns its name."""
    shutil.rmtree(place / "greedy")
    shutil.copytree(two_runs / "greedy", place / "greedy")
    name = data.draw(st.sampled_from(sorted(FILES)))
    file = place / "greedy" / name
    file.write_bytes(damage(data.draw, file.read_bytes(), FILES[name]))
    return name


def read(place: Path, command: str) -> Told:
    return call(COMMANDS[command].replace("PLACE", str(place)).split())


def answers(file: Path) -> dict[str, Any]:
    """What scores depend on, of every record; the last of an id counts."""
    values: list[Any] = []
    for line in file.read_bytes().decode("utf-8-sig", "replace").split("\n"):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        values += value if isinstance(value, list) else [value]
    keys = ("split", "image", "question", "label", "answer")
    return {str(fields.get("id")): [fields.get(key) for key in keys] for fields in values if isinstance(fields, dict)}


def groups(told: Told) -> list[dict[str, Any]]:
    """The scores of the first run, group by group."""
    return list(next(iter(json.loads(told.out)["methods"].values()))["scores"].values())


def check(told: Told, place: Path, two_runs: Path, command: str, what: str) -> None:
    if told.code == 2 and command == "run --from" and "batch_size must be" in told.err:
        return  # the file is fit to be run again; the batch of none was to keep it from being run
    if told.code:
        check_refused(told, f"{command} with a damaged {what}")
        assert told.out == ""
    elif command == "compare":
        whole, now = (answers(folder / "greedy/records.jsonl") for folder in (two_runs, place))
        assert max(group["n"] for group in groups(told) if "n" in group) <= len(now)
        if whole == now:
            assert groups(told) == groups(read(two_runs, command))


@chosen(FAULTS)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read(place: Path, two_runs: Path, data: st.DataObject) -> None:
    what = damage_file(data, place, two_runs)
    check(read(place, "compare"), place, two_runs, "compare", what)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_damaged_files_of_every_command(place: Path, two_runs: Path, command: str) -> None:
    @chosen(SLOW_FAULTS // len(COMMANDS))
    @given(data=st.data())
    def attempt(data: st.DataObject) -> None:
        what = damage_file(data, place, two_runs)
        check(read(place, command), place, two_runs, command, what)

    attempt()


@pytest.mark.slow
def test_a_damaged_run_is_refused_or_goes_on(place: Path, two_runs: Path) -> None:
    whole = answers(two_runs / "greedy/records.jsonl")

    @chosen(SLOW_RESUMES)
    @given(data=st.data())
    def attempt(data: st.DataObject) -> None:
        what = damage_file(data, place, two_runs)
        found = answers(place / "greedy/records.jsonl")
        told = call([*RUN.split(), "--method", "greedy", "--out", place])
        if told.code:
            check_refused(told, f"run that goes on with a damaged {what}")
            return
        now = answers(place / "greedy/records.jsonl")
        assert list(now) == list(whole)
        for key, fields in now.items():
            assert fields[:-1] == whole[key][:-1]  # split, image, question and label
            assert fields[-1] in (whole[key][-1], found.get(key, [None])[-1])  # an answer is what was recorded

    attempt()
