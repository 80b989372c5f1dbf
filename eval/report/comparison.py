"""Runs beside each other: what each is worth, and by how much it differs from the first on the same samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from damro.eval.errors import EvalError
from damro.eval.runs.request import load_run
from damro.eval.runs.sharding import read_done
from damro.eval.scores import Group, Records, Scoring, answered_in_all, score_run
from damro.eval.statistics import Interval


@dataclass(frozen=True)
class Entry:
    """One run of a comparison.

    Attributes:
        name: Of the method, with what else tells the runs apart.
        groups: Scores on the samples that all runs of the comparison answered.
        total: Samples with a record.
        failed: The reasons of those without an answer, by sample id.
        seconds: What the answers took together.
    """

    name: str
    groups: tuple[Group, ...]
    total: int
    failed: Mapping[str, str]
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """Runs of one benchmark, scored on the same samples; the first is what the others are compared with.

    Attributes:
        benchmark: "pope", "chair" or "mme".
        model: Name of the model, or of the models.
        entries: The runs.
        compared: How many samples all runs answered.
    """

    benchmark: str
    model: str
    entries: tuple[Entry, ...]
    compared: int

    @property
    def baseline(self) -> Entry:
        """The first run."""
        return self.entries[0]

    def rows(self) -> list[Row]:
        """Return every metric of every group of every run."""
        rows = []
        for number, group in enumerate(self.baseline.groups):
            for entry in self.entries:
                other = entry.groups[number]
                differences = other.differences(group) if entry is not self.baseline else {}
                rows += [
                    Row(group.name, entry.name, metric, interval, differences.get(metric))
                    for metric, interval in other.intervals().items()
                ]
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        methods = {}
        for entry in self.entries:
            below = None if entry is self.baseline else self.baseline
            methods[entry.name] = {
                "samples": entry.total,
                "failed": len(entry.failed),
                "seconds": round(entry.seconds, 3),
                "scores": {
                    group.name: group.to_dict(None if below is None else below.groups[number])
                    for number, group in enumerate(entry.groups)
                },
            }
        return {
            "benchmark": self.benchmark,
            "model": self.model,
            "baseline": self.baseline.name,
            "samples_compared": self.compared,
            "methods": methods,
        }


@dataclass(frozen=True)
class Row:
    """One metric of one group of one run.

    Attributes:
        group: POPE split, MME category or "captions".
        method: Name of the run.
        metric: Name of the metric.
        value: With its interval; None if the metric is not defined.
        difference: To the baseline, paired; None for the baseline itself or if not defined.
    """

    group: str
    method: str
    metric: str
    value: Interval | None
    difference: Interval | None


def compare(benchmark: str, model: str, runs: Mapping[str, Records], scoring: Scoring) -> Comparison:
    """Score runs on the samples that all of them answered.

    Args:
        benchmark: "pope", "chair" or "mme".
        model: Name of the model.
        runs: The records of each run, by the name it shall have; the first is the baseline.
        scoring: How to score.

    Raises:
        EvalError: There are no runs, or there is no sample that all of them answered.
    """
    if not runs:
        raise EvalError("runs must hold at least one run, got none")
    keep = answered_in_all(runs.values())
    entries = tuple(_entry(benchmark, name, records, scoring, keep) for name, records in runs.items())
    return Comparison(benchmark, model, entries, len(keep))


def _entry(benchmark: str, name: str, records: Records, scoring: Scoring, keep: set[str]) -> Entry:
    failed = {key: str(fields["error"]) for key, fields in records.items() if "error" in fields}
    seconds = sum(float(fields.get("seconds", 0)) for fields in records.values())
    return Entry(name, tuple(score_run(benchmark, records, scoring, keep)), len(records), failed, seconds)


def load_runs(folders: Sequence[Path | str]) -> tuple[str, str, dict[str, Records]]:
    """Return benchmark, model and records of some runs, under names that tell them apart.

    Raises:
        EvalError: A folder holds no run or no records, or the runs are of different benchmarks or questions.
    """
    loaded = [(Path(folder), load_run(folder)) for folder in folders]
    benchmarks = {record["request"]["benchmark"] for _, record in loaded}
    if len(benchmarks) != 1:
        raise EvalError(f"runs must be of one benchmark to be compared, got {', '.join(sorted(benchmarks)) or 'none'}")
    data = [record["resolved"].get("data") for _, record in loaded]
    if any(other != data[0] for other in data):
        raise EvalError("runs must be on the same questions and truth to be compared, got runs on different ones")
    models = list(dict.fromkeys(str(record["request"]["model"]) for _, record in loaded))
    names = [_name_of(record["resolved"]["method"]) for _, record in loaded]
    if len(set(names)) < len(names):
        names = [f"{name} ({folder.name})" for name, (folder, _) in zip(names, loaded, strict=True)]
    if len(set(names)) < len(names):
        raise EvalError(f"runs must have folders of different names, got {', '.join(names)}")
    runs: dict[str, Records] = {}
    for name, (folder, _) in zip(names, loaded, strict=True):
        runs[name] = read_done(folder)
        if not runs[name]:
            raise EvalError(f"{folder}: must hold records.jsonl with at least one record: resume the run first")
    return benchmarks.pop(), ", ".join(models), runs


def _name_of(method: Mapping[str, Any]) -> str:
    """The name of a method as run.json has it, with the tokens that were kept."""
    name = str(method["name"])
    return f"{name}, {method['keep_tokens']} tokens" if "keep_tokens" in method else name
