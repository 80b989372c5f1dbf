"""What a run depends on: the request, what it resolved to, and how two of them differ.

``run.json`` holds both. The request is what a user asked for and is enough to ask for it again; what was resolved (the
model's fingerprint, every parameter, prompts, data with their checksums, package versions) tells whether the second
run is the first one again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from damro.eval.errors import DataFormatError, EvalError
from damro.eval.records import read_json

FORMAT = 1
BENCHMARKS = ("pope", "chair", "mme")
RUN_FILE = "run.json"

_PACKAGES = ("damro", "torch", "transformers", "tokenizers", "accelerate", "pillow", "numpy", "bitsandbytes")
# Where the run stands and how fast it goes; none of it changes an answer (a batch's size not beyond rounding).
_FREE = ("created", "request.images", "request.batch_size", "request.device_map")


class RunMismatchError(EvalError):
    """A folder holds the records of another run."""


@dataclass(frozen=True)
class RunRequest:
    """What a user asks for.

    Attributes:
        benchmark: "pope", "chair" or "mme".
        model: A folder, a name on the Hub, or "tiny".
        method: As `damro.eval.methods.parse_method` reads it: "greedy", "damro", "random-k@1", ...
        revision: Branch, tag or commit on the Hub.
        splits: POPE: names of `damro.eval.resources.POPE_SPLITS`. MME: categories. Empty for CHAIR.
        questions: POPE: a question file instead of the shipped splits.
        objects: CHAIR: a ground-truth file instead of the shipped one.
        image_ids: CHAIR: a file that lists the images to caption.
        images: Folder of the images.
        limit: At most so many samples of a split.
        scenes: How many embedded scenes, for the tiny model.
        seed: Seed of sampling, of random patches and of the choice of images.
        alpha: Strength of the contrast; None takes the preset.
        beta: Plausibility cutoff; None takes the preset.
        top_k: Number of patches; None takes the preset.
        variant: Of DAMRO and its controls with InstructBLIP: "reference" or "corrected".
        noise_step: VCD: of the diffusion process; None takes the authors', and so it does of what follows.
        disturbance: ICD: the sentence in front of the instruction.
        question_only: ICD: disturbs only what the Q-Former reads.
        forgetting: M3ID: how fast its weight grows.
        confidence: M3ID: probability from which on nothing is changed.
        keep_tokens: Patches of a tile that the full prompt keeps; None keeps all.
        top_p: Nucleus of sampling.
        max_new_tokens: Longest answer in tokens; None takes the benchmark's.
        prompt: Template with ``{question}``; None takes the benchmark's.
        dtype: "auto", "float32", "bfloat16" or "float16".
        device: As torch names it; None takes a GPU if there is one.
        device_map: "auto" spreads a model over all GPUs.
        quantization: "4bit" or "8bit", through bitsandbytes.
        batch_size: Samples at once; None chooses by the device.
    """

    benchmark: str
    model: str
    method: str = "greedy"
    revision: str | None = None
    splits: tuple[str, ...] = ()
    questions: str | None = None
    objects: str | None = None
    image_ids: str | None = None
    images: str | None = None
    limit: int | None = None
    scenes: int = 200
    seed: int = 42
    alpha: float | None = None
    beta: float | None = None
    top_k: int | None = None
    variant: str = "reference"
    noise_step: int | None = None
    disturbance: str | None = None
    question_only: bool = False
    forgetting: float | None = None
    confidence: float | None = None
    keep_tokens: int | None = None
    top_p: float = 1.0
    max_new_tokens: int | None = None
    prompt: str | None = None
    dtype: str = "auto"
    device: str | None = None
    device_map: str | None = None
    quantization: str | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        """Refuse what no run could be made of."""
        if self.benchmark not in BENCHMARKS:
            raise EvalError(f"benchmark must be one of {', '.join(BENCHMARKS)}, got {self.benchmark!r}")
        for name in ("limit", "scenes", "batch_size", "max_new_tokens", "top_k", "keep_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise EvalError(f"{name} must be at least 1, got {value}")
        if not 0 < self.top_p <= 1:
            raise EvalError(f"top_p must lie in (0, 1], got {self.top_p}")
        if self.prompt is not None and self.benchmark != "chair" and "{question}" not in self.prompt:
            raise EvalError(f"prompt must hold {{question}}, got {self.prompt!r}")
        if self.variant not in ("reference", "corrected"):
            raise EvalError(f"variant must be reference or corrected, got {self.variant!r}")
        if self.quantization not in (None, "4bit", "8bit"):
            raise EvalError(f"quantization must be 4bit or 8bit, got {self.quantization!r}")


def to_record(request: RunRequest, resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``run.json`` holds."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    # Through JSON and back, so that what is compared is what will be read again.
    record = {"format": FORMAT, "created": created, "request": asdict(request), "resolved": dict(resolved)}
    return dict(json.loads(json.dumps(record, allow_nan=False)))


def load_run(path: Path | str) -> dict[str, Any]:
    """Read a ``run.json``, given it or the folder it lies in.

    Raises:
        DataFormatError: It cannot be read or is no record of a run.
    """
    path = Path(path)
    path = path / RUN_FILE if path.is_dir() else path
    record = read_json(path)
    whole = isinstance(record, dict) and all(isinstance(record.get(key), dict) for key in ("request", "resolved"))
    if not whole or record.get("format") != FORMAT:
        raise DataFormatError(f"{path}: must be the run.json of a run (format {FORMAT}), got something else")
    return dict(record)


def to_request(record: Mapping[str, Any]) -> RunRequest:
    """Return the request that a ``run.json`` holds.

    Raises:
        DataFormatError: It holds keys that no request has, or lacks the benchmark or the model.
        EvalError: A value is out of range.

    Example:
        >>> request = RunRequest("pope", "tiny", splits=("coco/random",))
        >>> to_request(to_record(request, {})) == request
        True
    """
    given = dict(record["request"])
    known = {field.name for field in fields(RunRequest)}
    unknown = sorted(set(given) - known)
    if unknown or not {"benchmark", "model"} <= set(given):
        wrong = f"unknown keys {', '.join(unknown)}" if unknown else f"keys {', '.join(sorted(given))}"
        raise DataFormatError(f"request of a run must hold benchmark and model and no unknown keys, got {wrong}")
    given["splits"] = tuple(given.get("splits", ()))
    try:
        return RunRequest(**given)
    except TypeError as error:
        raise DataFormatError(f"request of a run must hold values of the right types: {error}") from error


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say in which keys two records of runs differ, leaving out what changes no answer.

    A request without a key, from a version that did not know it, is one with its default.

    Example:
        >>> differences({"request": {"seed": 1}}, {"request": {"seed": 2, "images": "a"}})
        ['request.seed: 1 -> 2']
    """
    before, after = dict(_flatten(_complete(old))), dict(_flatten(_complete(new)))
    keys = [key for key in {**before, **after} if not key.startswith(_FREE)]
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


def write_whole(path: Path, text: str) -> None:
    """Write a file so that whoever looks sees the old one or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def digest_of_file(path: Path | str) -> str:
    """Return the SHA-256 of a file's bytes.

    Raises:
        DataFormatError: The file cannot be read.
    """
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise DataFormatError(f"{path}: cannot be read ({error.strerror}): give a readable file") from error


def digest_of_folder(folder: Path) -> str:
    """Return a fingerprint of a checkpoint's folder: its JSON files, and of each weight file name, size and 1 MiB.

    Hashing 14 GB takes longer than many a run; a retrained checkpoint differs in the first tensors already.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".safetensors", ".bin", ".model"):
            digest.update(f"{path.name}:{path.stat().st_size}:".encode())
            with path.open("rb") as file:
                digest.update(file.read(1 << 20))
    return digest.hexdigest()


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
        >>> folder_name("llava-hf/llava-1.5-7b-hf"), folder_name("../damro@1")
        ('llava-hf_llava-1.5-7b-hf', 'damro@1')
    """
    return re.sub(r"[^A-Za-z0-9@+.-]+", "_", text).strip("._") or "run"


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
