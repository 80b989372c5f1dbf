"""eval/runs/fingerprint.py: every byte of a checkpoint counts, and the cache is believed no longer than it may."""

from __future__ import annotations

import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from damro.eval.errors import EvalError
from damro.eval.runs import fingerprint
from damro.eval.runs.fingerprint import digest_of_large_file, fingerprint_folder, first_bytes_of_folder

PIECE = 1000


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of two files of weights, with pieces and a cache of the tests' own; nothing in it is new."""
    monkeypatch.setattr(fingerprint, "_PIECE", PIECE)
    monkeypatch.setattr(fingerprint, "_SETTLED", -1.0)
    monkeypatch.setattr(fingerprint, "_cache_folder", lambda: tmp_path / "cache")
    fingerprint._cached_digest.cache_clear()
    place = tmp_path / "model"
    (place / "additional_chat_templates").mkdir(parents=True)
    dice = random.Random(0)
    for name in ("model-1.safetensors", "model-2.safetensors"):
        (place / name).write_bytes(dice.randbytes(4567))
    for name in ("config.json", "merges.txt", "chat_template.jinja", "additional_chat_templates/tool.jinja"):
        (place / name).write_text(f"{{}} {name}")
    (place / "modeling.py").write_text("pass")
    return place


def test_pieces_are_put_together_in_their_order(folder: Path) -> None:
    content = (folder / "model-1.safetensors").read_bytes()
    pieces = [hashlib.sha256(content[start : start + PIECE]).digest() for start in range(0, len(content), PIECE)]
    assert len(pieces) == 5
    assert digest_of_large_file(folder / "model-1.safetensors") == hashlib.sha256(b"".join(pieces)).hexdigest()


@pytest.mark.parametrize("name", ["model-1.safetensors", "model-2.safetensors"])
@pytest.mark.parametrize("place", [0, 999, 1000, 3456, 4566])
def test_any_byte_of_the_weights_counts(folder: Path, name: str, place: int) -> None:
    before = fingerprint_folder(folder)
    content = bytearray((folder / name).read_bytes())
    content[place] ^= 1
    (folder / name).write_bytes(content)
    assert fingerprint_folder(folder) != before
    content[place] ^= 1
    (folder / name).write_bytes(content)
    assert fingerprint_folder(folder) == before


def test_what_a_processor_reads_counts_and_code_does_not(folder: Path) -> None:
    found = {fingerprint_folder(folder)}
    for name in ("config.json", "merges.txt", "chat_template.jinja", "additional_chat_templates/tool.jinja"):
        (folder / name).write_text("other")
        found.add(fingerprint_folder(folder))
    (folder / "preprocessor_config.json").write_text("{}")
    found.add(fingerprint_folder(folder))
    (folder / "model-2.safetensors").rename(folder / "model-3.safetensors")
    found.add(fingerprint_folder(folder))
    assert len(found) == 7
    (folder / "modeling.py").write_text("raise SystemExit")
    (folder / "README.md").write_text("words")
    (folder / "runs").mkdir()
    assert fingerprint_folder(folder) in found


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files of weights that were read, rather than looked up."""
    names: list[str] = []
    before = digest_of_large_file

    def digest(path: Path) -> str:
        if path.suffix == ".safetensors":
            names.append(path.name)
        return before(path)

    monkeypatch.setattr(fingerprint, "digest_of_large_file", digest)
    return names


def again(folder: Path) -> str:
    """The fingerprint, as another process would work it out."""
    fingerprint._cached_digest.cache_clear()
    return fingerprint_folder(folder)


def test_large_files_are_read_once(folder: Path, hashed: list[str]) -> None:
    first = again(folder)
    assert hashed == ["model-1.safetensors", "model-2.safetensors"]
    assert again(folder) == fingerprint_folder(folder) == first
    assert len(hashed) == 2
    (folder.parent / "link").symlink_to(folder)
    assert again(folder.parent / "link") == first
    assert len(hashed) == 2


def test_a_file_that_changed_is_read_again_whatever_its_times_say(folder: Path, hashed: list[str]) -> None:
    first = again(folder)
    file = folder / "model-1.safetensors"
    told = file.stat()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(told.st_atime_ns, told.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (told.st_size, told.st_mtime_ns)
    assert again(folder) != first
    assert hashed == ["model-1.safetensors", "model-2.safetensors", "model-1.safetensors"]


def test_a_file_that_may_still_change_is_not_kept(
    folder: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "_SETTLED", 3600.0)
    assert again(folder) == again(folder)
    assert len(hashed) == 4
    assert not (folder.parent / "cache/weights.json").exists()


@pytest.mark.parametrize(
    "broken", ["", "{", "[1]", '{"PATH": 3}', '{"PATH": [1, 2, 3, 4]}', '{"PATH": [1, 2, 3, 4, 5]}']
)
def test_a_broken_cache_is_made_anew(folder: Path, hashed: list[str], broken: str) -> None:
    first = again(folder)
    cache = folder.parent / "cache/weights.json"
    cache.write_text(broken.replace("PATH", str(folder / "model-1.safetensors")))
    assert again(folder) == first
    assert hashed.count("model-1.safetensors") == 2
    known: dict[str, Any] = json.loads(cache.read_text())
    assert sorted(known) == [str(folder / f"model-{number}.safetensors") for number in (1, 2)]


def test_no_cache_can_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = again(folder)
    (folder.parent / "file").touch()
    monkeypatch.setattr(fingerprint, "_cache_folder", lambda: folder.parent / "file/below")
    assert again(folder) == first


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match=r"none.bin must be readable to tell which model it is, got: No such file"):
        digest_of_large_file(tmp_path / "none.bin")


def test_the_older_fingerprint_is_of_the_first_mebibytes(tmp_path: Path) -> None:
    content = random.Random(1).randbytes((1 << 20) + 5)
    (tmp_path / "a.bin").write_bytes(content)
    (tmp_path / "b.jinja").write_text("not looked at")
    (tmp_path / "config.json").write_text("{}")
    expected = hashlib.sha256(f"a.bin:{len(content)}:".encode() + content[: 1 << 20] + b"config.json:2:{}").hexdigest()
    assert first_bytes_of_folder(tmp_path) == f"sha256 {expected}"
