"""eval/statistics.py: bootstrap intervals."""

import itertools

import numpy as np
import pytest

from damro.eval.errors import EvalError
from damro.eval.statistics import bootstrap, bootstrap_difference, first_column


def f1(means):
    tp, fp, fn = means[..., 0], means[..., 1], means[..., 2]
    with np.errstate(invalid="ignore"):
        return 2 * tp / (2 * tp + fp + fn)


def precision(means):
    with np.errstate(invalid="ignore"):
        return means[..., 0] / (means[..., 0] + means[..., 1])


def test_interval_of_a_share_agrees_with_the_normal_approximation():
    # 300 of 400: 0.75 +- 1.96 * sqrt(0.75 * 0.25 / 400) = 0.75 +- 0.0424
    interval = bootstrap([1] * 300 + [0] * 100, resamples=20_000, seed=1)
    assert interval.estimate == 0.75
    assert interval.low == pytest.approx(0.7076, abs=0.005)
    assert interval.high == pytest.approx(0.7924, abs=0.005)
    assert (interval.level, interval.resamples) == (0.95, 20_000)


def test_interval_agrees_with_all_resamples_enumerated():
    # Three samples have 27 equally likely resamples: enumerate them all, no random numbers.
    samples = np.array([1.0, 2.0, 6.0])
    means = [np.mean(drawn) for drawn in itertools.product(samples, repeat=3)]
    low, high = np.quantile(means, [0.1, 0.9])
    interval = bootstrap(samples, resamples=50_000, level=0.8, seed=3)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-9)


def test_metric_of_column_means_is_the_metric_of_every_resample():
    # Written out sample by sample, with the same draws.
    rng = np.random.default_rng(5)
    samples = rng.integers(0, 2, (40, 3)).astype(float)
    draws = np.random.default_rng(11).integers(40, size=(300, 40))
    values = []
    for drawn in draws:
        tp, fp, fn = (sum(samples[row, column] for row in drawn) for column in range(3))
        values.append(2 * tp / (2 * tp + fp + fn))
    interval = bootstrap(samples, f1, resamples=300, seed=11)
    assert (interval.low, interval.high) == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=1e-12)


def test_same_seed_same_interval():
    samples = np.random.default_rng(0).normal(size=50)
    assert bootstrap(samples, seed=4) == bootstrap(samples, seed=4)
    assert bootstrap(samples, seed=4) != bootstrap(samples, seed=5)


def test_chunks_do_not_change_the_result(monkeypatch):
    samples = np.random.default_rng(0).normal(size=(30, 2))
    whole = bootstrap(samples, resamples=101)
    monkeypatch.setattr("damro.eval.statistics._CHUNK", 600)  # ten resamples at a time
    assert bootstrap(samples, resamples=101) == whole


def test_pairing_removes_what_samples_share():
    rng = np.random.default_rng(2)
    hard = rng.normal(size=200) * 10
    first, second = hard, hard + 1 + rng.normal(size=200) * 0.1
    paired = bootstrap_difference(first, second, paired=True)
    unpaired = bootstrap_difference(first, second, paired=False)
    assert paired.estimate == unpaired.estimate == pytest.approx(1, abs=0.05)
    assert paired.low > 0.95 and paired.high < 1.05
    # 1.96 * sqrt(2 * 100 / 200) = 1.96 either side
    assert unpaired.high - unpaired.low == pytest.approx(3.92, abs=0.5)


def test_paired_difference_of_equal_runs_is_exactly_zero():
    samples = np.random.default_rng(0).integers(0, 2, (60, 3))
    interval = bootstrap_difference(samples, samples, f1, paired=True)
    assert (interval.estimate, interval.low, interval.high) == (0, 0, 0)


def test_difference_is_second_minus_first_and_unpaired_runs_may_differ_in_size():
    interval = bootstrap_difference([0.0] * 30, [1.0] * 50, paired=False)
    assert (interval.estimate, interval.low, interval.high) == (1, 1, 1)


@pytest.mark.parametrize("paired", [True, False])
def test_intervals_hold_the_truth_as_often_as_they_say(paired):
    rng = np.random.default_rng(9)
    held = 0
    for seed in range(200):
        first, second = rng.random(80) < 0.6, rng.random(80) < 0.7
        interval = bootstrap_difference(first, second, paired=paired, resamples=400, seed=seed)
        held += interval.low <= 0.1 <= interval.high
    assert 180 <= held <= 199  # 95 % of 200 is 190


def test_resamples_without_the_denominator_are_left_out_and_counted():
    # One yes among four answers: (3/4)^4 = 32 % of resamples have none, and no precision.
    interval = bootstrap([[1, 0], [0, 0], [0, 0], [0, 0]], precision, resamples=4000)
    assert interval.resamples == pytest.approx(4000 * (1 - 0.75**4), abs=150)
    assert (interval.low, interval.high) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": []}, r"samples must be rows of numbers, at least one, got shape \(0, 1\)"),
        ({"samples": np.zeros((2, 2, 2))}, "samples must be rows of numbers"),
        ({"samples": [1.0, float("nan")]}, "samples must be finite"),
        ({"samples": [1.0], "resamples": 0}, "resamples must be at least 1, got 0"),
        ({"samples": [1.0], "level": 95}, "level must lie between 0 and 1, got 95"),
        ({"samples": [[0, 0]], "metric": precision}, "metric must be defined for the samples, got nan"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(EvalError, match=message):
        bootstrap(**arguments)


def test_bad_pairs():
    with pytest.raises(EvalError, match=r"and its rows, since they are paired, got shapes \(3, 1\) and \(2, 1\)"):
        bootstrap_difference([1, 2, 3], [1, 2], paired=True)
    with pytest.raises(EvalError, match="second must have the columns of first, got shapes"):
        bootstrap_difference([[1, 2]], [[1, 2, 3]], first_column, paired=False)
