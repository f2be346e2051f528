"""The selections that can be chosen: what each selects, its gradient, its state, and how it is deployed."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from networks import close, same_under_transforms, seeded
from test_export import card_of, deployed
from tiny import WIDE_CHOICE, WIDE_SPACE
from torch import nn
from torch.utils.checkpoint import checkpoint

from hadaptive.errors import UserError
from hadaptive.export.freeze import calibrate, freeze
from hadaptive.measure.deploy import fold
from hadaptive.measure.formats import SUFFIXES
from hadaptive.measure.lowering import write
from hadaptive.measure.sessions import load
from hadaptive.models import ConvSpec, HadaptiveNet, NetSpec
from hadaptive.models.layer_spec import BlockSpec, ach, inverted
from hadaptive.models.published import HADAPTIVE_NET_S
from hadaptive.nn import (
    AdaptiveCrossHadamard,
    ChannelSelection,
    CrossHadamardExpansion,
    CrossHadamardMlp,
    FixedSelection,
    GroupedSelection,
    SelectionRecorder,
    StaticSelection,
    expansions,
    gumbel_top_k,
    score_function_term,
    top_k_channels,
)
from hadaptive.nn.checks import SELECTIONS
from hadaptive.nn.grouped_selection import best_of_groups, group_starts
from hadaptive.search import SearchSpace

# Libraries' own, while they export.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


def network(selection: str, noise: float = 1.0) -> NetSpec:
    blocks = (ach(4, 3, 12), ach(5, 3, 12))
    stem = (ConvSpec(12, 3, 1), (ConvSpec(12, 2, 2),))
    return NetSpec("some", *stem, (blocks,), 16, 16, selection=selection, noise=noise)


# ---------------------------------------------------------------- groups


@pytest.mark.parametrize(("channels", "k"), [(12, 4), (13, 4), (5, 5), (9, 2), (7, 6)])
def test_one_channel_of_each_group_and_gates_whose_groups_sum_to_1(channels: int, k: int) -> None:
    starts = group_starts(channels, k, torch.device("cpu")).tolist()
    select = GroupedSelection(k)
    scores = torch.randn(6, channels, requires_grad=True)
    index, gate = select(scores)
    assert gate is not None
    for group, (start, end) in enumerate(itertools.pairwise(starts)):
        assert end > start
        assert ((index[:, group] >= start) & (index[:, group] < end)).all()
    assert (gate == 1).all()
    of_scores = torch.autograd.grad(gate[:, 0].sum(), scores)[0]
    torch.testing.assert_close(of_scores.sum(1), torch.zeros(6), atol=1e-6, rtol=0)
    assert (of_scores[:, starts[1] :] == 0).all()
    expected = torch.stack([scores[:, s:e].argmax(1) + s for s, e in itertools.pairwise(starts)], dim=1)
    assert torch.equal(select.eval()(scores)[0], expected)
    assert select(scores)[1] is None


def test_of_equals_in_a_group_the_lower_wins_and_nan_is_largest() -> None:
    scores = torch.tensor([[1.0, 1.0, 0.0, 2.0, float("nan"), float("nan")], [0.0] * 6])
    assert best_of_groups(scores, 2).tolist() == [[0, 4], [0, 3]]


# ---------------------------------------------------------------- noise and temperature


def test_without_noise_training_selects_what_eval_does() -> None:
    scores = torch.randn(8, 12)
    for order in ("rank", "index"):
        for surrogate in ("softmax", "softmax_k", "simple"):
            select = ChannelSelection(4, order, surrogate, noise=0)
            assert torch.equal(select(scores)[0], top_k_channels(scores, 4, order))
    grouped = GroupedSelection(4, noise=0)
    assert torch.equal(grouped(scores)[0], grouped.best(scores))


def test_noise_is_scaled() -> None:
    scores = torch.linspace(0, 3, 8).expand(4000, -1)
    agreed = []
    for noise in (0.1, 1.0, 10.0):
        index, _ = gumbel_top_k(scores, 2, torch.tensor(1.0), generator=seeded(), noise=noise)
        agreed.append(float((index >= 6).float().mean()))
    assert agreed[0] > 0.95
    assert agreed[0] > agreed[1] > agreed[2]
    assert agreed[2] < 0.4


def test_a_constant_temperature_stays() -> None:
    expansion = CrossHadamardExpansion(8, 3, temperature=0.5, selection="sample")
    expansion(torch.randn(2, 8, 3, 3)).sum().backward()
    expansion.update_temperature()
    select = expansion.select
    assert isinstance(select, ChannelSelection)
    assert float(select.temperature) == 0.5
    select.reset_parameters()
    assert float(select.temperature) == 0.5


# ---------------------------------------------------------------- modules


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("dims", [(), (5,), (4, 3)], ids=str)
def test_each_selection_expands_what_it_selects(selection: str, dims: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    expansion = CrossHadamardExpansion(9, 4, selection=selection).eval()
    x = torch.randn(3, 9, *dims)
    y, index = expansion(x), expansion.select(expansion.score(x))[0]
    first, second = torch.triu_indices(4, 4, 1)
    z = torch.stack([x[n, i] for n, i in enumerate(index)])
    q = expansion.norm(z[:, first] * z[:, second])
    torch.testing.assert_close(y, torch.cat([x, q], 1))


@pytest.mark.parametrize("selection", SELECTIONS)
def test_in_every_module_that_has_one(selection: str) -> None:
    for module in (
        AdaptiveCrossHadamard(8, 3, selection=selection),
        CrossHadamardMlp(8, k=3, selection=selection),
    ):
        tokens = isinstance(module, CrossHadamardMlp)
        x = torch.randn(2, 5, 8, requires_grad=True) if tokens else torch.randn(2, 8, 4, 4, requires_grad=True)
        module(x).square().sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()
        assert all(p.grad is not None for p in module.parameters())


def test_static_has_no_parameters_and_no_state_of_its_own_and_random_only_its_draw() -> None:
    static, drawn = (CrossHadamardExpansion(8, 3, selection=s) for s in ("static", "random"))
    assert sorted(static.state_dict()) == ["norm.alpha", "norm.bias", "norm.weight"]
    assert static.select(torch.zeros(2, 8))[0].tolist() == [[0, 1, 2]] * 2
    assert sorted(drawn.state_dict()) == ["norm.alpha", "norm.bias", "norm.weight", "select.index"]
    again, other = (CrossHadamardExpansion(64, 8, selection="random", seed=seed).select for seed in (0, 1))
    same = CrossHadamardExpansion(64, 8, selection="random").select
    assert torch.equal(again.index, same.index)
    assert not torch.equal(again.index, other.index)
    assert len(set(again.index.tolist())) == 8


def test_random_layers_of_a_network_draw_differently_and_its_state_says_what() -> None:
    torch.manual_seed(0)
    one = HadaptiveNet(NetSpec("r", ConvSpec(64, 2, 2), (), ((ach(8, 3, 64),) * 3,), 8, 8, selection="random"), 3)
    drawn = [layer.select.index.tolist() for layer in expansions(one).values()]
    assert len(set(map(tuple, drawn))) == 3
    two = HadaptiveNet(one.spec, 3)
    assert [layer.select.index.tolist() for layer in expansions(two).values()] == drawn


@pytest.mark.parametrize("selection", ["sample", "grouped", "random"])
def test_a_state_of_other_selections_is_no_static_networks(selection: str) -> None:
    torch.manual_seed(0)
    state = CrossHadamardExpansion(64, 4, selection=selection).state_dict()
    with pytest.raises(RuntimeError, match="selects its first k channels"):
        CrossHadamardExpansion(64, 4, selection="static").load_state_dict(state)


@pytest.mark.parametrize(
    ("saved", "loaded"),
    list(itertools.permutations([{}, {"order": "index"}, {"selection": "grouped"}], 2)),
    ids=str,
)
def test_a_state_whose_names_fit_a_network_that_selects_otherwise_is_refused(
    saved: dict[str, str], loaded: dict[str, str], tmp_path: Path
) -> None:
    """It was taken in silence, and the network computed something else."""
    nets = [AdaptiveCrossHadamard(8, 3, **{"selection": "sample", **how}) for how in (saved, loaded)]
    torch.save(nets[0].state_dict(), tmp_path / "state.pt")
    for state in (nets[0].state_dict(), torch.load(tmp_path / "state.pt", weights_only=True)):
        with pytest.raises(RuntimeError, match="saved from a network that selects otherwise"):
            nets[1].load_state_dict(state)
        AdaptiveCrossHadamard(8, 3, **{"selection": "sample", **saved}).load_state_dict(state)


def test_a_static_layer_freezes_to_what_it_selects() -> None:
    expansion = CrossHadamardExpansion(6, 3, selection="static")
    other = CrossHadamardExpansion(6, 3, selection="sample")
    other.freeze(torch.tensor([0, 1, 2]))
    expansion.load_state_dict(other.state_dict())
    assert isinstance(expansion.select, StaticSelection)
    expansion.freeze(torch.tensor([2, 1, 0]))
    assert expansion.select.index.tolist() == [2, 1, 0]


def test_grouped_freezes_to_one_of_each_group() -> None:
    torch.manual_seed(0)
    net = HadaptiveNet(network("grouped"), 3).eval()
    frozen = freeze(net, calibrate(net, [torch.randn(6, 3, 8, 8)]))
    for layer in expansions(frozen).values():
        assert isinstance(layer.select, FixedSelection)
        starts = group_starts(12, layer.k, torch.device("cpu")).tolist()
        places = zip(layer.select.index.tolist(), starts, starts[1:], strict=False)
        assert all(s <= c < e for c, s, e in places)


def test_the_recorder_knows_what_a_grouped_layer_would_select_without_noise() -> None:
    torch.manual_seed(0)
    net = HadaptiveNet(network("grouped", noise=0.0), 3)
    with SelectionRecorder(net) as recorder:
        net(torch.randn(4, 3, 8, 8))
    assert [report.agreement for report in recorder.reports()] == [1.0, 1.0]


@pytest.mark.parametrize("channels", [8, 9])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_under_every_transform(selection: str, channels: int) -> None:
    torch.manual_seed(0)
    module = AdaptiveCrossHadamard(channels, 4, selection=selection).eval()
    x = torch.randn(3, channels, 5, 5)
    expected = same_under_transforms(module, x)
    close(module.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_training_compiles_with_the_same_gradients(selection: str) -> None:
    torch.manual_seed(0)
    options = {"noise": 0.0} if selection in ("sample", "grouped") else {}
    module = AdaptiveCrossHadamard(8, 4, selection=selection, **options)
    x = torch.randn(3, 8, 5, 5)
    found = []
    for run in (module, torch.compile(module, fullgraph=True, backend="aot_eager")):
        module.zero_grad()
        run(x).square().sum().backward()
        found.append([p.grad for p in module.parameters()])
    for one, other in zip(*found, strict=True):
        close(one, other)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_wherever_it_is_made(selection: str) -> None:
    with torch.device("meta"):
        meta = CrossHadamardExpansion(8, 3, selection=selection)
    assert all(t.device.type == "meta" for t in (*meta.parameters(), *meta.buffers()))
    made = CrossHadamardExpansion(8, 3, selection=selection)
    torch.manual_seed(0)
    filled = meta.to_empty(device="cpu")
    filled.load_state_dict(made.state_dict())
    x = torch.randn(2, 8, 3, 3)
    close(filled.eval()(x), made.eval()(x))
    half = CrossHadamardExpansion(8, 3, selection=selection).to(torch.bfloat16)
    assert half(x.bfloat16()).dtype == torch.bfloat16


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selection": "best"}, "selection must be one of sample, static, grouped, random; got 'best'"),
        ({"selection": "static", "noise": 0.5}, "no effect on selection='static'"),
        ({"selection": "random", "temperature": 1.0}, "no effect on selection='random'"),
        ({"selection": "grouped", "order": "index"}, "order and surrogate are for selection='sample'"),
        ({"selection": "static", "surrogate": "simple"}, "order and surrogate are for selection='sample'"),
        ({"surrogate": "sfess", "noise": 0.0}, "surrogate='sfess' learns from what chance selects"),
        ({"surrogate": "sfess", "temperature": 1.0}, "temperature has no effect on surrogate='sfess'"),
        ({"seed": 3}, "seed is for selection='random'"),
        ({"selection": "random", "seed": 1.5}, "seed must be a whole number"),
        ({"noise": -1.0}, "noise must be a number from 0 on, got -1.0"),
        ({"noise": float("nan")}, "noise must be"),
        ({"temperature": 0.0}, "temperature must be a positive number, or None to adapt it, got 0.0"),
        ({"temperature": float("inf")}, "temperature must be"),
    ],
    ids=str,
)
def test_what_has_no_effect_or_no_meaning_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        AdaptiveCrossHadamard(8, 3, **{"selection": "sample", **options})
    options.pop("seed", None)
    if options and options != {"selection": "random"}:
        with pytest.raises(UserError, match=message.replace("(", r"\(")):
            NetSpec("x", ConvSpec(8), (), ((ach(3, 3, 8),),), **options)


def test_expansions_other_than_inverted_cannot_lack_their_activation() -> None:
    assert inverted(1, 3, 8, act=False).act is False
    for kind in ({"kind": "ghost", "ratio": 2.0}, {"kind": "ach", "k": 3}):
        with pytest.raises(
            UserError, match=f"act is for .*inverted.* blocks; one of kind {kind['kind']} cannot have False"
        ):
            BlockSpec(channels=8, kernel=3, act=False, **kind)


# ---------------------------------------------------------------- as data


@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_spec_carries_it_and_older_ones_mean_sample(selection: str) -> None:
    spec = network(selection)
    assert NetSpec.from_dict(spec.to_dict()) == spec
    assert ("selection" in spec.to_dict()) == (selection != "sample")
    assert len({network(s).fingerprint for s in SELECTIONS}) == len(SELECTIONS)
    assert HADAPTIVE_NET_S.selection == "sample"
    assert "noise" not in HADAPTIVE_NET_S.to_dict()


def test_a_space_carries_it_to_the_networks_it_builds() -> None:
    space = dataclasses.replace(WIDE_SPACE, selection="static")
    spec = space.build(WIDE_CHOICE)
    assert spec.selection == "static"
    assert SearchSpace.from_dict(space.to_dict()) == space
    assert space.find(spec) is not None
    assert dataclasses.replace(space, selection="sample").find(spec) is None


def test_a_search_refuses_what_it_could_not_train() -> None:
    with pytest.raises(UserError, match="does not know the losses that surrogate 'sfess' learns from"):
        dataclasses.replace(WIDE_SPACE, surrogate="sfess")


def test_checkpointing_that_loses_the_gradient_is_said() -> None:
    layer = CrossHadamardExpansion(6, 3, surrogate="sfess", selection="sample")
    x = torch.randn(4, 6, 3, 3, requires_grad=True)
    checkpoint(layer, x, use_reentrant=True)
    with pytest.raises(ValueError, match="reentrant checkpointing loses it"):
        score_function_term(layer, torch.ones(4))


def test_a_block_without_products_is_the_mix_alone() -> None:
    torch.manual_seed(0)
    spec = NetSpec(
        "n", ConvSpec(8, 3, 1), (), ((inverted(1, 3, 8, act=False), inverted(2.5, 3, 8, act=False)),), 8, 8
    )
    net = HadaptiveNet(spec, 2).eval()
    assert NetSpec.from_dict(spec.to_dict()) == spec
    widths = [block.expansion.out_channels for block in net.stages[0]]
    assert widths == [8, 20]
    assert len(net.stages[0][0].expansion.convolution) == 2
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(fold(net)(x), net(x), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- deployment


@pytest.mark.parametrize("selection", SELECTIONS)
def test_what_is_deployed_computes_the_same(selection: str) -> None:
    torch.manual_seed(0)
    net = HadaptiveNet(network(selection), 4).eval()
    x = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(fold(net)(x), net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("selection", ["static", "random"])
def test_a_static_network_is_exported_without_any_selection(selection: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, path = HadaptiveNet(network(selection), 4).eval(), tmp_path / "static.onnx"
    write(deployed(net), path, "onnx", card_of(net), {})
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert not {"TopK", "Gather", "GatherElements", "GatherND", "ScatterElements", "Slice", "Concat"} & set(kinds)
    assert kinds.count("GlobalAveragePool") == 1  # the head's pool, and no score's
    assert "ReduceMean" not in kinds


@pytest.mark.parametrize("name", ["onnx", "openvino", "executorch", "torch"])
def test_grouped_selections_run_everywhere(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, path = HadaptiveNet(network("grouped"), 4).eval(), tmp_path / f"grouped{SUFFIXES[name]}"
    write(deployed(net), path, name, card_of(net), {})
    images = torch.randn(5, 3, 16, 16)
    run, _ = load(path, trust=True)
    with torch.no_grad():
        expected = net(images).numpy()
    np.testing.assert_allclose(run(images.numpy()), expected, rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------- the default


def test_new_modules_are_static_and_the_papers_networks_are_not() -> None:
    modules = AdaptiveCrossHadamard(8, 3), CrossHadamardExpansion(8, 3), CrossHadamardMlp(8, k=3)
    for module in modules:
        (layer,) = expansions(nn.Sequential(module)).values()
        assert isinstance(layer.select, StaticSelection)
    assert HADAPTIVE_NET_S.selection == NetSpec("x", ConvSpec(8), (), ((ach(3, 3, 8),),)).selection == "sample"
    for options in ({"order": "index"}, {"surrogate": "simple"}):
        with pytest.raises(ValueError, match="order and surrogate are for selection='sample'"):
            AdaptiveCrossHadamard(8, 3, **options)
