"""``run.json``: what a run depends on, and how two of them differ.

It holds the request, which is enough to ask for the run again, and what that resolved to (the model's fingerprint,
every parameter, prompts, data with their checksums, package versions), which tells whether a second run is the first
one again.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from damro.eval.errors import DataFormatError, EvalError
from damro.eval.records import read_json, write_whole
from damro.eval.runs.formats import ACCEPTS_OLD, FORMAT, upgrade
from damro.eval.runs.identity import Identity, digest_of_json
from damro.eval.runs.request import RunRequest

RUN_FILE = "run.json"

_PACKAGES = ("damro", "torch", "transformers", "tokenizers", "accelerate", "pillow", "numpy", "bitsandbytes")
# Where the run stands and how fast it goes; none of it changes an answer (a batch's size not beyond rounding).
_FREE = ("format", "created", "machine", ACCEPTS_OLD, "request.images", "request.batch_size", "request.device_map")
# Written since the format had its number: an older record that lacks one says nothing about it.
_LATER = ("resolved.model.parameters", "samples")


class RunMismatchError(EvalError):
    """A folder holds the records of another run."""


def to_record(
    request: RunRequest,
    resolved: Mapping[str, Any],
    samples: int | None = None,
    machine: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what ``run.json`` holds.

    Args:
        request: What was asked for.
        resolved: What the answers depend on beside it.
        samples: How many samples the run has; None where that is not known.
        machine: What it ran on, which no answer is said to depend on.
    """
    created = datetime.now(UTC).isoformat(timespec="seconds")
    # Through JSON and back, so that what is compared is what will be read again.
    asked = {"request": asdict(request), "resolved": dict(resolved)}
    of_samples = {} if samples is None else {"samples": samples}
    of_machine = {} if machine is None else {"machine": dict(machine)}
    record = {"format": FORMAT, "created": created, **of_samples, **of_machine, **asked}
    return dict(json.loads(json.dumps(record, allow_nan=False)))


def load_run(path: Path | str) -> dict[str, Any]:
    """Read a ``run.json``, given it or the folder it lies in; one of an older format as this version would write it.

    Raises:
        DataFormatError: It cannot be read or is no record of a run.
    """
    path = Path(path)
    if path.is_dir() or not path.exists():
        _check_is_run(path)
        path = path / RUN_FILE
    record = read_json(path)
    whole = isinstance(record, dict) and all(isinstance(record.get(key), dict) for key in ("request", "resolved"))
    if not whole or record.get("format") not in range(1, FORMAT + 1):
        raise DataFormatError(f"{path}: must be the run.json of a run (format 1 to {FORMAT}), got something else")
    return upgrade(record)


def read_format(folder: Path) -> int:
    """Return the format that the ``run.json`` of a folder was written in; it has been read before."""
    return int(read_json(folder / RUN_FILE)["format"])


def _check_is_run(folder: Path) -> None:
    """Refuse a folder without ``run.json``; one that holds runs is told apart from one that does not."""
    if (folder / RUN_FILE).exists():
        return
    inside = sorted(str(path.parent) for path in folder.glob(f"*/{RUN_FILE}"))
    if inside:
        found = f"which holds runs: give the one wanted, or to compare several of {' '.join(inside)}"
    elif folder.is_dir():
        found = f"which holds no {RUN_FILE}: give a folder that damro run wrote"
    else:
        found = "which is not there"
    raise DataFormatError(f"RUN must be the folder of one run, got {str(folder)!r}, {found}")


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say in which keys two records of runs differ, leaving out what changes no answer.

    A request without a key, from a version that did not know it, is one with its default; what an older version did not
    resolve is no difference.

    Example:
        >>> differences({"request": {"seed": 1}}, {"request": {"seed": 2, "images": "a"}})
        ['request.seed: 1 -> 2']
    """
    before, after = dict(_flatten(_complete(old))), dict(_flatten(_complete(new)))
    unknown = [key for key in _LATER if key not in before]
    keys = [key for key in {**before, **after} if not key.startswith(_FREE) and key not in unknown]
    return [
        f"{key}: {_shown(before, key)} -> {_shown(after, key)}"
        for key in keys
        if before.get(key, _Missing) != after.get(key, _Missing)
    ]


def check_same(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse to go on with a run in a folder that holds another one.

    Raises:
        RunMismatchError: They differ; says in what.
    """
    found = differences(old, new)
    if found:
        raise RunMismatchError(
            f"{folder} must hold the records of this very run, differs in {len(found)}: {'; '.join(found[:8])}"
            f"{'; ...' if len(found) > 8 else ''}. Give another --out, or the options it was begun with"
        )


def write_run(folder: Path, record: Mapping[str, Any]) -> None:
    """Write ``run.json`` in one step, so that no reader sees half of it."""
    write_whole(folder / RUN_FILE, json.dumps(record, indent=2) + "\n")


def digest_of_settings(record: Mapping[str, Any]) -> str:
    """Return a short digest of what a run's answers depend on: its request and what that resolved to."""
    asked = _flatten({name: record[name] for name in ("request", "resolved")})
    return digest_of_json({key: value for key, value in asked if not key.startswith(_FREE)})


def identity_of(record: Mapping[str, Any]) -> Identity:
    """Return what ties records to the run of a ``run.json``; of one that tells no number of samples none did."""
    return Identity(digest_of_settings(record), bool(record.get(ACCEPTS_OLD)) or "samples" not in record)


def package_versions() -> dict[str, str]:
    """Return the versions of what an answer depends on, as far as installed."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def folder_name(text: str) -> str:
    """Return a name that is safe as one folder's on any system.

    Example:
        >>> folder_name("llava-hf/llava-1.5-7b-hf"), folder_name("../damro:alpha=1,top_k=5@1")
        ('llava-hf_llava-1.5-7b-hf', 'damro_alpha=1,top_k=5@1')
    """
    return re.sub(r"[^A-Za-z0-9@+.,=-]+", "_", text).strip("._") or "run"


def _complete(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with the defaults of what its request lacks."""
    defaults = {field.name: field.default for field in fields(RunRequest) if field.default is not MISSING}
    return {**record, "request": {**defaults, **record["request"]}}


class _Missing:
    """Stands for a key that is not there."""


def _flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _flatten(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def _shown(values: Mapping[str, Any], key: str) -> str:
    text = json.dumps(values[key]) if key in values else "nothing"
    return text if len(text) <= 60 else text[:57] + "..."
