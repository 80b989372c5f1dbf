"""Whether a ``run.json`` has the form that what reads it relies on, told before it is stumbled over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from damro.eval.errors import DataFormatError

_SECTIONS = ("generation", "method", "model", "packages", "prompt")
_KINDS: dict[str, tuple[Any, str]] = {
    "request.benchmark": (str, "a text"),
    "request.model": (str, "a text"),
    "resolved.method.method": (str, "a text"),
    "resolved.method.temperature": ((int, float), "a number"),
    "resolved.method.parameters": (Mapping, "an object"),
}
OF_PROTOCOL: dict[str, tuple[Any, str]] = {
    "resolved.method.top_p": ((int, float), "a number"),
    "resolved.model.family": (str, "a text"),
    "resolved.generation": (Mapping, "an object"),
    "resolved.prompt.template": (str, "a text"),
}
"""What a comparison with the paper's protocol reads beside the rest."""


def check_form(where: Path | str, record: Mapping[str, Any], more: Mapping[str, tuple[Any, str]] | None = None) -> None:
    """Check what runs are compared by.

    Args:
        where: The folder that the record stands in, or another name for the run.
        record: A ``run.json`` of this format.
        more: What else must be there: keys, with dots between them, and types.

    Raises:
        DataFormatError: Something is missing or of another type.
    """
    for key, shown, found in _wrong(record, {**_KINDS, **(more or {})}):
        raise DataFormatError(
            f"{where}: run.json must have {key}, {shown}, got {found}: restore the file or run the benchmark anew"
        )


def _wrong(record: Mapping[str, Any], kinds: Mapping[str, tuple[Any, str]]) -> Iterator[tuple[str, str, str]]:
    resolved = record["resolved"]
    for name in _SECTIONS:
        if name in resolved and not isinstance(resolved[name], Mapping):
            yield f"resolved.{name}", "an object", repr(resolved[name])
    samples = record.get("samples")
    if samples is not None and (not isinstance(samples, int) or isinstance(samples, bool)):
        yield "samples", "a whole number", repr(samples)
    for key, (kind, shown) in kinds.items():
        value = _value(record, key.split("."))
        if not isinstance(value, kind) or isinstance(value, bool):
            yield key, shown, "nothing" if value is None else repr(value)


def _value(record: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        record = record.get(key) if isinstance(record, Mapping) else None
    return record
