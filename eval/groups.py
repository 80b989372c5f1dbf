"""Scores that describe themselves: metrics of groups of samples, with what their intervals are made of.

Importing this module imports neither torch nor numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from damro.eval.errors import EvalError

if TYPE_CHECKING:
    from damro.eval.statistics import Array, Interval, Metric


class Measure(NamedTuple):
    """A metric, and how it is told.

    Attributes:
        compute: From column means to the value.
        label: What it is called in tables.
        unit: "%" for fractions, which are shown in percent; "" for other numbers.
        better: The direction of an improvement; None where there is none.
        plotted: Whether reports draw it.
        digits: How many stand behind the point in reports; grades of 0 to 6 differ in the second one.
    """

    compute: Metric
    label: str
    unit: Literal["%", ""] = "%"
    better: Literal["higher", "lower"] | None = "higher"
    plotted: bool = False
    digits: int = 1

    @property
    def title(self) -> str:
        """Label and unit."""
        return f"{self.label} {self.unit}".rstrip()


def share(part: Callable[[Array], Array], whole: Callable[[Array], Array]) -> Metric:
    """Return the metric that divides one sum of columns by another; NaN where there is nothing to divide by."""

    def metric(means: Array) -> Array:
        import numpy as np

        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(part(means) / whole(means))

    return metric


class Note(NamedTuple):
    """What a reader must know beside a group's metrics: how answers were read, how many could not be.

    Attributes:
        name: What it is called, in a word.
        value: Of the group.
        meaning: What the value counts; told where it puts the metrics in doubt.
        doubtful: Whether it does.
    """

    name: str
    value: str | int
    meaning: str = ""
    doubtful: bool = False


class Difference(NamedTuple):
    """In what a run differs from the DAMRO paper's.

    Attributes:
        text: What, its value here and the paper's.
        harmless: Whether figures may be compared all the same.
    """

    text: str
    harmless: bool = False


@dataclass(frozen=True)
class Group:
    """A part of a run that is scored by itself: a POPE split, the captions of a CHAIR run, an MME category.

    Images are what a bootstrap draws, since the questions of one image belong together.

    Attributes:
        name: Of the split, category or benchmark.
        scores: What the scorer says, as JSON values.
        counts: By image, the columns that the measures are made of.
        measures: By the name of the metric.
        captions: Of captions, each with its mentions.
        notes: Shown with the metrics wherever they are shown.
        beside: Whether the group is another reading of answers that an earlier group has already.
    """

    name: str
    scores: dict[str, Any]
    counts: dict[str, tuple[float, ...]]
    measures: Mapping[str, Measure]
    captions: tuple[Any, ...] = ()
    notes: tuple[Note, ...] = ()
    beside: bool = False

    def intervals(self) -> dict[str, Interval | None]:
        """Return each metric with its 95 % interval."""
        from damro.eval.statistics import bootstrap_metrics

        return bootstrap_metrics(list(self.counts.values()), self._metrics())

    def differences(self, baseline: Group) -> dict[str, Interval | None]:
        """Return by how much each metric differs from a baseline's on the same images, with its 95 % interval.

        Raises:
            EvalError: The two are not of the same images.
        """
        if self.counts.keys() != baseline.counts.keys():
            raise EvalError(f"{self.name}: runs must be compared on the same images, got different ones")
        from damro.eval.statistics import bootstrap_metrics

        below = [baseline.counts[image] for image in self.counts]
        return bootstrap_metrics(list(self.counts.values()), self._metrics(), baseline=below)

    def to_dict(self, baseline: Group | None = None) -> dict[str, Any]:
        """Return scores and notes, intervals under ``ci`` and, with a baseline, differences under ``difference``.

        An end of an interval that is not finite is None.
        """
        told = {note.name: note.value for note in self.notes}
        result: dict[str, Any] = {**told, **self.scores, "ci": {k: _ends(v) for k, v in self.intervals().items()}}
        if baseline is not None:
            found = self.differences(baseline)
            result["difference"] = {
                name: None if value is None else [value.estimate, *(value.ends or (None, None))]
                for name, value in found.items()
            }
        return result

    def _metrics(self) -> dict[str, Metric]:
        return {name: measure.compute for name, measure in self.measures.items()}


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None or interval.ends is None else list(interval.ends)
