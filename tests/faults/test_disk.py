"""A disk that is full and folders that may not be written: one line, nothing half, and the rest after room was made."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from damro.tiny.scenes import scene
from tests.faults.commands import Told, call, check_refused, start
from tests.faults.conftest import RUN

COMMANDS = {
    "run": f"{RUN} --method greedy --out DISK/run",
    "attention": "attention PLACE/1.png --model tiny --device cpu --out DISK/map.png",
    "explain": "explain PLACE/1.png Yes --model tiny --device cpu --max-new-tokens 2 --out DISK/report.html",
    "compare": "compare WHOLE/greedy WHOLE/no-image --out DISK/compared",
    "score": "score pope --questions PLACE/questions.jsonl --answers PLACE/answers.jsonl --json",
}
ROOMS = (0, 4096, 20_000)
"""Bytes that are free."""
WRITERS, PRINTERS = ("run", "attention", "explain", "compare"), ("score", "compare")
FILES = ("file/below/x.png", "file/x.png")
FAULTS = len(WRITERS) * (len(ROOMS) + 1 + len(FILES)) + len(PRINTERS)
"""Full disks, read-only ones, places in files, and full devices to print to that the tests try."""


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of 256 KiB, where one may be mounted."""
    folder = tmp_path_factory.mktemp("disk")
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("mounting is not allowed")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beside")
    scene("test", 1).image.save(folder / "1.png")
    (folder / "questions.jsonl").write_text('{"question_id": 1, "image": "1.jpg", "text": "Is it?", "label": "yes"}\n')
    (folder / "answers.jsonl").write_text('{"question_id": 1, "answer": "Yes"}\n')
    return folder


def fill(disk: Path, room: int) -> None:
    """Fills a disk up to some bytes."""
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "filling").write_bytes(bytes(free - room))


def run_line(line: str, disk: Path, place: Path, two_runs: Path) -> Told:
    return call(line.replace("DISK", str(disk)).replace("PLACE", str(place)).replace("WHOLE", str(two_runs)).split())


@pytest.mark.slow
@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("command", WRITERS)
def test_a_full_disk_is_one_line_and_nothing_is_lost(
    command: str, room: int, disk: Path, place: Path, two_runs: Path
) -> None:
    fill(disk, room)
    told = run_line(COMMANDS[command], disk, place, two_runs)
    if told.code == 0:  # it fitted
        assert room
        return
    check_refused(told, f"{command} on a disk with {room} bytes")
    assert "No space left on device" in told.lines[-1]
    left = [path for path in disk.rglob("*") if path.is_file() and path.name != "filling"]
    assert not [path for path in left if ".part" in path.name], left
    assert not [path for path in left if path.suffix in (".png", ".html") and path.stat().st_size < 1000], left
    if command == "run":
        (disk / "filling").unlink()
        again = run_line(COMMANDS[command], disk, place, two_runs)
        assert again.code == 0, again.err
        records = [folder / "greedy/records.jsonl" for folder in (two_runs, disk / "run")]
        whole, now = ([line.partition('"seconds"')[0] for line in path.read_text().splitlines()] for path in records)
        assert now == whole


@pytest.mark.parametrize("command", WRITERS)
def test_a_read_only_disk_is_one_line(command: str, disk: Path, place: Path, two_runs: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    try:
        told = run_line(COMMANDS[command], disk, place, two_runs)
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    check_refused(told, f"{command} on a read-only disk")
    assert "--out must be where you may write" in told.lines[-1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("command", PRINTERS)
def test_results_that_cannot_be_printed_are_told(command: str, place: Path, two_runs: Path) -> None:
    line = COMMANDS[command].replace(" --out DISK/compared", "")
    words = line.replace("PLACE", str(place)).replace("WHOLE", str(two_runs)).split()
    with open("/dev/full", "w") as full:
        process = start(words, stdout=full)
        _, err = process.communicate()
    check_refused(Told(process.returncode, "", err), f"{command} to a full device")


@pytest.mark.parametrize("command", WRITERS)
def test_an_out_that_is_a_file_or_lies_in_one_is_refused(
    command: str, place: Path, two_runs: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    for target in FILES:
        line = COMMANDS[command].rpartition(" --out ")[0] + f" --out {tmp_path / target}"
        check_refused(run_line(line, tmp_path, place, two_runs), command)
    assert (tmp_path / "file").read_text() == "mine"
