"""Spaces with a planted answer: the search must find it, for every seed."""

import csv

import pytest

from benchmarks.planted import PAIR, planted_space, search_planted, solves_planted
from hadaptive.search import Setting
from hadaptive.search.table import LatencyTable

SEEDS = range(5)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["rloo", "gdas"])
@pytest.mark.parametrize("seed", SEEDS)
def test_noise_is_avoided_wherever_it_is(seed, estimator) -> None:
    # Of two candidates one is right only late in the network, the other only early.
    assert solves_planted(estimator, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_what_cannot_be_afforded_is_not_taken(seed, tmp_path) -> None:
    space = planted_space(PAIR, PAIR)
    times = ((1.0,), (1.0,), (50.0, 1.0), (1.0, 50.0))
    setting = Setting(image_size=16, num_classes=10)
    table = LatencyTable(space.fingerprint, setting, times, 1.0, 1.0, 0.0, {}, {}, {})
    found = search_planted(space, seed, tmp_path / "run", table=table, latency_target="5ms")
    assert found[2:] == (1, 0)
    # The target alone would have decided so: alpha itself has learned it.
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        expected = [float(row["expected_ms"]) for row in csv.DictReader(file)]
    assert expected[-1] < 0.5 * expected[0]
