"""Hostile image files end in a picture or in an ImageError, at once."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from damro.images import ImageError, load_image
from tests.faults.image_faults import damaged, whole_files

FAULTS, SLOW_FAULTS = 720, 4000
"""Fuzzed files that the two tests open. 35,000 of the same generator, seed 11, gave 12,498 images and 22,502 errors."""

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow has much to say of damaged files


@pytest.fixture
def impatient() -> Iterator[None]:
    """Ends a test that waits for a file."""

    def stop(*_: Any) -> None:
        raise TimeoutError("an image was waited for")

    before = signal.signal(signal.SIGALRM, stop)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def open_all(count: int, seed: int, path: Path) -> Counter[str]:
    """Opens damaged files; anything but an image or an ImageError is the test's failure."""
    files, found = whole_files(), Counter[str]()
    for number in range(count):
        name = list(files)[number % len(files)]
        content = damaged(files[name], random.Random(seed * 10**6 + number))
        path.write_bytes(content)
        signal.alarm(60)
        try:
            found[load_image(path).mode] += 1
        except ImageError:
            found["error"] += 1
        except Exception as error:
            raise AssertionError(f"file {number}, {name}: {error!r}") from error
        finally:
            signal.alarm(0)
    return found


def test_whole_files_open(tmp_path: Path) -> None:
    for name, content in whole_files().items():
        (tmp_path / "image").write_bytes(content)
        if name == "eps":
            continue
        assert load_image(tmp_path / "image").size in ((48, 36), (36, 48), (32, 24), (1024, 1024)), name


@pytest.mark.usefixtures("impatient")
def test_fuzzed_files_are_images_or_image_errors(tmp_path: Path) -> None:
    found = open_all(FAULTS, 1, tmp_path / "image")
    assert set(found) == {"RGB", "error"} and min(found.values()) > FAULTS / 10


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_thousands_of_fuzzed_files(tmp_path: Path) -> None:
    found = open_all(SLOW_FAULTS, 2, tmp_path / "image")
    assert set(found) == {"RGB", "error"} and min(found.values()) > SLOW_FAULTS / 10


@pytest.mark.usefixtures("impatient")
def test_what_is_no_picture_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FIFOs, devices, folders, links that loop or lead nowhere, empty files, and programs under a picture's name."""

    def run(*_: Any, **__: Any) -> None:
        raise AssertionError("Ghostscript was to be started")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", run)
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "one.jpg").symlink_to("two.jpg")
    (tmp_path / "two.jpg").symlink_to("one.jpg")
    (tmp_path / "nowhere.jpg").symlink_to("gone.jpg")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "program.jpg").write_bytes(whole_files()["eps"])
    (tmp_path / "text.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    signal.alarm(20)
    names = ("fifo", "folder", "one", "nowhere", "empty", "program", "text")
    for path in [*(tmp_path / f"{name}.jpg" for name in names), Path("/dev/null"), Path("/dev/zero")]:
        with pytest.raises(ImageError, match="image must be a file that Pillow can open, got"):
            load_image(path)
