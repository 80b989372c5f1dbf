"""What a result depends on, as a reader of a report is told it: from the ``run.json`` of each run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from damro._version import __version__
from damro.eval.report.comparison import Comparison
from damro.eval.samples import OpenImage
from damro.parameters import show


class Origin(NamedTuple):
    """Where the runs of a comparison come from.

    Attributes:
        command: What was typed to get the report; None where that is not known.
        runs: The ``run.json`` of the runs, by their names in the comparison.
        open_image: From an image's name to the image; None where images are not at hand.
    """

    command: str | None = None
    runs: Mapping[str, Mapping[str, Any]] = {}
    open_image: OpenImage | None = None


def facts_of(comparison: Comparison, origin: Origin) -> dict[str, list[str]]:
    """Return what a result depends on: a name, and what there is to say, once for all runs that agree.

    Of runs that differ in it, each thing that one of them says.
    """
    runs = list(origin.runs.values())
    found = {
        "Command": [origin.command or ""],
        "Written": [f"{datetime.now(UTC).isoformat(' ', 'minutes')[:16]} UTC, by damro {__version__}"],
        "Runs begun": [_span([str(run["created"]) for run in runs if run.get("created")])],
        "Compared": [
            f"{comparison.compared} samples that all runs answered"
            + (f", with {comparison.baseline.name}" if len(comparison.entries) > 1 else "")
        ],
        "Checkpoint": _each(_checkpoint(run) for run in runs),
        "Protocol": _each(_protocol(run) for run in runs),
        "Prompt": _each(str(_at(run, "resolved", "prompt", "template") or "") for run in runs),
        "Methods": [f"{name}: {_method(run)}" for name, run in origin.runs.items()],
        "Machine": _each(_named(run.get("machine")) for run in runs),
        "Versions": _each(_named(_at(run, "resolved", "packages")) for run in runs),
    }
    return {name: lines for name, lines in found.items() if any(lines)}


def _span(times: Sequence[str]) -> str:
    """The first and the last of times, to the minute."""
    first, *others = (time[:16].replace("T", " ") for time in sorted(times)) if times else ("",)
    return f"{first} to {others[-1]} UTC" if others and others[-1] != first else first and f"{first} UTC"


def _checkpoint(run: Mapping[str, Any]) -> str:
    asked, model = run["request"], _at(run, "resolved", "model") or {}
    parts = [str(asked["model"])]
    parts += [f"{name} {asked[name]}" for name in ("revision", "quantization") if asked.get(name)]
    parts += [str(model[name]) for name in ("family", "dtype", "fingerprint") if model.get(name)]
    if model.get("parameters"):
        parts.insert(1, f"{model['parameters'] / 1e6:,.1f} M parameters")
    return ", ".join(parts)


def _protocol(run: Mapping[str, Any]) -> str:
    asked = run["request"]
    parts = [str(asked["benchmark"])]
    parts += [f"{name} {_text(value)}" for name, value in (asked.get("data") or {}).items()]
    parts += [f"{run['samples']} samples"] if "samples" in run else []
    longest = _at(run, "resolved", "generation", "max_new_tokens")
    parts += [f"at most {longest} new tokens"] if longest else []
    parts += [f"{name} {asked[name]}" for name in ("limit", "seed", "top_p") if asked.get(name) not in (None, 1.0)]
    return ", ".join(parts)


def _method(run: Mapping[str, Any]) -> str:
    method = _at(run, "resolved", "method") or {}
    parts = [f"{name} {show(value)}" for name, value in (method.get("parameters") or {}).items() if value is not None]
    parts += [f"temperature {method['temperature']:g}"] if method.get("temperature") else ["greedy search"]
    parts += [f"{method['keep_tokens']} patches kept"] if "keep_tokens" in method else []
    return ", ".join(parts)


def _named(values: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{name} {value}" for name, value in (values or {}).items())


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _each(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _at(values: Mapping[str, Any], *names: str) -> Any:
    """What stands under nested names; None where one is missing, as in records of older versions."""
    found: Any = values
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found
