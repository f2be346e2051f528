"""Intervals: as SciPy has them, and what they say of too few values."""

import math

import pytest
from scipy import stats

from hadaptive.metrics import mean_interval, welch_difference

A, B = [86.1, 86.4, 85.9], [84.1, 85.9, 85.2, 84.4, 86.0]


def test_mean_interval() -> None:
    values = [84.1, 85.9, 85.2]
    mean, half = mean_interval(values)
    low, high = stats.t.interval(0.95, 2, loc=mean, scale=stats.sem(values))
    assert mean == pytest.approx(sum(values) / 3)
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert mean_interval([1.0])[1] != mean_interval([1.0])[1]  # NaN


def test_welch_difference_is_scipys() -> None:
    difference, half = welch_difference(A, B)
    interval = stats.ttest_ind(A, B, equal_var=False).confidence_interval(0.95)
    assert (difference - half, difference + half) == pytest.approx((interval.low, interval.high))
    assert welch_difference(B, A) == pytest.approx((-difference, half))


def test_welch_difference_of_single_values() -> None:
    difference, half = welch_difference([86.0], B)
    assert difference == pytest.approx(86.0 - sum(B) / len(B))
    assert half > welch_difference([86.0] * 2, B)[1]
    assert math.isnan(welch_difference([1.0], [2.0])[1])
    assert welch_difference([1.0, 1.0], [0.0, 0.0]) == (1.0, 0.0)
