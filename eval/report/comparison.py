"""Runs beside each other: what each is worth, and by how much it differs from the first on the same samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from damro.decoding.errors import ParameterError
from damro.eval.benchmark import (
    Benchmark,
    Group,
    Judged,
    Measure,
    Records,
    Scoring,
    answered,
    answered_in_all,
    score_run,
)
from damro.eval.errors import DataFormatError, EvalError
from damro.eval.runs.costs import Costs
from damro.eval.runs.form import check_form
from damro.eval.runs.identity import check_same_images
from damro.eval.runs.record import RUN_FILE, identity_of, load_run
from damro.eval.runs.request import to_request
from damro.eval.runs.sharding import read_done
from damro.eval.statistics import Interval
from damro.methods import METHODS, Greedy, Recipe, labels
from damro.parameters import build


@dataclass(frozen=True)
class Entry:
    """One run of a comparison.

    Attributes:
        name: Of the method, with what else tells the runs apart.
        groups: Scores on the samples that all runs of the comparison answered; none if the run answered nothing.
        total: Samples with a record.
        failed: The reasons of those without an answer, by sample id.
        seconds: What the answers took together.
        planned: How many samples the run has; None where that is not known.
        records: What was scored.
        judged: What single answers are worth, as far as the benchmark says.
        cost: What the answers cost; None where that was not measured, or is not to be shown.
    """

    name: str
    groups: tuple[Group, ...]
    total: int
    failed: Mapping[str, str]
    seconds: float
    planned: int | None = None
    records: Records = field(default_factory=dict, repr=False)
    judged: Mapping[str, Judged] = field(default_factory=dict, repr=False)
    cost: Costs | None = None

    @property
    def whole(self) -> Group:
        """All splits together, or the only group; as answers are read first, where they are read in several ways."""
        return [group for group in self.groups if not group.beside][-1]

    @property
    def share(self) -> str | None:
        """Such as "90 of 270 samples", where samples of the run have no record; else None."""
        return share_of(self.total, self.planned)


@dataclass(frozen=True)
class Comparison:
    """Runs of one benchmark, scored on the same samples; the first is what the others are compared with.

    Attributes:
        benchmark: Its name.
        model: Name of the model, or of the models.
        entries: The runs.
        compared: How many samples all of them answered.
        unscored: Runs without a single answer: no part of the comparison, but told.
    """

    benchmark: str
    model: str
    entries: tuple[Entry, ...]
    compared: int
    unscored: tuple[Entry, ...] = ()

    @property
    def baseline(self) -> Entry:
        """The first run."""
        return self.entries[0]

    def rows(self) -> list[Row]:
        """Return every metric of every group of every run."""
        return list(self._rows)

    @cached_property
    def _rows(self) -> tuple[Row, ...]:
        """Of thousands of images, intervals take seconds, and tables and charts ask for them again and again."""
        rows: list[Row] = []
        for number, group in enumerate(self.baseline.groups):
            for entry in self.entries:
                other = entry.groups[number]
                differences = other.differences(group) if entry is not self.baseline else {}
                rows += [
                    Row(group.name, entry.name, metric, other.measures[metric], interval, differences.get(metric))
                    for metric, interval in other.intervals().items()
                ]
        return tuple(rows)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        methods = {}
        for entry in (*self.entries, *self.unscored):
            below = None if entry is self.baseline else self.baseline
            methods[entry.name] = {
                "samples": entry.total,
                **({} if entry.share is None else {"samples_planned": entry.planned}),
                "failed": len(entry.failed),
                "seconds": round(entry.seconds, 3),
                **({} if entry.cost is None else {"cost": entry.cost.to_dict()}),
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


def with_costs(comparison: Comparison, costs: Mapping[str, Costs | None]) -> Comparison:
    """Return a comparison that also shows what the answers of its runs cost.

    Args:
        comparison: Of the runs.
        costs: By the name of a run; None where it was not measured.
    """
    entries = tuple(replace(entry, cost=costs.get(entry.name)) for entry in comparison.entries)
    return replace(comparison, entries=entries)


@dataclass(frozen=True)
class Row:
    """One metric of one group of one run.

    Attributes:
        group: POPE split, MME category or "captions".
        method: Name of the run.
        metric: Name of the metric.
        measure: How it is told.
        value: With its interval; None if the metric is not defined.
        difference: To the baseline, paired; None for the baseline itself or if not defined.
    """

    group: str
    method: str
    metric: str
    measure: Measure
    value: Interval | None
    difference: Interval | None


class PartialRunError(EvalError):
    """A run has no record of some of its samples, and was not asked for as it is."""


def share_of(recorded: int, planned: int | None) -> str | None:
    """Return how many samples of a run are recorded, in words; None if that is all, or not known.

    Example:
        >>> share_of(90, 270), share_of(270, 270), share_of(90, None)
        ('90 of 270 samples', None, None)
    """
    return None if planned is None or recorded >= planned else f"{recorded} of {planned} samples"


def check_whole(where: str, recorded: int, planned: int | None) -> None:
    """Refuse a run that lacks samples.

    Raises:
        PartialRunError: It does; says how many there are.
    """
    share = share_of(recorded, planned)
    if share is not None:
        raise PartialRunError(
            f"{where} must hold all samples of its run to be a result, holds {share}: give the same damro run command "
            "again to go on, or --partial to see what there is"
        )


def compare(
    benchmark: Benchmark,
    model: str,
    runs: Mapping[str, Records],
    scoring: Scoring,
    planned: Mapping[str, int] | None = None,
) -> Comparison:
    """Score runs on the samples that all of them answered.

    Args:
        benchmark: Whose runs they are.
        model: Name of the model.
        runs: The records of each run, by the name it shall have; the first is the baseline.
        scoring: How to score.
        planned: How many samples a run has, as far as known; where records are fewer, that is told.

    A run without a single answer hides nothing of the others: it is left out and told (`Comparison.unscored`). If it is
    the first, the next one is the baseline.

    Raises:
        EvalError: There are no runs, none has an answer, or there is no sample that all others answered.
    """
    if not runs:
        raise EvalError("runs must hold at least one run, got none")
    good = {name: records for name, records in runs.items() if answered(records)}
    keep = answered_in_all(good.values())
    if good and not keep:
        raise EvalError(
            f"runs must have an answered sample in common to be compared, got none among {', '.join(good)}: "
            "score them one by one"
        )
    if keep:
        kept = {name: {key: records[key] for key in records if key in keep} for name, records in good.items()}
        scoring = benchmark.settle_scoring(scoring, kept)
    # Of no run with answers, scoring the first says what went wrong.
    entries = tuple(_entry(benchmark, name, of, scoring, keep) for name, of in (good or runs).items())
    unscored = tuple(_entry(benchmark, name, of, scoring, None) for name, of in runs.items() if name not in good)
    entries, unscored = (tuple(_with_planned(entry, planned or {}) for entry in of) for of in (entries, unscored))
    return Comparison(benchmark.name, model, entries, len(keep), unscored)


def _with_planned(entry: Entry, planned: Mapping[str, int]) -> Entry:
    return replace(entry, planned=planned.get(entry.name))


def _entry(benchmark: Benchmark, name: str, records: Records, scoring: Scoring, keep: set[str] | None) -> Entry:
    """A run with its scores on some samples; None scores nothing."""
    failed = {key: str(fields["error"]) for key, fields in records.items() if "error" in fields}
    seconds = sum(_seconds(key, fields) for key, fields in records.items())
    if keep is None:
        return Entry(name, (), len(records), failed, seconds)
    groups = tuple(score_run(benchmark, records, scoring, keep))
    scored = {key: fields for key, fields in records.items() if key in keep}
    judged = benchmark.judge(scored, scoring, groups)
    return Entry(name, groups, len(records), failed, seconds, records=scored, judged=judged)


def _seconds(key: str, fields: Mapping[str, Any]) -> float:
    """What an answer took; an older version did not record it."""
    value = fields.get("seconds", 0)
    if not isinstance(value, int | float):
        raise DataFormatError(f"record {key!r} must have a number of seconds, got {value!r:.80}: restore the records")
    return float(value)


class Loaded(NamedTuple):
    """Recorded runs that can be compared.

    Attributes:
        benchmark: Of the first run, with its parameters.
        model: Name of the model, or of the models.
        runs: The records of each run, under a name that tells it apart.
        records: The ``run.json`` of each.
    """

    benchmark: Benchmark
    model: str
    runs: dict[str, Records]
    records: dict[str, dict[str, Any]]

    @property
    def planned(self) -> dict[str, int]:
        """How many samples each run has, as far as its ``run.json`` tells."""
        return {name: record["samples"] for name, record in self.records.items() if "samples" in record}


def find_runs(path: Path | str) -> list[Path]:
    """Return the folder of a run as it is, and of a folder of runs those in it, the oldest first but plain decoding."""
    folder = Path(path)
    inside = [] if (folder / RUN_FILE).exists() else [one.parent for one in folder.glob(f"*/{RUN_FILE}")]
    if not inside:
        return [folder]
    records = {one: load_run(one) for one in sorted(inside)}
    plain = {one: to_request(record).recipe == Recipe(Greedy()) for one, record in records.items()}
    return sorted(records, key=lambda one: (not plain[one], str(records[one].get("created"))))


def load_runs(folders: Sequence[Path | str], *, partial: bool = False) -> Loaded:
    """Read recorded runs of one benchmark, on the same questions and images.

    Args:
        folders: Of the runs.
        partial: Whether runs may lack samples.

    Raises:
        PartialRunError: A run lacks samples, and ``partial`` is not set.
        ForeignRecordError: A folder holds records of another run.
        ChangedImageError: Two runs looked at different images of one name.
        EvalError: A folder holds no run or no records, or the runs are of different benchmarks or questions.
    """
    loaded = [(Path(folder), load_run(folder)) for folder in folders]
    for folder, record in loaded:
        check_form(folder, record)
    benchmarks = {record["request"]["benchmark"] for _, record in loaded}
    if len(benchmarks) != 1:
        raise EvalError(f"runs must be of one benchmark to be compared, got {', '.join(sorted(benchmarks)) or 'none'}")
    data = [record["resolved"].get("data") for _, record in loaded]
    if any(other != data[0] for other in data):
        raise EvalError("runs must be on the same questions and truth to be compared, got runs on different ones")
    models = list(dict.fromkeys(str(record["request"]["model"]) for _, record in loaded))
    names = _names([record["resolved"]["method"] for _, record in loaded])
    if len(set(names)) < len(names):
        names = [f"{name} ({folder.name})" for name, (folder, _) in zip(names, loaded, strict=True)]
    if len(set(names)) < len(names):
        raise EvalError(f"runs must have folders of different names, got {', '.join(names)}")
    runs: dict[str, Records] = {}
    for name, (folder, record) in zip(names, loaded, strict=True):
        runs[name] = read_done(folder, identity_of(record).check)
        if not runs[name]:
            raise EvalError(f"{folder}: must hold records.jsonl with at least one record: resume the run first")
        if not partial:
            check_whole(str(folder), len(runs[name]), record.get("samples"))
    check_same_images(runs)
    records = {name: record for name, (_, record) in zip(names, loaded, strict=True)}
    return Loaded(to_request(loaded[0][1]).asked, ", ".join(models), runs, records)


def _names(methods: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of methods as run.json has them: by the parameters that differ, and with the tokens that were kept."""
    names = labels([_recipe(method) for method in methods])
    return [
        f"{name}, {method['keep_tokens']} tokens" if "keep_tokens" in method else name
        for name, method in zip(names, methods, strict=True)
    ]


def _recipe(method: Mapping[str, Any]) -> Recipe:
    owner = METHODS.find(str(method["method"]))
    return Recipe(build(owner, method["parameters"], ParameterError, owner.name), float(method["temperature"]))
