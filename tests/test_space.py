"""Search spaces: what they hold, what they refuse, and that a file says all of it."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hadaptive.cli import main
from hadaptive.models import HadaptiveNet
from hadaptive.models.layer_spec import ConvSpec, ach, ghost
from hadaptive.models.published import HADAPTIVE_NET_L, HADAPTIVE_NET_M, HADAPTIVE_NET_S
from hadaptive.search import SearchSpace, Skip, published_space, rich_space

SPACES = {"published": published_space(), **{f"rich-{name}": rich_space(name) for name in "sml"}}
each_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())


def tiny(*positions: tuple) -> SearchSpace:
    return SearchSpace("tiny", (ConvSpec(8, 2, 2),), (), (positions,))


def test_the_published_space_is_the_papers() -> None:
    space = published_space()
    assert space.size == 2 * 2 * 4**3 * 3 ** (1 + 5 + 4)
    assert len(space.positions) == 3 + 2 + 6 + 5
    for position in space.positions:  # in the published code two of them were one
        assert len({repr(candidate) for candidate in position}) == len(position)


@pytest.mark.parametrize(
    ("space", "spec"),
    [
        ("published", HADAPTIVE_NET_S),
        ("rich-s", HADAPTIVE_NET_S),
        ("rich-m", HADAPTIVE_NET_M),
        ("rich-l", HADAPTIVE_NET_L),
    ],
)
def test_published_networks_are_points(space: str, spec) -> None:
    choice = SPACES[space].find(spec)
    assert choice is not None
    assert SPACES[space].build(choice, name=spec.name) == spec


def test_a_network_outside_is_not_found() -> None:
    space = published_space()
    assert space.find(HADAPTIVE_NET_M) is None
    assert space.find(dataclasses.replace(HADAPTIVE_NET_S, order="index")) is None
    longer = (*HADAPTIVE_NET_S.stages[0], *HADAPTIVE_NET_S.stages[0][1:] * 2)
    assert space.find(dataclasses.replace(HADAPTIVE_NET_S, stages=(longer, *HADAPTIVE_NET_S.stages[1:]))) is None


@each_space
def test_a_file_says_all_of_it(space: SearchSpace, tmp_path: Path) -> None:
    space.save(tmp_path / "space.json")
    assert SearchSpace.load(tmp_path / "space.json") == space


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), name=st.sampled_from(sorted(SPACES)))
def test_every_choice_is_a_network_that_is_found_again(seed: int, name: str) -> None:
    space = SPACES[name]
    spec = space.build(space.random(torch.Generator().manual_seed(seed)))
    found = space.find(spec)
    assert found is not None
    assert space.build(found, name=spec.name) == spec


def test_random_networks_run() -> None:
    for seed in range(4):
        spec = published_space().build(published_space().random(torch.Generator().manual_seed(seed)))
        assert HadaptiveNet(spec, num_classes=3).eval()(torch.randn(1, 3, 64, 64)).shape == (1, 3)


def test_random_is_even_and_seeded() -> None:
    space = tiny((ghost(2, 3, 8), ghost(4, 3, 8), ach(4, 3, 8)))
    draws = [space.random(torch.Generator().manual_seed(seed)) for seed in range(300)]
    assert draws == [space.random(torch.Generator().manual_seed(seed)) for seed in range(300)]
    assert all(60 < sum(draw[1] == n for draw in draws) < 140 for n in range(3))


def test_neighbours_differ_in_one_position() -> None:
    space = tiny((ghost(2, 3, 8), ach(4, 3, 8)), (ghost(2, 3, 8), ach(4, 3, 8), Skip()))
    found = list(space.neighbours((0, 1, 2)))
    assert found == [(0, 0, 2), (0, 1, 0), (0, 1, 1)]


@pytest.mark.parametrize(
    ("positions", "words"),
    [
        (((),), "position 2 has no candidates"),
        (((ghost(2, 3, 8), ghost(2, 3, 8)),), "same candidate twice"),
        (((ghost(2, 3, 8), ach(4, 3, 16)),), "stride 1 to 8 channels and stride 1 to 16 channels"),
        (((ghost(2, 3, 8), ghost(2, 3, 8, 2)),), "one stride and width"),
        (((ghost(2, 3, 8),), (Skip(),)), "no candidate but skip"),
        (((ghost(2, 3, 8), Skip()),), "every position of a stage may be skipped"),
        (((ghost(2, 3, 8),), (ghost(2, 3, 16), Skip())), "position 3 changes the map's shape"),
        (((ach(9, 3, 8),),), "selects k = 9 of only 8 channels"),
        ((), "at least one stage, and each stage at least one position"),
    ],
)
def test_what_does_not_fit_is_one_sentence(positions: tuple, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tiny(*positions)


@pytest.mark.parametrize("choice", [(0,), (0, 2), (0, -1)], ids=str)
def test_a_choice_that_does_not_fit(choice: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"needs 2 numbers|candidates 0 to 1"):
        tiny((ghost(2, 3, 8), ach(4, 3, 8))).build(choice)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "hadaptive-net"}, "not a search space"),
        ({"version": 2}, "version 2, only 1 is known"),
        ({"stem": 3}, "stem must be a list"),
        ({"stages": [[[{"kind": "skip", "k": 3}]]]}, "lacks the field"),
        ({"depth": 3}, "unknown field 'depth'"),
    ],
)
def test_a_bad_file_is_one_sentence(change: dict, words: str, tmp_path: Path) -> None:
    path = tmp_path / "space.json"
    path.write_text(json.dumps({**published_space().to_dict(), **change}))
    with pytest.raises(ValueError, match=words):
        SearchSpace.load(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        SearchSpace.load(tmp_path / "none.json")


def test_spaces_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["spaces"]) == 0
    assert "rich-l" in capsys.readouterr().out
    assert main(["spaces", "published"]) == 0
    assert "G4/2/2, G4/3/2, A16/2/2, A16/3/2" in capsys.readouterr().out
    assert main(["spaces", "published", "--save", str(tmp_path / "mine.json")]) == 0
    assert SearchSpace.load(tmp_path / "mine.json") == published_space()
    assert main(["spaces", "rich-s", "--save", str(tmp_path / "mine.json")]) == 1
    assert SearchSpace.load(tmp_path / "mine.json") == published_space()
    assert main(["spaces", "--save", str(tmp_path / "none.json")]) == 1
    assert main(["spaces", "poor"]) == 1
    assert not (tmp_path / "none.json").exists()
