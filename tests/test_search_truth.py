"""Spaces with a planted answer: the search must find it, for every seed."""

import pytest
import torch
from torch import Tensor, nn

from hadaptive.models.spec import ConvSpec, ach, ghost
from hadaptive.search import SearchConfig, SearchSpace, Setting
from hadaptive.search.folder import SearchFolder
from hadaptive.search.latency import LatencyTable
from hadaptive.search.loop import Searcher
from hadaptive.train.setup import create_accelerator

SEEDS = range(5)


class Noise(nn.Module):
    """A candidate that says nothing about its input."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.randn_like(x) + 0 * x  # so that what lies before it is part of the graph


def twins(*blocks):
    stem = (ConvSpec(16, 3, 2),)
    return SearchSpace("planted", stem, (), (((ghost(2, 3, 16),), *blocks),), 64, 64)


def searched(space: SearchSpace, seed: int, tmp_path, planted=(), table=None, **changes) -> tuple[int, ...]:
    settings = {"epochs": 4, "image_size": 16, "space": "planted", "seed": seed} | changes
    config = SearchConfig.from_recipe("quick", **settings)
    searcher = Searcher(config, space, create_accelerator(config), quiet=True)
    for position, candidate in planted:
        searcher.supernet.positions[position][candidate] = Noise()
    searcher.use(table)
    run = SearchFolder(SearchFolder.create(tmp_path / f"planted-{seed}").path)
    return tuple(searcher.fit(run)["choice"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_noise_is_avoided_wherever_it_is(seed, tmp_path) -> None:
    pair = (ghost(2, 3, 16), ach(8, 3, 16))
    # The second candidate is right only late in the network, the first only early.
    planted = [(2, 1), (3, 0)]
    assert searched(twins(pair, pair), seed, tmp_path, planted)[2:] == (0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_what_cannot_be_afforded_is_not_taken(seed, tmp_path) -> None:
    pair = (ghost(2, 3, 16), ach(8, 3, 16))
    space = twins(pair, pair)
    times = ((1.0,), (1.0,), (50.0, 1.0), (1.0, 50.0))
    setting = Setting(image_size=16, num_classes=10)
    table = LatencyTable(space.fingerprint, setting, times, 1.0, 1.0, 0.0, {}, {}, {})
    found = searched(space, seed, tmp_path, table=table, latency_target="5ms")
    assert found[2:] == (1, 0)
    # And alpha itself has learned it, before the target decides.
    rows = (tmp_path / f"planted-{seed}" / "metrics.csv").read_text().splitlines()
    first, last = (float(rows[i].split(",")[5]) for i in (1, -1))
    assert last < 0.5 * first
