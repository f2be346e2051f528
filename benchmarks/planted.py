"""Search problems with a known answer: one candidate of two says nothing about the image."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hadaptive.engine.accelerator import create_accelerator
from hadaptive.models.layer_spec import BlockSpec, ConvSpec, ach, ghost
from hadaptive.search.config import SearchConfig
from hadaptive.search.folder import SearchFolder
from hadaptive.search.launch import configured_data, new_searcher
from hadaptive.search.searcher import Searcher
from hadaptive.search.space import SearchSpace
from hadaptive.search.table import LatencyTable

PAIR = (ghost(2, 3, 16), ach(8, 3, 16))
NOISE = ((2, 1), (3, 0))  # ACH is right only early in the network, Ghost only late
ANSWER = (0, 1)


class Noise(nn.Module):
    """A candidate that says nothing about its input."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.randn_like(x) + 0 * x  # so that what lies before it is part of the graph


def planted_space(*positions: tuple[BlockSpec, ...]) -> SearchSpace:
    """A small network with these positions after its first block."""
    return SearchSpace("planted", (ConvSpec(16, 3, 2),), (), (((ghost(2, 3, 16),), *positions),), 64, 64)


def search_planted(
    space: SearchSpace,
    seed: int,
    folder: Path,
    noise: Iterable[tuple[int, int]] = (),
    table: LatencyTable | None = None,
    **changes: Any,
) -> tuple[int, ...]:
    """Search on the digits, with noise in place of these (position, candidate); the choice found."""
    settings = {"epochs": 4, "image_size": 16, "space": "planted", "seed": seed, "cpu": True} | changes
    config = SearchConfig.from_recipe("quick", **settings)
    data, config = configured_data(config)
    accelerator = create_accelerator(config.execution, unused_parameters=True)
    searcher = new_searcher(config, space, accelerator, data, quiet=True)
    assert isinstance(searcher, Searcher)
    for position, candidate in noise:
        searcher.supernet.positions[position][candidate] = Noise()  # pyright: ignore[reportIndexIssue]
    searcher.use(table)
    return tuple(searcher.fit(SearchFolder(SearchFolder.create(folder).path))["choice"])


def solves_planted(estimator: str, seed: int) -> bool:
    """Whether a search with this estimator finds the two candidates that are not noise."""
    with tempfile.TemporaryDirectory() as folder:
        found = search_planted(planted_space(PAIR, PAIR), seed, Path(folder) / "run", NOISE, estimator=estimator)
    return found[2:] == ANSWER
