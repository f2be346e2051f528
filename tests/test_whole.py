"""Spaces of networks that differ as a whole: in activation, in head, and in what they are trained with."""

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from test_shared import with_its_batch

from hadaptive.errors import UserError
from hadaptive.measure.setting import Setting
from hadaptive.models import ConvSpec, HadaptiveNet
from hadaptive.models.layer_spec import ach, conv, ghost, inverted, poly, products
from hadaptive.search import SearchSpace, Skip
from hadaptive.search.candidates import Candidates, Parts
from hadaptive.search.latency import measure_table
from hadaptive.search.shared import SharedSupernet
from hadaptive.search.table import LatencyTable
from hadaptive.search.turns import fair_choice, most_turns
from hadaptive.search.whole import ALTERNATIVES, Whole

ALL: dict[str, tuple[Any, ...]] = {
    "last_channels": (None, 10),
    "head_channels": (7, None, 5),
    "activation": ("relu6", "hardswish"),
    "reparam": (False, True),
    "layer_scale": (None, 0.5),
}
DOWN = (inverted(2, 3, 8, 2), inverted(2, 7, 8, 2), ghost(2, 2, 8, 2), conv(8))
BLOCKS = (
    products(2, 8, 7, 8, after=True),
    products(2, 8, 3, 8, after=False),
    products(3, 4, 3, 8, norm="dysoft"),
    poly(5, 8),
    inverted(2, 5, 8),
    ghost(2, 3, 8),
    ghost(2, 5, 8, join="add"),
    ghost(3, 3, 8, join="add"),
    dataclasses.replace(ach(3, 3, 8), join="add"),
    dataclasses.replace(ach(4, 3, 8, pairing="blocks"), join="add"),
    Skip(),
)


def space_of(**how: Any) -> SearchSpace:
    space = {"alternatives": ALL, "widths": (1.0, 0.5), "selection": "static", **how}
    return SearchSpace("some", (ConvSpec(6, 3, 2),), (), ((DOWN, BLOCKS),), None, None, **space)


def test_all_that_there_can_be_is_tried_here() -> None:
    assert set(ALL) == set(ALTERNATIVES)


def test_every_network_is_what_it_is_alone() -> None:
    torch.manual_seed(0)
    space = space_of()
    supernet, x = SharedSupernet(space, 3, 1).eval(), torch.randn(2, 1, 12, 12)
    assert len(space.wholes) == 2 * 48
    seen = set()
    for number in range(96):
        choice = (0, number % len(DOWN), number % len(BLOCKS), number)
        with torch.no_grad():
            network = supernet.network(choice)
            spec = space.build(choice)
            assert network.spec == spec
            found = space.find(spec)
            assert found is not None
            assert space.build(found, spec.name) == spec
            torch.testing.assert_close(supernet(x, choice), with_its_batch(network)(x), rtol=1e-4, atol=1e-5)
        seen.add((spec.last_channels, spec.head_channels, spec.activation, spec.reparam, spec.layer_scale))
    assert len(seen) == 48


def test_networks_share_weights_whatever_they_are_as_a_whole() -> None:
    space = space_of(widths=(1.0,))
    plain = SharedSupernet(space_of(widths=(1.0,), alternatives={}), 3, 1)
    assert len(SharedSupernet(space, 3, 1).banks[2]) == 2 * len(plain.banks[2])  # with branches, and without
    # What is of one network is not of another: six heads, of which each is of any activation.
    assert len(SharedSupernet(space, 3, 1).tails) == 6
    supernet = SharedSupernet(space, 3, 1).train()
    wholes = {w.fields: n for n, w in enumerate(space.wholes)}
    one, other = (
        wholes[tuple({**{name: values[0] for name, values in ALL.items()}, "activation": act}.items())]
        for act in ALL["activation"]
    )
    for number in range(len(BLOCKS)):
        banks = [supernet.network((0, 0, number, n)).state_dict() for n in (one, other)]
        assert all(torch.equal(banks[0][name], banks[1][name]) for name in banks[0] if "running" not in name)


def test_every_whole_has_its_turn() -> None:
    space = space_of()
    turns = [fair_choice(space, 0, step)[-1] for step in range(96)]
    assert sorted(turns) == list(range(96))
    assert most_turns(space) == 2 * 64  # of each position, with branches and without
    few = space_of(widths=(1.0,), alternatives={"reparam": (False, True)})
    plain = space_of(widths=(1.0,), alternatives={})
    assert most_turns(few) == 2 * most_turns(plain)  # of weights that branches have of their own


def test_the_smallest_network() -> None:
    space = space_of()
    choice, count = SharedSupernet(space, 3, 1).smallest()
    sizes = [
        sum(p.numel() for p in HadaptiveNet(space.build(other), 3, 1).parameters())
        for other in (choice, *space.neighbours(choice))
    ]
    assert sizes[0] == count == min(sizes)


def test_as_data() -> None:
    space = space_of()
    assert SearchSpace.from_dict(space.to_dict()) == space
    assert hash(space) == hash(SearchSpace.from_dict(space.to_dict()))
    assert "alternatives" not in space_of(alternatives={}).to_dict()
    assert space.fingerprint != space_of(alternatives={}).fingerprint
    # Neither their order nor the value of the field itself says anything.
    other = space_of(alternatives=dict(reversed(ALL.items())), activation="relu")
    assert (other, other.wholes) == (space, space.wholes)
    assert space.activation == "relu6"
    alone = space.of_whole(95)
    assert (alone.wholes, alone.varies) == ((Whole(),), False)
    assert alone.build((0, 0, 4), name="x") == space.build((0, 0, 4, 95), name="x")
    assert str(space.wholes[95]) == (
        "0.5 times as wide, last_channels 10, head_channels 5, activation hardswish, reparam True, layer_scale 0.5"
    )
    assert str(space.wholes[0]) == (
        "last_channels none, head_channels 7, activation relu6, reparam False, layer_scale none"
    )


@pytest.mark.parametrize(
    ("alternatives", "message"),
    [
        ([], r"alternatives must be an object with lists of values, got \[\]"),
        ({"order": ["rank", "index"]}, "there can be alternatives of last_channels, .* not of 'order'"),
        ({"activation": "relu6"}, "alternatives of activation must be a list, got 'relu6'"),
        ({"activation": ["relu6"]}, "alternatives of activation must be two or more different values"),
        ({"reparam": [True, True]}, "alternatives of reparam must be two or more different values"),
        ({"reparam": [True, 1]}, "alternatives of reparam must be two or more different values"),
        ({"reparam": [True, "yes"]}, "reparam must be true or false, got 'yes'"),
        ({"layer_scale": [1, 1.0]}, "alternatives of layer_scale must be two or more different values"),
        ({"layer_scale": [0.5, 1.0]}, "alternatives of layer_scale can only be null and a number"),
        ({"activation": ["relu6", "gelu"]}, "activation must be one of hardswish, relu6, relu; got 'gelu'"),
        ({"head_channels": [None, 0]}, "head_channels must be a positive whole number, got 0"),
    ],
    ids=str,
)
def test_alternatives_that_there_cannot_be(alternatives: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        space_of(alternatives=alternatives)


def test_blocks_that_are_residual_at_one_width_only() -> None:
    torch.manual_seed(0)
    stages = (((inverted(2, 3, 8), inverted(3, 5, 8)),),)
    how: Any = {"widths": (1.0, 0.5), "alternatives": {"layer_scale": (None, 0.5)}}
    space = SearchSpace("x", (ConvSpec(4, 3, 2),), (), stages, None, None, **how)
    supernet, x = SharedSupernet(space, 3, 1).eval(), torch.randn(2, 1, 12, 12)
    for choice in itertools.product(range(1), range(2), range(4)):
        with torch.no_grad():
            network = supernet.network(choice)
            torch.testing.assert_close(supernet(x, choice), with_its_batch(network)(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("selection", ["static", "sample", "grouped", "random"])
def test_what_a_step_draws_does_not_hang_on_the_steps_before(selection: str) -> None:
    """A layer that is made in the middle of one draws nothing from its generator."""
    space = space_of(selection=selection, alternatives={"layer_scale": (None, 0.5)})
    supernet = SharedSupernet(space, 3, 1, drop_rate=0.5).train()
    choice, x = (0, 0, 8, 1), torch.randn(4, 1, 12, 12)
    found = []
    for _ in range(2):
        torch.manual_seed(7)
        found.append(supernet(x, choice))
    assert torch.equal(*found)


def test_weights_of_before_there_were_alternatives() -> None:
    """One head, called tail, and blocks that could be joined in one way."""
    space = space_of(alternatives={}, widths=(1.0,))
    supernet = SharedSupernet(space, 3, 1)
    state = supernet.state_dict()
    (head,) = supernet.tails
    older = {name.replace(f"tails.{head}.", "tail."): value for name, value in state.items()}
    assert any(name.startswith("tail.") for name in older)
    assert not any("concat" in name for name in older)
    other = SharedSupernet(space, 3, 1)
    other.load_state_dict(older)
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())


def test_what_pytorch_runs_with_branches_and_scales_is_timed_as_such() -> None:
    space = space_of(widths=(1.0,), alternatives={"reparam": (False, True), "layer_scale": (None, 0.5)})
    parts: Parts = {}
    setting = Setting("pytorch", threads=1, image_size=16, num_classes=3, in_chans=1)
    for number in range(4):
        Candidates(space.of_whole(number), setting, parts)
    # The stem, and all of 4 + 10 blocks but the linear convolution, in each of four kinds; a head; a call.
    names = [name for name in parts if name.startswith(repr(BLOCKS[3]))]
    assert len(names) == 4
    assert {name.partition("hardswish")[2] for name in names} == {
        "",
        ", scaled",
        ", with branches",
        ", scaled, with branches",
    }


@pytest.mark.slow
def test_each_has_latencies_of_its_own() -> None:
    """Of what is deployed: branches and scales cost nothing there."""
    space = space_of(widths=(1.0,))
    setting = Setting("onnxruntime", threads=1, image_size=16, num_classes=3, in_chans=1)
    found = {}
    for number, whole in enumerate(space.wholes):
        own = Candidates(space.of_whole(number), setting)
        fields = dict(whole.fields)
        key = (fields["activation"], fields["last_channels"], fields["head_channels"])
        assert found.setdefault(key, set(own.parts)) == set(own.parts)
    assert len(set(map(frozenset, found.values()))) == 12
    table = measure_table(space, setting, known={}, rounds=5, networks=4, quiet=True)
    assert len(table.others) == 47
    table.check(space, setting)
    for number in range(48):
        choice = (0, 0, 3, number)
        assert table.predict(choice) == table.of_whole(number).predict(choice[:-1])
    assert LatencyTable(**table.__dict__) == table
