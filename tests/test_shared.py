"""A supernet that shares weights: every network of a space is what it is alone, and all have their turn."""

import collections
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hadaptive.errors import UserError
from hadaptive.models import ConvSpec, HadaptiveNet
from hadaptive.models.layer_spec import KINDS, BlockSpec, ach, conv, ghost, inverted, poly, products
from hadaptive.search import SearchSpace, Skip, star_space
from hadaptive.search.position import scaled
from hadaptive.search.shared import SharedSupernet
from hadaptive.search.space import Choice
from hadaptive.search.turns import fair_choice, most_turns


def blocks(width: int) -> tuple[BlockSpec | Skip, ...]:
    """Every kind of block, with what may be smaller in two sizes."""
    return (
        products(2, width, 3, width, norm="dysoft"),
        products(2, 2 * width, 5, width, after=True, norm="dysoft"),
        products(3, 4, 3, width),
        products(3, 6, 3, width, after=True),
        products(4, 1, 5, width),
        poly(3, width),
        poly(5, width),
        inverted(2, 3, width),
        inverted(3, 5, width),
        inverted(2, 3, width, groups=2),
        inverted(2, 3, width, act=False),
        ghost(2, 3, width),
        ghost(3, 5, width),
        ach(3, 3, width),
        ach(3, 5, width, norm="batchnorm"),
        ach(4, 3, width, pairing="blocks"),
        Skip(),
    )


def some_space(last: int | None = None, head: int | None = None, **how) -> SearchSpace:
    stages = (((ghost(2, 2, 8, 2), conv(8), inverted(2, 3, 8, 2)), blocks(8)), ((conv(16),), blocks(16)))
    how = {"selection": "static", "activation": "relu6", "widths": (1.0, 0.5)} | how
    stem = (ConvSpec(6, 3, 1), ConvSpec(6, 1, 1))
    return SearchSpace("some", stem, ((ConvSpec(4),),), stages, last, head, **how)


def with_its_batch(network: HadaptiveNet) -> HadaptiveNet:
    """A network whose BatchNorm knows its batch alone, as a supernet's."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean = module.running_var = None
            module.track_running_stats = False
    return network.eval()


def a_network_alone(space: SearchSpace, choice: Choice) -> None:
    supernet = SharedSupernet(space, 3, 1).eval()
    x = torch.randn(2, 1, 12, 12)
    with torch.no_grad():
        network = supernet.network(choice)
        assert network.spec == space.build(choice)
        torch.testing.assert_close(supernet(x, choice), with_its_batch(network)(x), rtol=1e-4, atol=1e-5)


def test_the_space_has_every_kind() -> None:
    kinds = {block.kind for block in blocks(8) if isinstance(block, BlockSpec)}
    assert kinds | {"conv"} == set(KINDS)


@pytest.mark.parametrize(("last", "head"), [(None, None), (10, None), (None, 7), (10, 7)])
def test_every_network_is_what_it_is_alone(last: int | None, head: int | None) -> None:
    torch.manual_seed(0)
    space = some_space(last, head)
    supernet, x = SharedSupernet(space, 3, 1).eval(), torch.randn(2, 1, 12, 12)
    for number in range(len(blocks(8))):
        for width in range(2):
            choice = (number % 2, 0, number % 3, number, 0, -number % 17, width)
            with torch.no_grad():
                network = supernet.network(choice)
                assert network.spec == space.build(choice)
                torch.testing.assert_close(supernet(x, choice), with_its_batch(network)(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("selection", ["sample", "grouped", "random"])
def test_other_selections_too(selection: str) -> None:
    torch.manual_seed(0)
    a_network_alone(some_space(selection=selection), (0, 0, 0, 13, 0, 14, 1))


@pytest.mark.parametrize("number", [n for n in range(17) if n != 16])
def test_a_step_reaches_what_the_network_has_and_nothing_else(number: int) -> None:
    torch.manual_seed(0)
    space = some_space()
    supernet = SharedSupernet(space, 3, 1).train()
    choice = (0, 0, 1, number, 0, 16, 1)
    supernet(torch.randn(4, 1, 12, 12), choice).square().sum().backward()
    network = supernet.network(choice)
    learnt = sum(int((p.grad != 0).sum()) for p in supernet.parameters() if p.grad is not None)
    whole = sum(p.numel() for p in network.parameters())
    assert learnt <= whole
    assert learnt >= 0.8 * whole  # of what BatchNorm follows some have no gradient, such as a bias
    reached = [any(p.grad is not None for p in bank.parameters()) for bank in supernet.banks]
    assert reached == [True] * 5 + [False]


def test_sizes_of_a_kind_are_parts_of_one_another() -> None:
    space = some_space(widths=(1.0,))
    supernet = SharedSupernet(space, 3, 1)
    wide = supernet.network((0, 0, 1, 8, 0, 16)).stages[1][1]
    narrow = supernet.network((0, 0, 1, 7, 0, 16)).stages[1][1]
    torch.testing.assert_close(narrow.depthwise[0].weight, wide.depthwise[0].weight[:16, :, 1:4, 1:4])
    torch.testing.assert_close(narrow.project[0].weight, wide.project[0].weight[:, :16])
    star, double = (supernet.network((0, 0, 1, n, 0, 16)).stages[1][1] for n in (0, 1))
    rows = torch.cat([torch.arange(8), torch.arange(16, 24)])  # the first channels of either factor
    torch.testing.assert_close(star.factors.weight, double.factors.weight[rows])
    banks = [len(bank) for bank in supernet.banks]
    assert banks == [2, 1, 3, 11, 1, 11]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), start=st.integers(0, 10**6))
def test_a_turn_is_a_function_of_its_number(seed: int, start: int) -> None:
    space = star_space()
    assert fair_choice(space, seed, start) == fair_choice(space, seed, start)
    space.check_choice(fair_choice(space, seed, start))


def test_every_candidate_has_its_turn() -> None:
    space = some_space()
    # Each of 11 kinds three times in a round of 44 turns, 11 of them to skip, and sizes in two rounds.
    assert most_turns(space) == 88
    turns = [fair_choice(space, 0, step) for step in range(88 * 3)]
    for place, position in ((3, blocks(8)), (5, blocks(16))):
        counts = collections.Counter(choice[place] for choice in turns)
        assert set(counts) == set(range(len(position)))
        assert counts[16] == len(turns) / 4
        pairs = ((0, 1), (2, 3), (5, 6), (7, 8), (11, 12))  # sizes of a kind
        assert all(counts[one] == counts[other] == len(turns) / 4 * 3 / 22 for one, other in pairs)
    assert {choice[-1] for choice in turns} == {0, 1}
    assert collections.Counter(choice[-1] for choice in turns)[0] == len(turns) / 2
    assert len({choice[:-1] for choice in turns}) > 200  # places do not move together


def test_the_space_that_ships() -> None:
    space = star_space()
    assert space.varies
    assert {round(32 * w) for w in space.widths} == {16, 20, 24, 32}
    assert SearchSpace.from_dict(space.to_dict()) == space
    for step in range(6):
        choice = fair_choice(space, 1, step)
        spec = space.build(choice)
        found = space.find(spec)
        assert found is not None
        assert space.build(found, name=spec.name) == spec
        assert HadaptiveNet(spec, 3, 1).eval()(torch.randn(1, 1, 64, 64)).shape == (1, 3)


def test_the_smallest_network() -> None:
    space = some_space()
    choice, count = SharedSupernet(space, 3, 1).smallest()
    counted = [
        sum(p.numel() for p in HadaptiveNet(space.build(c), 3, 1).parameters())
        for c in (choice, *space.neighbours(choice))
    ]
    assert counted[0] == count == min(counted)


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ((ghost(2, 3, 8), inverted(2, 3, 8, groups=3)), "at 1 of the width: 3 groups do not divide the 8"),
        ((ghost(2, 3, 8), ach(6, 3, 8)), "at 0.5 of the width: an ach block selects k = 6 of only 4"),
        ((ghost(2, 3, 10), poly(3, 10)), "at 0.5 of the width: a block of kind poly needs an even number"),
        ((products(4, 1, 3, 8), products(4, 2, 3, 8)), "at 0.5 of the width has the same candidate twice"),
    ],
    ids=["groups", "k", "even", "twice"],
)
def test_every_candidate_fits_at_every_width(blocks: tuple, words: str) -> None:
    stages = (((conv(blocks[0].channels),), blocks),)
    with pytest.raises(UserError, match=f"position 3 {words}"):
        SearchSpace("x", (ConvSpec(4),), (), stages, widths=(1.0, 0.5))


def test_widths() -> None:
    space = some_space()
    assert space.size == 2 * 3 * 17 * 17 * 2
    assert space.counts == (2, 1, 3, 17, 1, 17, 2)
    assert space.build((0, 0, 0, 0, 0, 0, 1)).stages[1][0].channels == 8
    assert scaled(products(3, 5, 3, 8), 0.5) == products(3, 2, 3, 4)
    assert scaled(products(5, 1, 3, 8), 0.5) == products(5, 1, 3, 4)
    narrow = space.of_whole(1)
    for choice in itertools.islice(itertools.product(*map(range, narrow.counts)), 0, None, 97):
        assert narrow.build(choice, name="x") == space.build((*choice, 1), name="x")
    neighbours = list(space.neighbours((0,) * 7))
    assert len(neighbours) == 1 + 2 + 16 + 16 + 1
    for widths in ((), (1.0, 1.0), (0.0,), (1.5,), ("x",)):
        with pytest.raises(UserError, match="widths must be different factors above 0 and at most 1"):
            some_space(widths=widths)
    with pytest.raises(UserError, match=r"0\.3 times 8 channels is no whole number"):
        some_space(widths=(1.0, 0.3))
    with pytest.raises(UserError, match=r"a single width must be 1, got 0\.5"):
        some_space(widths=(0.5,))
    assert scaled(conv(100), 0.55) == conv(55)
    with pytest.raises(UserError, match="there are widths and alternatives 0 to 1, got 2"):
        space.build((0, 0, 0, 0, 0, 0, 2))
    with pytest.raises(UserError, match="a choice needs 7 numbers, got 6"):
        space.build((0,) * 6)
