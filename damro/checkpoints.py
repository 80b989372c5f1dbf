"""What is wrong with the files of a checkpoint, in words: looked at when one did not load. Imports no torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_CONFIG = "config.json"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_LARGEST_HEADER = 100_000_000  # of a safetensors file, by its own rules

_LONGEST = 300  # characters of another's message in one of ours

_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
_COUNTS = ("max_length", "max_new_tokens", "min_length", "min_new_tokens", "num_beams", "num_return_sequences", "top_k")
_NUMBERS = ("temperature", "top_p", "min_p", "typical_p", "repetition_penalty", "length_penalty")


def find_fault(folder: Path) -> str | None:
    """The first thing that is wrong with a checkpoint's files; None if nothing is seen, or there is no such folder."""
    if folder.is_file():
        return "it is a file; give the folder of a checkpoint"
    return next(_faults(folder), None) if folder.is_dir() else None


def _faults(folder: Path) -> Iterator[str]:
    if not (folder / _CONFIG).is_file():
        yield f"{_CONFIG} is missing"
    for path in sorted(folder.glob("*.json")):
        fault = _fault_of_json(path)
        if fault is not None:
            yield f"{path.name} {fault}"
    if not any((folder / name).is_file() for name in _WEIGHTS):
        yield "the weights are missing (model.safetensors)"
    for path in sorted(folder.glob("*.index.json")):
        yield from _faults_of_index(path)
    for path in sorted(folder.glob("*.safetensors")):
        fault = _fault_of_weights(path)
        if fault is not None:
            yield f"{path.name} {fault}"


def _fault_of_json(path: Path) -> str | None:
    """What is wrong with a file that must hold one JSON object."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON
        return f"is not JSON ({error})"
    return None if isinstance(content, dict) else f"must hold a JSON object, holds {type(content).__name__}"


def _faults_of_index(path: Path) -> Iterator[str]:
    """What is wrong with the file that says which shard holds which weight."""
    shards = json.loads(path.read_bytes()).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        yield f"{path.name} must have a weight_map from names of weights to files"
        return
    for name in sorted(set(shards.values())):
        if not (path.parent / name).is_file():
            yield f"{path.name} names {name}, which is missing"


def _fault_of_weights(path: Path) -> str | None:
    """What is wrong with the head of a safetensors file: its length, its JSON, and where it says the tensors end."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
            if not 2 <= length <= min(_LARGEST_HEADER, size - 8):
                return f"is cut short or no safetensors file ({size} bytes)"
            head: Any = json.loads(file.read(length))
        ends = [value["data_offsets"][1] for name, value in head.items() if name != "__metadata__"]
        missing = 8 + length + max(ends, default=0) - size
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (ValueError, RecursionError, TypeError, KeyError, IndexError, AttributeError) as error:
        return f"has a broken header ({error})"
    return f"is cut short: {missing} bytes are missing" if missing > 0 else None


def find_setting(config: Mapping[str, Any]) -> str | None:
    """The first setting of a generation config that is of the wrong type, in words; None if all are right.

    Example:
        >>> find_setting({"eos_token_id": [2, 7], "max_length": None, "temperature": 1})
        >>> find_setting({"eos_token_id": "</s>"})
        "eos_token_id must be a whole number or a list of them, got '</s>'"
    """
    for name in _IDS:
        value = config.get(name)
        if value is not None and not all(_is_whole(one) for one in (value if isinstance(value, list) else [value])):
            return f"{name} must be a whole number or a list of them, got {value!r}"
    for names, kind, fits in ((_COUNTS, "a whole number", _is_whole), (_NUMBERS, "a number", _is_number)):
        for name in names:
            if config.get(name) is not None and not fits(config[name]):
                return f"{name} must be {kind}, got {config[name]!r}"
    return None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_whole(value)


def in_words(error: Exception) -> str:
    """What another's exception says, shortened; its type in front where it says little by itself.

    Example:
        >>> in_words(KeyError("metadata")), in_words(ValueError())
        ("KeyError: 'metadata'", 'ValueError')
    """
    told = " ".join(str(error).split())
    if not isinstance(error, OSError | ValueError | RuntimeError | ImportError) or not told:
        told = f"{type(error).__name__}: {told}" if told else type(error).__name__
    return told if len(told) <= _LONGEST else told[: _LONGEST - 3] + "..."
