"""What trains otherwise than it is deployed: branches of depthwise convolutions, scales of residual branches; and
channels that are added in place of appended."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from networks import close, randomise, same_under_transforms
from timm.utils import reparameterize_model
from tiny import tiny_config
from torch import nn

from hadaptive.cli import main
from hadaptive.errors import UserError
from hadaptive.info import inspect_network
from hadaptive.measure.deploy import DeployBlock, fold
from hadaptive.measure.passes import prepare
from hadaptive.measure.untrained import liven, untrained
from hadaptive.models import ConvSpec, HadaptiveNet, NetSpec
from hadaptive.models.layer_spec import BlockSpec, ach, conv, ghost, inverted, poly, products
from hadaptive.models.published import HADAPTIVE_NET_S
from hadaptive.models.variants import changed
from hadaptive.nn import (
    ACTIVATIONS,
    NORMS,
    AdaptiveBottleneck,
    AdaptiveCrossHadamard,
    GhostExpansion,
    InvertedExpansion,
    PolyBlock,
    ProductBlock,
    RepDepthwise,
)
from hadaptive.nn.checks import SELECTIONS
from hadaptive.nn.reparam import reparameterized
from hadaptive.search.labels import label
from hadaptive.train import train

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
LEVERS: dict[str, dict[str, Any]] = {
    "reparam": {"reparam": True},
    "scale": {"layer_scale": 0.5},
    "both": {"reparam": True, "layer_scale": 0.5},
}


def network(selection: str = "static", **options: Any) -> NetSpec:
    """Every kind of block, kernels that are even, of one pixel, and of more, and whatever can be added."""
    first = (conv(12), products(2, 24, 3, 12, after=True), products(3, 8, 5, 12), inverted(2, 1, 12))
    second = (
        ghost(2, 2, 16, 2),
        poly(7, 16),
        ghost(2, 5, 16, join="add"),
        dataclasses.replace(ach(4, 3, 16), join="add"),
        dataclasses.replace(ach(8, 5, 16), join="add"),
        dataclasses.replace(ach(3, 3, 16, pairing="blocks"), join="add"),
        dataclasses.replace(ach(4, 3, 16, norm="dyt", pairing="blocks"), join="add"),
        ach(4, 5, 16, 2),
    )
    return NetSpec("some", ConvSpec(8, 3, 2), (), (first, second), 24, None, selection=selection, **options)


# ---------------------------------------------------------------- branches that are one convolution


@pytest.mark.parametrize(
    ("kernel", "stride"), [(k, s) for k in (1, 2, 3, 5, 7) for s in (1, 2) if (k, s) != (2, 1)]
)
def test_the_branches_are_one_convolution(kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    layer: Any = randomise(RepDepthwise(6, kernel, stride, dtype=torch.float64)).eval()
    fused, x = layer.fuse(), torch.randn(2, 6, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(fused(x), layer(x), rtol=0, atol=1e-12)
    assert (fused.kernel_size, fused.stride, fused.groups) == ((kernel, kernel), (stride, stride), 6)
    wide, identity = kernel > 3, stride == 1 and kernel % 2 == 1
    assert len(layer.beside) == wide + identity
    again = layer.fuse()  # nothing of the layer was changed
    assert torch.equal(again.weight, fused.weight)
    assert layer.main[0].bias is None
    assert all(module.training for module in layer.train().modules())
    layer.fuse()
    assert all(module.training for module in layer.modules())


def test_what_the_branches_compute() -> None:
    torch.manual_seed(0)
    layer: Any = RepDepthwise(4, 5, dtype=torch.float64)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64, requires_grad=True)
    convs = (layer.main[0], layer.beside["small"][0])
    large, small = (nn.functional.conv2d(x, c.weight, padding=c.padding, groups=4) for c in convs)

    def normed(y: torch.Tensor) -> torch.Tensor:
        mean, var = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), keepdim=True, unbiased=False)
        return (y - mean) / (var + 1e-5).sqrt()

    torch.testing.assert_close(layer(x), normed(large) + normed(small) + normed(x), rtol=0, atol=1e-10)
    layer(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    assert torch.autograd.gradcheck(randomise(layer).eval(), (x,))


@pytest.mark.parametrize("lever", LEVERS)
@pytest.mark.parametrize("kind", ["bottleneck", "products", "star", "poly"])
def test_under_every_transform(kind: str, lever: str) -> None:
    torch.manual_seed(0)
    options = {"layer_scale_init" if k == "layer_scale" else k: v for k, v in LEVERS[lever].items()}
    makers: dict[str, Any] = {
        "bottleneck": lambda **dd: AdaptiveBottleneck(InvertedExpansion(6, 2, **dd), 6, 12, 6, 5, **options, **dd),
        "products": lambda **dd: ProductBlock(6, 3, 4, 3, after=False, **options, **dd),
        "star": lambda **dd: ProductBlock(6, 2, 12, 7, **options, **dd),
        "poly": lambda **dd: PolyBlock(6, 5, **options, **dd),
    }
    block: Any = randomise(makers[kind]()).eval()
    same_under_transforms(block, torch.randn(3, 6, 7, 7))
    assert makers[kind](dtype=torch.bfloat16)(torch.randn(2, 6, 7, 7).bfloat16()).dtype == torch.bfloat16
    filled = makers[kind](device="meta").to_empty(device="cpu").eval()
    filled.load_state_dict(block.state_dict())
    x = torch.randn(2, 6, 7, 7)
    assert torch.equal(filled(x), block(x))
    block.train()(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


def test_a_scale_is_of_the_residual_branch_alone() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 7, 7)
    for make in (
        lambda **o: ProductBlock(6, 2, 12, 3, **o),
        lambda **o: ProductBlock(6, 2, 12, 3, after=False, **o),
        lambda **o: PolyBlock(6, 3, **o),
        lambda **o: AdaptiveBottleneck(InvertedExpansion(6, 2), 6, 12, 6, 3, **o),
    ):
        scaled, plain = make(layer_scale_init=0.25).eval(), make().eval()
        plain.load_state_dict({k: v for k, v in scaled.state_dict().items() if not k.endswith("gamma")})
        close(scaled(x) - x, (plain(x) - x) / 4)
    moved = AdaptiveBottleneck(InvertedExpansion(6, 2), 6, 12, 8, 3, layer_scale_init=0.25)
    assert not [name for name, _ in moved.named_parameters() if name.endswith("gamma")]


# ---------------------------------------------------------------- added in place of appended


@pytest.mark.parametrize("shape", [(2, 9, 4, 5), (3, 9), (2, 9, 6)], ids=str)
@pytest.mark.parametrize(("k", "pairing"), [(3, "triangle"), (6, "triangle"), (3, "blocks"), (4, "blocks")])
def test_products_are_added_to_the_mixed_channels(k: int, pairing: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    plain = randomise(AdaptiveCrossHadamard(9, k, pairing=pairing)).eval()
    added = AdaptiveCrossHadamard(9, k, pairing=pairing, join="add").eval()
    added.load_state_dict(plain.state_dict())
    x = torch.randn(*shape)
    y = plain(x)
    expected = torch.zeros(y.shape[0], max(9, y.shape[1] - 9), *y.shape[2:])
    expected[:, :9] += y[:, :9]
    expected[:, : y.shape[1] - 9] += y[:, 9:]
    assert added.out_channels == expected.shape[1]
    close(added(x), expected)
    if x.dim() == 4:
        same_under_transforms(added, x)


@pytest.mark.parametrize("ratio", [1, 2, 3.5])
def test_cheap_channels_are_added_to_the_primary_ones(ratio: float) -> None:
    torch.manual_seed(0)
    layer: Any = randomise(GhostExpansion(6, ratio, act_layer=nn.ReLU, join="add")).eval()
    x = torch.randn(2, 6, 5, 5)
    primary = layer.primary(x)
    branches = layer.cheap[0]
    close(layer(x), torch.relu(branches.main(primary) + branches.beside["identity"](primary)))
    assert layer.out_channels == -(-int(6 * ratio) // 2)
    same_under_transforms(layer, x)


# ---------------------------------------------------------------- whole networks


# Any lever with any selection and any activation, but not all three with each other.
DEPLOYED = [
    (lever, selection, list(ACTIVATIONS)[(n + m) % 3])
    for n, lever in enumerate([*LEVERS, "none"])
    for m, selection in enumerate(SELECTIONS)
]


@pytest.mark.parametrize(("lever", "selection", "activation"), DEPLOYED)
def test_what_is_deployed_is_the_same_and_as_small(lever: str, selection: str, activation: str) -> None:
    torch.manual_seed(0)
    options = {"activation": activation, "selection": selection}
    spec, bare = network(**options, **LEVERS.get(lever, {})), network(**options)
    assert NetSpec.from_dict(spec.to_dict()) == spec
    net: Any = HadaptiveNet(spec, 5, stem_strides=(1,))
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            randomise(module)
    net.eval()
    x = torch.randn(3, 3, 32, 32)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for small in (fold(net), prepare(net)[0]):
        torch.testing.assert_close(small(x), net(x), rtol=1e-3, atol=1e-4)
        assert not [m for m in small.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm | RepDepthwise)]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    other = prepare(HadaptiveNet(bare, 5, stem_strides=(1,)).eval())[0]
    count, others = (sum(p.numel() for p in m.parameters()) for m in (small, other))
    # `after` has no BatchNorm without branches, so that a network of them has no parameter more.
    assert count == others
    close(reparameterize_model(net)(x), net(x))
    if selection == "static":
        close(torch.jit.script(net)(x), net(x))
    net.train()(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_every_norm_and_width_is_added_when_it_is_deployed() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 16)
    for norm in NORMS:
        for k, pairing in ((3, "triangle"), (8, "triangle"), (2, "blocks"), (5, "blocks")):
            block = BlockSpec("ach", 12, 3, k=k, norm=norm, pairing=pairing, join="add")
            net: Any = randomise(
                HadaptiveNet(NetSpec("x", ConvSpec(12, 3, 2), (), ((block,),), None, None), 4)
            ).eval()
            small, _ = prepare(net)
            torch.testing.assert_close(small(x), net(x), rtol=1e-3, atol=1e-3)
            (own,) = [m for m in small.modules() if isinstance(m, DeployBlock)]
            filled = norm in ("dysoft", "batchnorm", "identity") and pairing == "triangle"
            assert own.project.in_channels % 16 == 0 or not filled


def test_variants_are_the_network_with_a_lever() -> None:
    plain = HadaptiveNet(HADAPTIVE_NET_S, 10)
    for name in ("reparam", "scale", "add"):
        spec = changed(HADAPTIVE_NET_S, name)
        net: Any = HadaptiveNet(spec, 10)
        info, own = (inspect_network(n, (3, 64, 64)) for n in (net, plain))
        assert info.parameters == sum(p.numel() for p in net.parameters())
        assert (info.macs == own.macs) is (name != "add")
        assert (info.parameters > own.parameters) is (name != "add")
    kinds = [layer.kind for layer in info.layers]
    assert any(kind.startswith("ACH k=16 added, DySoft") for kind in kinds)
    assert info.macs < own.macs


@pytest.mark.parametrize("control", ["inverted", "ghost", "linear"])
def test_controls_of_added_products_are_as_wide_as_those(control: str) -> None:
    added = changed(HADAPTIVE_NET_S, "add")
    ours, theirs = (
        [b.project[0].in_channels for b in HadaptiveNet(spec, 10).modules() if isinstance(b, AdaptiveBottleneck)]
        for spec in (added, changed(added, control))
    )
    assert ours == theirs


def test_info_and_labels_say_so() -> None:
    info = inspect_network(HadaptiveNet(network(reparam=True), 5, stem_strides=(1,)), (3, 32, 32))
    kinds = [layer.kind for layer in info.layers]
    assert "Ghost added to 16, depthwise 5x5" in kinds
    assert "product of depthwise 7x7 and 3x3" in kinds
    assert "products of 2 blocks of 24, depthwise 3x3, and another" in kinds
    assert sum(layer.parameters for layer in info.layers) == info.parameters
    assert label(ghost(2, 5, 16, join="add")) == "G2+/5"
    assert label(dataclasses.replace(ach(4, 3, 16, norm="batchnorm"), join="add")) == "A4+/3b"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reparam": 1}, "reparam must be true or false, got 1"),
        ({"layer_scale": 0}, "layer_scale must be a positive number, or left out, got 0"),
        ({"layer_scale": True}, "layer_scale must be a positive number, or left out, got True"),
        ({"layer_scale": float("nan")}, "layer_scale must be a positive number, or left out, got nan"),
    ],
    ids=str,
)
def test_networks_that_there_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        network(**options)


def test_joins_that_there_cannot_be() -> None:
    with pytest.raises(UserError, match="join must be one of concat, add; got 'sum'"):
        BlockSpec("ghost", 8, 3, ratio=2.0, join="sum")
    with pytest.raises(UserError, match="join is for ghost and ach blocks; one of kind poly cannot have 'add'"):
        BlockSpec("poly", 8, 3, join="add")
    for module in (GhostExpansion, AdaptiveCrossHadamard):
        with pytest.raises(ValueError, match="join must be one of concat, add; got 'sum'"):
            module(8, 2, join="sum")


# ---------------------------------------------------------------- networks of others, and runs


@pytest.mark.parametrize("name", ["repghostnet_050", "mobileone_s0", "repvit_m0_9", "starnet_s050"])
def test_networks_of_timm_are_deployed_without_their_branches(name: str) -> None:
    """Of a rival, what is timed and exported is what its authors deploy."""
    torch.manual_seed(0)
    branched = liven(timm.create_model(name, num_classes=10), torch.randn(8, 3, 64, 64))
    fused, x = reparameterized(branched), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = branched(x)
        torch.testing.assert_close(fused(x) / expected.abs().max(), expected / expected.abs().max())
    assert (fused is branched) is (name == "starnet_s050")
    fewer = len(list(untrained(name, 64).modules())) < len(list(branched.modules()))
    assert fewer is (name != "starnet_s050")


def test_a_person_s_own_layer_called_fuse_is_not_called() -> None:
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Module()
            self.inner.fuse = nn.Conv2d(3, 3, 1)  # pyright: ignore

    mine = nn.Sequential(Mine())
    assert reparameterized(mine) is mine


@pytest.mark.slow
def test_ours_is_timed_in_pytorch_without_its_branches() -> None:
    assert not [m for m in untrained("hadaptive_net_s:reparam", 64).modules() if isinstance(m, RepDepthwise)]


@pytest.mark.slow
def test_a_rival_of_branches_is_exported_without_them(tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "net.onnx"
    line = ["export", "repghostnet_050", "--image-size", "32", "--num-classes", "10", "--output", str(path)]
    assert main(line) == 0
    net = untrained("repghostnet_050", 32)
    convolutions = [node for node in onnx.load(path).graph.node if node.op_type == "Conv"]
    assert len(convolutions) == sum(isinstance(m, nn.Conv2d) for m in net.modules())


@pytest.mark.slow
def test_a_run_of_all_levers(tmp_path: Path) -> None:
    network(reparam=True, layer_scale=0.1).save(tmp_path / "net.json")
    summary = train(tiny_config(tmp_path, epochs=1, model=str(tmp_path / "net.json")), quiet=True)
    assert summary["test"]["images"] > 0
