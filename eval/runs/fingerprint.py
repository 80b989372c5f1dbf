"""Which model a run is of: a fingerprint of everything that a checkpoint's folder holds.

Every byte of the weights counts: a merged adapter or another projector changes a few tensors anywhere. What a file of
weights hashed to is kept in the user's cache, under its path, and holds as long as size and times of the file stay.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from damro.eval.errors import EvalError
from damro.eval.records import read_json, write_whole

MARK = "sha256 files:"
"""How the fingerprint of a folder begins. An older one is ``sha256`` and the digest of `first_bytes_of_folder`."""

_WEIGHTS = (".safetensors", ".bin", ".model", ".gguf")
_BESIDE = (".json", ".jinja", ".txt", ".tiktoken", ".vocab")  # configurations, templates, words and merges
_PIECE = 64 << 20  # bytes that one thread hashes
_BLOCK = 1 << 20
_SETTLED = 2.0  # seconds after which another change of a file shows in its time on any file system


def fingerprint_folder(folder: Path) -> str:
    """Return a fingerprint of a checkpoint's folder: names and contents of its weights, configurations and words.

    Code and whatever else lies there does not count.

    Raises:
        EvalError: A file cannot be read.
    """
    digest = hashlib.sha256()
    templates = (folder / "additional_chat_templates").glob("*.jinja")
    for path in sorted([*folder.iterdir(), *templates]):
        if path.suffix in _WEIGHTS + _BESIDE and path.is_file():
            digest.update(f"{path.relative_to(folder).as_posix()}:{_digest(path)}\n".encode())
    return MARK + digest.hexdigest()


def first_bytes_of_folder(folder: Path) -> str:
    """Return what stood in ``run.json`` up to format 2: of each file of weights name, size and the first MiB."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".safetensors", ".bin", ".model"):
            digest.update(f"{path.name}:{path.stat().st_size}:".encode())
            with path.open("rb") as file:
                digest.update(file.read(_BLOCK))
    return f"sha256 {digest.hexdigest()}"


def digest_of_large_file(path: Path) -> str:
    """Return the SHA-256 of the digests of a file's pieces of 64 MiB, which all cores work out together.

    Raises:
        EvalError: The file cannot be read.
    """
    try:
        starts = range(0, path.stat().st_size, _PIECE)
        with ThreadPoolExecutor(max(1, min(len(starts), os.cpu_count() or 1))) as threads:
            pieces = list(threads.map(lambda start: _digest_of_piece(path, start), starts))
    except OSError as error:
        raise EvalError(f"{path} must be readable to tell which model it is, got: {error.strerror}") from error
    return hashlib.sha256(b"".join(pieces)).hexdigest()


def _digest_of_piece(path: Path, start: int) -> bytes:
    digest, block = hashlib.sha256(), memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        left = _PIECE
        while left and (count := file.readinto(block[: min(left, _BLOCK)])):
            digest.update(block[:count])
            left -= count
    return digest.digest()


def _digest(path: Path) -> str:
    """The digest of a file, from the cache where it is large and the same as it was."""
    told = path.stat()
    if told.st_size <= _PIECE:
        return digest_of_large_file(path)
    # The inode and the time of its last change, too: copying back an older time does not hide another content.
    state = (told.st_size, told.st_mtime_ns, told.st_ctime_ns, told.st_ino)
    return _cached_digest(Path(os.path.realpath(path)), state)


@lru_cache(maxsize=256)
def _cached_digest(path: Path, state: tuple[int, ...]) -> str:
    cache = _cache_folder() / "weights.json"
    known = _read_cache(cache)
    kept = known.get(str(path))
    if isinstance(kept, list) and kept[:-1] == list(state) and isinstance(kept[-1], str):
        return kept[-1]
    digest = digest_of_large_file(path)
    now = path.stat()
    same = state == (now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino)
    if same and time.time() - max(now.st_mtime, now.st_ctime) > _SETTLED:
        _write_cache(cache, {**_read_cache(cache), str(path): [*state, digest]})
    return digest


def _read_cache(cache: Path) -> dict[str, object]:
    try:
        known = read_json(cache)
    except EvalError:  # none yet, or one that somebody broke: it is made anew
        return {}
    return known if isinstance(known, dict) else {}


def _write_cache(cache: Path, known: dict[str, object]) -> None:
    there = {path: entry for path, entry in known.items() if os.path.exists(path)}
    with suppress(OSError):  # a home that is read-only or full costs time, and no run
        write_whole(cache, json.dumps(there, indent=1) + "\n")


def _cache_folder() -> Path:
    """Where this user's programs keep what can be made again."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "damro"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "damro"
