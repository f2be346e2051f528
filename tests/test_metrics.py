"""Intervals: as SciPy has them, and what they say of too few values."""

import math

import pytest
import torch
from scipy import stats

from hadaptive.metrics import Evaluation, mean_interval, share_text, welch_difference, with_interval

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


def test_one_value_against_a_sample_has_the_interval_of_a_prediction() -> None:
    """t s sqrt(1 + 1/n) of the sample: of samples of a known law, 95% of new values lie in it."""
    difference, half = welch_difference([86.0], B)
    deviation = float(torch.tensor(B, dtype=torch.float64).std())
    assert half == pytest.approx(stats.t.ppf(0.975, 4) * deviation * math.sqrt(1 + 1 / 5))
    assert welch_difference(B, [86.0]) == pytest.approx((-difference, half))
    drawn = stats.norm.rvs(size=(2000, 11), random_state=0)
    inside = [abs(d) <= h for d, h in (welch_difference(row[:1], row[1:]) for row in drawn)]
    assert 0.935 < sum(inside) / len(inside) < 0.965


def test_welch_difference_where_one_group_is_all_the_same() -> None:
    _, half = welch_difference([1.0, 1.0, 1.0], A)
    assert half == pytest.approx(stats.t.ppf(0.975, 2) * stats.sem(A))


def test_a_mean_without_an_interval_is_a_mean() -> None:
    assert with_interval(1.0, 0.5) == "1.00 ± 0.50"
    assert with_interval(1.0, 0.5, "+") == "+1.00 ± 0.50"
    assert with_interval(1.0, math.nan) == "1.00"


def test_small_parts_are_told_by_their_counts() -> None:
    assert share_text(1, 5) == "1 of 5 (20%)"
    assert share_text(1, 5, interval=True) == "1 of 5 (20%, 95% interval 4% to 62%)"
    assert share_text(875, 1000) == "87.50%"
    assert share_text(875, 1000, interval=True) == "87.50% (95% interval 85.31% to 89.41%) on 1,000 images"
    assert share_text(0, 0) == share_text(0, 0, interval=True) == "of no images"


def test_confusion_counts_and_classes_without_images() -> None:
    targets, predictions = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 1, 1, 1, 0])
    found = Evaluation(targets, predictions, targets > 9, targets.float(), 3, [])
    assert found.confusion().tolist() == [[1, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert found.confusion().dtype == torch.int64
    rows = found.per_class(["a", "b", "c"])
    assert rows[0] == {"class": "a", "images": 2, "recall": 0.5, "precision": 0.5}
    assert rows[2] == {"class": "c", "images": 0, "recall": None, "precision": None}
