"""Bootstrap intervals: how much of a number is the choice of samples.

Every metric here is a function of column means. A sample is a row of numbers, such as (is tp, is fp, is tn, is fn) of
one question, or (hallucinated mentions, mentions) of one caption; precision is mean(tp) / (mean(tp) + mean(fp)), CHAIRi
mean(hallucinated) / mean(mentions). Resampling rows and taking the metric of the new means is then one matrix product
away for any metric. Samples that belong together, as the six questions of a POPE image do, can be resampled together:
add up their rows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from damro.eval.errors import EvalError

Array = NDArray[np.float64]
Metric = Callable[[Array], Array]
"""Column means ``(..., columns)`` to values ``(...)``; a value that is not defined is NaN."""

Statistic = Callable[[Array], Array]
"""How often each sample is drawn ``(resamples, samples)``, whole numbers, to values ``(resamples,)``, NaN for none."""

_CHUNK = 4_000_000  # numbers gathered at once: 32 MB


@dataclass(frozen=True)
class Interval:
    """A number with its percentile bootstrap interval.

    One sample says nothing of how much samples differ: its ends are infinite.

    Attributes:
        estimate: The metric of the samples themselves.
        low: Lower end.
        high: Upper end.
        level: Share of resamples inside, e.g. 0.95.
        resamples: Number of resamples in which the metric was defined.
        samples: Number of samples that were drawn from; None where it is not known.
    """

    estimate: float
    low: float
    high: float
    level: float
    resamples: int
    samples: int | None = None

    @property
    def ends(self) -> tuple[float, float] | None:
        """Lower and upper end; None where they are not finite.

        Example:
            >>> bootstrap([1.0]).ends is None, bootstrap([1.0, 1.0]).ends
            (True, (1.0, 1.0))
        """
        return (self.low, self.high) if math.isfinite(self.low) and math.isfinite(self.high) else None


def first_column(means: Array) -> Array:
    """The plain mean: the metric of samples that are single numbers.

    Example:
        >>> float(first_column(np.array([0.25])))
        0.25
    """
    return np.asarray(means[..., 0])


def bootstrap(
    samples: ArrayLike,
    metric: Metric = first_column,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return a metric with its percentile bootstrap interval.

    Args:
        samples: ``(samples, columns)``, or ``(samples,)`` for one column.
        metric: The metric as a function of column means.
        resamples: How often to draw as many samples with replacement.
        level: Share of resamples that the interval holds, in (0, 1).
        seed: Seed of the draws.

    Raises:
        EvalError: An argument is out of range, the samples are not finite numbers, or the metric is not defined for
            them.

    Example:
        >>> interval = bootstrap([1.0] * 80 + [0.0] * 20)
        >>> interval.estimate, 0.70 < interval.low < 0.75, 0.85 < interval.high < 0.90
        (0.8, True, True)
    """
    rows = _rows(samples, "samples")
    rng = _generator(resamples, level, seed)
    means = _resampled_means(rows, resamples, rng)
    return _interval(metric(rows.mean(axis=0)), metric(means), level, len(rows))


def bootstrap_difference(
    first: ArrayLike,
    second: ArrayLike,
    metric: Metric = first_column,
    *,
    paired: bool,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return ``metric(second) - metric(first)`` with its percentile bootstrap interval.

    Args:
        first: ``(samples, columns)``, or ``(samples,)`` for one column.
        second: Likewise, with as many columns.
        metric: The metric as a function of column means.
        paired: Whether row i of both is the same question or caption. Then both are drawn together, and what makes
            a sample hard for both leaves the difference; else each is drawn for itself.
        resamples: How often to draw as many samples with replacement.
        level: Share of resamples that the interval holds, in (0, 1).
        seed: Seed of the draws.

    Raises:
        EvalError: As `bootstrap`; or the two have different columns, or, paired, different numbers of rows.

    Example:
        >>> before, after = [1.0, 0.0] * 50, [1.0, 0.0] * 49 + [1.0, 1.0]
        >>> paired = bootstrap_difference(before, after, paired=True)
        >>> unpaired = bootstrap_difference(before, after, paired=False)
        >>> paired.high - paired.low < unpaired.high - unpaired.low
        True
    """
    one, two = _rows(first, "first"), _rows(second, "second")
    if one.shape[1] != two.shape[1] or (paired and len(one) != len(two)):
        raise EvalError(
            f"second must have the columns of first{' and its rows, since they are paired' if paired else ''}, "
            f"got shapes {one.shape} and {two.shape}"
        )
    rng = _generator(resamples, level, seed)
    if paired:
        together = _resampled_means(np.hstack([one, two]), resamples, rng)
        means_one, means_two = np.hsplit(together, 2)
    else:
        means_one, means_two = (_resampled_means(rows, resamples, rng) for rows in (one, two))
    estimate = metric(two.mean(axis=0)) - metric(one.mean(axis=0))
    return _interval(estimate, metric(means_two) - metric(means_one), level, min(len(one), len(two)))


def _resampled_means(rows: Array, resamples: int, rng: np.random.Generator) -> Array:
    chunk = max(1, _CHUNK // rows.size)
    means = []
    for start in range(0, resamples, chunk):
        drawn = rng.integers(len(rows), size=(min(chunk, resamples - start), len(rows)))
        means.append(rows[drawn].mean(axis=1))  # (chunk, samples, columns) -> (chunk, columns)
    return np.concatenate(means)


def _interval(estimate: Array, values: Array, level: float, samples: int) -> Interval:
    defined = values[np.isfinite(values)]
    if not np.isfinite(estimate) or not len(defined):
        raise EvalError(f"metric must be defined for the samples, got {estimate}: nothing of its denominator is there")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]) if samples > 1 else (-math.inf, math.inf)
    return Interval(float(estimate), float(low), float(high), level, len(defined), samples)


def _generator(resamples: int, level: float, seed: int) -> np.random.Generator:
    if resamples < 1:
        raise EvalError(f"resamples must be at least 1, got {resamples}")
    if not 0 < level < 1:
        raise EvalError(f"level must lie between 0 and 1, got {level}: 0.95 for a 95 % interval")
    return np.random.default_rng(seed)


def _rows(samples: ArrayLike, name: str) -> Array:
    rows = np.asarray(samples, dtype=np.float64)
    rows = rows[:, None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or not rows.size:
        raise EvalError(f"{name} must be rows of numbers, at least one, got shape {rows.shape}")
    if not np.isfinite(rows).all():
        raise EvalError(f"{name} must be finite, got NaN or infinity")
    return rows


def bootstrap_metrics(
    samples: ArrayLike,
    metrics: Mapping[str, Metric],
    *,
    baseline: ArrayLike | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval | None]:
    """Return several metrics of the same samples, or their differences to a baseline, with their intervals.

    All metrics are taken of the same resamples; those of equally many samples with one seed are drawn once.

    Args:
        samples: ``(samples, columns)``.
        metrics: Each as a function of column means.
        baseline: ``(samples, columns)``, row by row the same samples: each value is then the metric of ``samples``
            less that of ``baseline``, both drawn together (paired).
        resamples: How often to draw as many samples with replacement.
        level: Share of resamples that an interval holds, in (0, 1).
        seed: Seed of the draws.

    Returns:
        By the name of the metric; None where it is not defined for the samples.

    Raises:
        EvalError: An argument is out of range, the samples are not finite numbers, or baseline has another shape.

    Example:
        >>> counts = [[1, 0], [1, 1], [0, 1], [1, 0]]
        >>> found = bootstrap_metrics(counts, {"a": first_column, "never": lambda means: means[..., 1] * np.nan})
        >>> found["a"].estimate, found["never"]
        (0.75, None)
    """
    rows = _rows(samples, "samples")
    below = None if baseline is None else _rows(baseline, "baseline")
    if below is not None and below.shape != rows.shape:
        raise EvalError(f"baseline must have the shape of samples, since they are paired, got {below.shape}")
    _generator(resamples, level, seed)  # checks the arguments
    weights = _resample_weights(len(rows), resamples, seed)
    results: dict[str, Interval | None] = {}
    for name, metric in metrics.items():
        estimate, values = metric(rows.mean(axis=0)), metric(weights @ rows)
        if below is not None:
            estimate, values = estimate - metric(below.mean(axis=0)), values - metric(weights @ below)
        defined = np.isfinite(estimate) and np.isfinite(values).any()
        results[name] = _interval(estimate, values, level, len(rows)) if defined else None
    return results


def bootstrap_statistic(
    statistic: Statistic, samples: int, *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval | None:
    """Return a statistic that is no function of column means, such as one of pairs of samples, with its interval.

    Statistics of equally many samples with one seed are taken of the same resamples, so that a difference of two is a
    statistic, too.

    Args:
        statistic: A function of how often each sample is drawn, once each for the samples themselves.
        samples: Number of samples.
        resamples: How often to draw as many samples with replacement.
        level: Share of resamples that the interval holds, in (0, 1).
        seed: Seed of the draws.

    Returns:
        None where the statistic is not defined for the samples themselves.

    Raises:
        EvalError: An argument is out of range.

    Example:
        >>> values = np.array([1.0, 2.0, 3.0])
        >>> bootstrap_statistic(lambda counts: counts @ values / counts.sum(axis=-1), 3).estimate
        2.0
    """
    if samples < 1:
        raise EvalError(f"samples must be at least 1, got {samples}")
    _generator(resamples, level, seed)  # checks the arguments
    estimate = statistic(np.ones((1, samples)))[0]
    values = statistic(np.rint(_resample_weights(samples, resamples, seed) * samples))
    defined = np.isfinite(estimate) and np.isfinite(values).any()
    return _interval(estimate, values, level, samples) if defined else None


@functools.lru_cache(maxsize=8)
def _resample_weights(count: int, resamples: int, seed: int) -> Array:
    """How much of each resample every sample is, ``(resamples, count)``."""
    drawn = np.random.default_rng(seed).integers(count, size=(resamples, count))
    weights = np.zeros((resamples, count))
    for number, sample in enumerate(drawn):
        weights[number] = np.bincount(sample, minlength=count)
    return weights / count
