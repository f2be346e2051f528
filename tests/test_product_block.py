"""Blocks of bare products, dense convolutions between stages, and heads without hidden layers."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import close, randomise, same_under_transforms
from test_export import card_of, deployed
from tiny import tiny_config
from torch import nn

from hadaptive import ops
from hadaptive.errors import UserError
from hadaptive.info import inspect_network
from hadaptive.measure.deploy_products import DeployPolyBlock, DeployProductBlock
from hadaptive.measure.formats import SUFFIXES, WEIGHTS
from hadaptive.measure.lowering import write
from hadaptive.measure.passes import prepare
from hadaptive.measure.sessions import load
from hadaptive.models import ConvSpec, HadaptiveNet, NetSpec
from hadaptive.models.layer_spec import KINDS, BlockSpec, ach, conv, ghost, inverted, poly, products
from hadaptive.models.published import HADAPTIVE_NET_L, HADAPTIVE_NET_M, HADAPTIVE_NET_S
from hadaptive.nn import ACTIVATIONS, NORMS, PolyBlock, ProductBlock
from hadaptive.nn.product_block import BlockProducts
from hadaptive.search import SearchSpace
from hadaptive.search.labels import label
from hadaptive.search.plots import KINDS as DRAWN
from hadaptive.search.position import SKIP
from hadaptive.search.supernet import Supernet
from hadaptive.train import train

# Libraries' own, while they export.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

ROOT = Path(__file__).parents[1]


def network(last: int | None = None, head: int | None = None, activation: str = "relu6") -> NetSpec:
    first = (conv(12), products(2, 24, 3, 12, after=True), products(3, 8, 5, 12))
    second = (
        conv(16, act=True),
        products(5, 1, 3, 16, act=False, norm="dysoft"),
        products(6, 1, 3, 16),
        products(3, 8, 3, 16, norm="dysoft"),
        products(4, 8, 3, 16, norm="dyt", act=False),
        *(products(2, 8, 3, 16, norm=norm) for norm in ("batchnorm", "dysig", "dyalge", "rmsnorm")),
        inverted(2, 3, 16),
        inverted(2, 3, 16, groups=2),
        poly(5, 16),
        poly(3, 16, act=False),
        ghost(2, 3, 16),
        ach(4, 3, 16),
        ghost(2, 3, 16, join="add"),
        *(dataclasses.replace(ach(k, 3, 16, pairing=p), join="add") for k, p in ((4, "triangle"), (3, "blocks"))),
    )
    return NetSpec("some", ConvSpec(8, 3, 2), (), (first, second), last, head, activation=activation)


# ---------------------------------------------------------------- what it computes


@settings(max_examples=30, deadline=None)
@given(
    k=st.integers(2, 5),
    width=st.integers(1, 4),
    act=st.sampled_from([None, *ACTIVATIONS.values()]),
    batch=st.integers(0, 3),
    side=st.integers(1, 4),
)
def test_all_pairs_in_their_order(k: int, width: int, act: Any, batch: int, side: int) -> None:
    x = torch.randn(batch, k * width, side, side, dtype=torch.float64)
    lower, upper = ops.pair_indices(k * width, block=width)
    expected = (x if act is None else act()(x))[:, lower] * x[:, upper]
    torch.testing.assert_close(BlockProducts(k, width, act)(x), expected, rtol=0, atol=0)


def take_over(ours: nn.Module, theirs: nn.Module) -> None:
    """The weights of timm's convolution, BatchNorm, or both; a bias before a BatchNorm is part of its mean."""
    if isinstance(theirs, nn.BatchNorm2d | nn.Linear):
        ours.load_state_dict(theirs.state_dict())
        return
    ours[0].weight.copy_(theirs.conv.weight)
    ours[1].load_state_dict(theirs.bn.state_dict())
    ours[1].running_mean -= theirs.conv.bias


@torch.no_grad()
def test_starnet_is_one_of_them() -> None:
    theirs = randomise(timm.create_model("starnet_s050", num_classes=7)).eval()
    ours = HadaptiveNet(NetSpec.load(ROOT / "benchmarks/networks/starnet_s050.json"), 7).eval()
    take_over(ours.stem, theirs.stem[0])
    for stage, other in zip(ours.stages, theirs.stages, strict=True):
        take_over(stage[0], other[0])
        for block, same in zip(list(stage)[1:], list(other)[1:], strict=True):
            take_over(block.depthwise, same.dwconv)
            take_over(block.project, same.g)
            for name in ("weight", "bias"):
                getattr(block.factors, name).copy_(torch.cat([getattr(f.conv, name) for f in (same.f1, same.f2)]))
            block.after[0].load_state_dict(same.dwconv2.conv.state_dict())
    take_over(ours.last, theirs.norm)
    take_over(ours.classifier, theirs.head)
    x = torch.randn(3, 3, 64, 64)
    close(ours(x), theirs(x))
    biases = sum(p.numel() for name, p in theirs.named_parameters() if name.endswith("conv.bias")) - sum(
        p.numel() for name, p in ours.named_parameters() if name.endswith(("factors.bias", "after.0.bias"))
    )
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) - biases


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("act", [None, nn.ReLU6], ids=["bare", "relu6"])
@pytest.mark.parametrize(("k", "width"), [(2, 6), (4, 3), (5, 1)])
def test_gradients(k: int, width: int, act: Any, norm: str) -> None:
    torch.manual_seed(0)
    block = randomise(ProductBlock(4, k, width, 3, norm, act_layer=act, dtype=torch.float64)).eval()
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x,))
    block.train()(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


@pytest.mark.parametrize("act", [None, nn.ReLU6], ids=["bare", "relu6"])
def test_one_product_of_two_depthwise_convolutions(act: Any) -> None:
    torch.manual_seed(0)
    block = randomise(PolyBlock(6, 5, act_layer=act, dtype=torch.float64)).eval()
    x = torch.randn(2, 6, 4, 4, dtype=torch.float64, requires_grad=True)
    u = block.mix(x)
    wide, narrow = block.wide(u), block.narrow(u)
    narrow = narrow if act is None else act()(narrow)
    expected = torch.stack([wide[:, c] * narrow[:, (c + 3) % 6] for c in range(6)], dim=1)
    torch.testing.assert_close(block(x), x + block.project(expected), rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(block, (x,))
    block.train()(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())
    same_under_transforms(block.float().eval(), torch.randn(3, 6, 5, 5))
    assert PolyBlock(6, dtype=torch.bfloat16)(torch.randn(2, 6, 5, 5).bfloat16()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="channels must be even, for each half multiplies the other, got 5"):
        PolyBlock(5)
    with pytest.raises(ValueError, match="kernel_size must be odd, to keep the map's size, got 4"):
        PolyBlock(6, 4)


@pytest.mark.parametrize("act", [None, nn.ReLU6], ids=["bare", "relu6"])
@pytest.mark.parametrize(("k", "width"), [(2, 6), (4, 3), (5, 1)])
def test_under_every_transform(k: int, width: int, act: Any) -> None:
    torch.manual_seed(0)
    block = ProductBlock(6, k, width, 3, act_layer=act, drop_path=0.1).eval()
    same_under_transforms(block, torch.randn(3, 6, 5, 5))
    half = ProductBlock(6, k, width, 3, "dysoft", act_layer=act, dtype=torch.bfloat16)
    assert half(torch.randn(2, 6, 5, 5, dtype=torch.bfloat16)).dtype == torch.bfloat16
    empty = ProductBlock(6, k, width, 3, act_layer=act, device="meta")
    filled = empty.to_empty(device="cpu").eval()
    filled.load_state_dict(block.state_dict())
    x = torch.randn(2, 6, 4, 4)
    torch.testing.assert_close(filled(x), block(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((6, 1, 3), "k must be at least 2 and width at least 1, got 1 and 3"),
        ((6, 2, 0), "k must be at least 2 and width at least 1, got 2 and 0"),
        ((6, 2, 3, 4), "kernel_size must be odd, to keep the map's size, got 4"),
        ((6, 2, 3, 3, "layernorm"), "norm must be one of"),
    ],
)
def test_what_there_cannot_be(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProductBlock(*arguments)


# ---------------------------------------------------------------- as data


def normed(net: nn.Module) -> nn.Module:
    """In eval mode, with norms that are not the initial ones; products of larger maps overflow."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            randomise(module)
    return net.eval()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("last", "head"), [(None, None), (24, None), (None, 20), (24, 20)])
def test_a_network_of_them_and_what_is_deployed(last: int | None, head: int | None, activation: str) -> None:
    torch.manual_seed(0)
    spec = network(last, head, activation)
    assert NetSpec.from_dict(spec.to_dict()) == spec
    net = normed(HadaptiveNet(spec, 5))
    assert isinstance(net.stem[2], ACTIVATIONS[activation])
    x = torch.randn(3, 3, 32, 32)
    small, said = prepare(net)
    widths = {m.project.in_channels % 16 for m in small.modules() if isinstance(m, DeployProductBlock)}
    assert widths == {0, 8}  # norms that are no constants are of so many products
    assert {m.project.in_channels for m in small.modules() if isinstance(m, DeployPolyBlock)} == {32}
    assert not [m for m in small.modules() if isinstance(m, nn.BatchNorm2d)]
    assert said
    torch.testing.assert_close(small(x), net(x), rtol=1e-3, atol=1e-4)
    assert net.num_features == (last or 16)
    assert net.head_hidden_size == net.forward_head(net.forward_features(x), pre_logits=True).shape[1]
    net.reset_classifier(3)
    assert net(x).shape == (3, 3)
    scripted = torch.jit.script(HadaptiveNet(spec, 5, drop_rate=0))  # a whole number was no rate to TorchScript
    assert scripted(x).shape == (3, 5)


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", "catavgmax"])
def test_a_last_norm_goes_into_what_reads_it_where_the_pool_lets_it(pool: str) -> None:
    net = normed(HadaptiveNet(network(), 5, global_pool=pool))
    x = torch.randn(2, 3, 32, 32)
    small, said = prepare(net)
    torch.testing.assert_close(small(x), net(x), rtol=1e-3, atol=1e-4)
    assert ("no BatchNorm but the last" in said[0]) is (pool != "avg")
    assert any(isinstance(m, nn.BatchNorm2d) for m in small.modules()) is (pool != "avg")


@pytest.mark.parametrize("format", [f for f in SUFFIXES if f not in (*WEIGHTS, "coreml", "ncnn")])
def test_every_format_computes_the_same(format: str, tmp_path: Path) -> None:
    """With every norm of products in it, every way to join, and all that is trained otherwise than deployed."""
    torch.manual_seed(0)
    spec = dataclasses.replace(network(), reparam=True, layer_scale=0.5)
    assert {block.norm for stage in spec.stages for block in stage} == set(NORMS)
    assert {block.kind for stage in spec.stages for block in stage} == set(KINDS)
    net, path = randomise(HadaptiveNet(spec, 4)).eval(), tmp_path / f"net{SUFFIXES[format]}"
    write(deployed(net), path, format, card_of(net), {})
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        np.testing.assert_allclose(
            load(path, trust=True)[0](images.numpy()), net(images).numpy(), rtol=1e-2, atol=1e-3
        )


def test_older_networks_stay_what_they_were() -> None:
    plain = NetSpec("x", ConvSpec(8), (), ((ach(3, 3, 8), ghost(2, 3, 8), inverted(2, 3, 8)),))
    text = str(plain.to_dict())
    assert not [word for word in ("activation", "width", "after", "groups") if word in text]
    assert (plain.activation, plain.last_channels, plain.head_channels) == ("hardswish", 960, 1280)
    published = (HADAPTIVE_NET_S, HADAPTIVE_NET_M, HADAPTIVE_NET_L)
    known = ["cad766a4a3347d5b", "fd222bef95cd6a60", "7343fe126087d485"]
    assert [spec.fingerprint for spec in published] == known


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "products", "k": 2}, "width must be a positive whole number, got None"),
        ({"kind": "products", "k": 1, "width": 4}, "a block of kind products needs k >= 2, got 1"),
        ({"kind": "products", "k": 2, "width": 4, "stride": 2}, "a block of kind products has stride 1, got 2"),
        ({"kind": "products", "k": 2, "width": 4, "ratio": 2.0}, "a block of kind products has no ratio, got 2.0"),
        ({"kind": "conv", "k": 2}, "a block of kind conv has no k, got 2"),
        ({"kind": "conv", "norm": "dyt"}, "norm is for ach and products blocks; one of kind conv"),
        ({"kind": "conv", "after": True}, "after is for products blocks; one of kind conv cannot have True"),
        ({"kind": "conv", "after": 1}, "after must be true or false, got 1"),
        ({"kind": "poly", "stride": 2}, "a block of kind poly has stride 1, got 2"),
        ({"kind": "poly", "channels": 7}, "a block of kind poly needs an even number of channels, got 7"),
        ({"kind": "poly", "norm": "dyt"}, "norm is for ach and products blocks; one of kind poly"),
        ({"kind": "ghost", "ratio": 2.0, "groups": 2}, "groups is for inverted blocks; one of kind ghost"),
        ({"kind": "inverted", "ratio": 2.0, "groups": 0}, "groups must be a positive whole number, got 0"),
        ({"kind": "ghost", "ratio": 2.0, "width": 3}, "a block of kind ghost has no width, got 3"),
    ],
    ids=str,
)
def test_blocks_that_there_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        BlockSpec(**{"channels": 8, "kernel": 3, **options})


def test_networks_that_there_cannot_be() -> None:
    with pytest.raises(UserError, match="a block of kind products keeps its 8 channels, got 12"):
        NetSpec("x", ConvSpec(8), (), ((products(2, 4, 3, 12),),))
    with pytest.raises(UserError, match="a block of kind poly keeps its 8 channels, got 12"):
        NetSpec("x", ConvSpec(8), (), ((poly(3, 12),),))
    for ratio, width in ((2, 16), (1.25, 10)):
        with pytest.raises(UserError, match=f"3 groups do not divide the 8 channels .* the {width} it expands"):
            NetSpec("x", ConvSpec(8), (), ((inverted(ratio, 3, 8, groups=3),),))
    with pytest.raises(UserError, match="activation must be one of hardswish, relu6, relu; got 'gelu'"):
        NetSpec("x", ConvSpec(8), (), ((conv(8),),), activation="gelu")


def test_info_says_what_there_is() -> None:
    info = inspect_network(HadaptiveNet(network(), 3), (3, 32, 32))
    kinds = [layer.kind for layer in info.layers]
    assert "products of 2 blocks of 24, depthwise 3x3, and another" in kinds
    assert "products of 5 blocks of 1, DySoft, depthwise 3x3" in kinds
    assert "product of depthwise 5x5 and 3x3" in kinds
    assert "Conv1x1 to 32 in 2 groups, depthwise 3x3" in kinds
    own = {layer.name: layer.products for layer in info.layers}
    assert own["stages.0.1"] == 24 * 8 * 8
    assert own["stages.1.11"] == own["stages.1.12"] == 16 * 4 * 4
    macs = {layer.name: layer.macs for layer in info.layers}
    assert macs["stages.1.11"] == 4 * 4 * 16 * (2 * 16 + 25 + 9)
    assert macs["stages.1.10"] == 4 * 4 * 32 * (8 + 9 + 16)
    assert own["stages.1.1"] == 10 * 4 * 4


# ---------------------------------------------------------------- in a search, and in a training


def test_a_space_of_them() -> None:
    position = (products(2, 16, 3, 8, after=True), products(4, 4, 3, 8), products(5, 1, 3, 8, act=False), SKIP)
    position = (*position[:3], poly(3, 8), inverted(2, 3, 8, groups=2), SKIP)
    stages = (((conv(8),), (ghost(2, 3, 8), *position[:3]), position),)
    space = SearchSpace("star", (ConvSpec(8, 3, 2),), (), stages, None, None, activation="relu6")
    assert SearchSpace.from_dict(space.to_dict()) == space
    assert [label(c) for c in position] == ["P2x16/3+", "P4x4/3", "P5x1-linear/3", "D3", "I2g2/3", "skip"]
    assert (label(conv(8)), label(conv(8, act=True))) == ("C3/2-linear→8", "C3/2→8")
    assert set(KINDS) == set(DRAWN)
    supernet, x = Supernet(space, 4).eval(), torch.randn(2, 3, 16, 16)
    for choice in itertools.product(*(range(len(p)) for p in space.positions)):
        spec = space.build(choice)
        assert space.find(spec) is not None
        assert (spec.activation, spec.last_channels, spec.head_channels) == ("relu6", None, None)
        assert supernet(x, choice).shape == HadaptiveNet(spec, 4).eval()(x).shape
    with pytest.raises(UserError, match="position 2: a block of kind products keeps its 8 channels, got 12"):
        SearchSpace("x", (ConvSpec(8),), (), (((products(2, 4, 3, 12),),),))


def test_a_run_of_one(tmp_path: Path) -> None:
    network().save(tmp_path / "net.json")
    summary = train(tiny_config(tmp_path, epochs=1, model=str(tmp_path / "net.json")), quiet=True)
    assert summary["test"]["images"] > 0
