"""What speaks against a search is said: by each rule alone, and by searches that cannot have learned anything."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import WIDE_SPACE, searcher_of

from hadaptive.search import SearchConfig, Skip, published_space, search
from hadaptive.search.doubts import (
    collapsed,
    far_from_target,
    few_turns,
    misses,
    no_better_than_chance,
    no_better_than_random,
    undecided,
)
from hadaptive.search.front import Judged
from hadaptive.search.table import LatencyTable


def judged(accuracy: float, generation: int = 0) -> Judged:
    return Judged(generation, (0,), "x", accuracy, 1.0, 10, 10, None)


def test_collapse() -> None:
    space = published_space()
    skips = tuple(p.index(Skip()) if Skip() in p else 0 for p in space.positions)
    (said,) = collapsed(space, skips)
    assert "the search collapsed: 10 of 10 blocks" in said
    assert list(collapsed(space, (0,) * len(space.positions))) == []


def test_scores_that_say_little_or_something_else() -> None:
    space, first = published_space(), (0,) * len(published_space().positions)
    even = [torch.full((len(p),), 1 / len(p)) for p in space.positions]
    (said,) = undecided(first, even)
    assert "the search never decided (relative entropy 1.00)" in said
    sure = [torch.nn.functional.one_hot(torch.tensor(0), len(p)).float() for p in space.positions]
    assert list(undecided(first, sure)) == []
    others = [torch.nn.functional.one_hot(torch.tensor(len(p) - 1), len(p)).float() for p in space.positions]
    (said,) = undecided(first, others)
    choices = sum(len(p) > 1 for p in space.positions)
    assert f"at {choices} of {choices} positions the target chose a candidate that is less likely" in said


@pytest.mark.parametrize(("accuracy", "doubted"), [(0.05, True), (0.1, True), (0.15, True), (0.17, False)])
def test_chance(accuracy: float, doubted: bool) -> None:
    said = list(no_better_than_chance("the best network", judged(accuracy), 100, 10))  # a standard error is 3%
    assert bool(said) is doubted
    if said:
        assert f"the best network is no better than chance ({accuracy:.1%} of 100 images)" in said[0]


def test_turns() -> None:
    assert list(few_turns(4, 8, 10)) == []
    (said,) = few_turns(4, 7, 10)
    assert "trained in about 18 steps, which says little of it: raise --epochs to 8" in said


def test_latency() -> None:
    assert list(far_from_target(1.2, 1.0)) == list(far_from_target(0.8, 1.0)) == []
    assert "expect, 1.3 ms, is far from the target of 1 ms" in "".join(far_from_target(1.3, 1.0))
    assert "expect, 0.7 ms, is far" in "".join(far_from_target(0.7, 1.0))
    assert list(misses(1.0, 1.0)) == list(misses(None, 1.0)) == list(misses(1.0, None)) == []
    assert "2.5 ms for 2 ms, and no other that was tried is: give --latency-target 1.6ms" in "".join(
        misses(2.5, 2.0)
    )


def test_random_networks() -> None:
    found, drawn = judged(0.9, 3), [judged(0.8), judged(0.5)]
    assert list(no_better_than_random(found, drawn, 1000)) == []
    (said,) = no_better_than_random(found, drawn, 4)
    assert "the best of 2 networks drawn at random (90.0% and 80.0%, standard error 15.0%)" in said
    assert list(no_better_than_random(found, [], 1)) == []


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """Images of noise in three folders: their labels say nothing."""
    generator = np.random.default_rng(0)
    for number in range(150):
        folder = tmp_path / "noise" / "abc"[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "noise"


@pytest.mark.parametrize(
    "how",
    [{"estimator": "rloo"}, {"estimator": "gdas"}, {"method": "evolution", "population": 6, "generations": 4}],
)
def test_labels_that_say_nothing(how: dict[str, Any], noise: Path, tmp_path: Path) -> None:
    WIDE_SPACE.save(tmp_path / "wide.json")
    settings = {"space": str(tmp_path / "wide.json"), "data": str(noise), "image_size": 12, "epochs": 10} | how
    settings |= {"batch_size": 16, "output": tmp_path / "run", "cpu": True, "val_fraction": 0.3}
    if "method" in how:
        settings |= {"population": 6, "generations": 4}
    said = " ".join(search(SearchConfig.from_recipe("folder", **settings), quiet=True)["warnings"])
    assert "is no better than chance" in said or "is no better on the supernet than" in said


def test_little_data(noise: Path, tmp_path: Path) -> None:
    WIDE_SPACE.save(tmp_path / "wide.json")
    settings = {
        "space": str(tmp_path / "wide.json"),
        "data": str(noise),
        "image_size": 12,
        "epochs": 1,
        "cpu": True,
    }
    config = SearchConfig.from_recipe("folder", **settings, batch_size=16, output=tmp_path / "run")
    assert "a candidate was trained in about" in " ".join(search(config, quiet=True)["warnings"])


def test_a_network_that_is_slower_than_predicted_is_not_taken(tmp_path: Path, monkeypatch) -> None:
    """The table is corrected by what was measured, and asked again; a target that cannot be met is said."""
    config = SearchConfig.from_recipe("quick", image_size=16, train_size=256, cpu=True, output=tmp_path / "run")
    searcher = searcher_of(config, WIDE_SPACE)
    times = tuple(tuple(0.0 if isinstance(c, Skip) else 1.0 for c in p) for p in WIDE_SPACE.positions)
    setting = config.setting(10, "cpu")
    searcher.table = LatencyTable(
        WIDE_SPACE.fingerprint, setting, times, 1.0, 1.0, 0.0, {}, {}, {"device": "another"}
    )
    searcher.target = 6.0
    first = [torch.nn.functional.one_hot(torch.tensor(0), len(p)) + 0.1 for p in WIDE_SPACE.positions]
    sure = [p / p.sum() for p in first]  # of blocks, rather than of none
    blocks: list[int] = []

    def slow(specs: dict[str, Any]) -> dict[str, float]:
        blocks.append(sum(map(len, specs["found"].stages)))
        return {"found": 1.3 * (2 + blocks[-1])}

    monkeypatch.setattr(searcher, "_measure", slow)
    choice, measured = searcher._within(sure)
    assert measured is not None
    assert measured["found"] <= 6.0
    assert blocks == [3, 2]
    monkeypatch.setattr(searcher, "_measure", lambda specs: {"found": 100.0})
    choice, measured = searcher._within(sure)
    assert WIDE_SPACE.check_choice(choice) is None
    assert list(misses(measured["found"], searcher.target))
    monkeypatch.setattr(searcher, "_measure", lambda specs: None)
    assert searcher._within(sure)[1] is None
