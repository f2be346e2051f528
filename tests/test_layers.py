"""Layers in a row: what nn.Sequential does with them, by the operator of normalisation where nobody looks."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hadaptive.nn import AdaptiveCrossHadamard, Layers
from hadaptive.ops import norm

pytestmark = pytest.mark.skipif(norm.unsupported_reason(torch.zeros(2, 1, 4, 4)) is not None, reason="no Numba")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The activations that the kernel was called with, of maps of any size."""
    calls: list[str] = []
    kernel = norm.batch_norm_act

    def noted(*arguments: Any) -> Tensor:
        calls.append(arguments[-1])
        return kernel(*arguments)

    monkeypatch.setattr(norm, "batch_norm_act", noted)
    monkeypatch.setattr(norm, "kernel_is_faster", lambda *arguments: True)
    return calls


def layers(cls: type[nn.Sequential] = Layers, act: nn.Module | None = None, **options: Any) -> Any:
    torch.manual_seed(1)
    return cls(nn.Conv2d(3, 17, 3), nn.BatchNorm2d(17, **options), nn.Hardswish() if act is None else act)


def images(channels_last: bool = False) -> Tensor:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def same(
    change: Callable[[Any], Any] = lambda net: None, steps: int = 2, nhwc: bool = False, **options: Any
) -> None:
    """Values, gradients and states of both kinds after steps with one change made to each."""
    nets = layers(**options), layers(nn.Sequential, **options)
    results = []
    for net in nets:
        change(net)
        ys = [net(images(nhwc)) for _ in range(steps)]
        ys[-1].square().sum().backward()
        gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
        results.append({"y": ys[-1], **gradients, **net.state_dict()})
    assert list(results[0]) == list(results[1])
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("nhwc", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": None},
        {"momentum": 0.0},
        {"track_running_stats": False},
        {"affine": False},
        {"eps": 0.1},
        {"act": nn.ReLU6()},
        {"act": nn.ReLU(inplace=True)},
        {"act": nn.Identity()},
        {"act": nn.GELU()},
    ],
    ids=str,
)
def test_trains_as_a_sequential(options: dict[str, Any], nhwc: bool, taken: list[str]) -> None:
    same(nhwc=nhwc, **options)
    assert len(taken) == 2


def _frozen(net: Any) -> None:
    net[1].eval()


def _half_frozen(net: Any) -> None:
    net[1].weight.requires_grad_(False)


def _without_statistics(net: Any) -> None:
    net[1].running_mean = net[1].running_var = None


@pytest.mark.parametrize(
    ("change", "calls"), [(_frozen, 0), (_half_frozen, 2), (_without_statistics, 2), (nn.Module.eval, 0)]
)
def test_other_states_are_those_of_a_sequential(change: Any, calls: int, taken: list[str]) -> None:
    same(change)
    assert len(taken) == calls


def test_hooks_on_layers_fire(taken: list[str]) -> None:
    net, seen = layers(), []
    handle = net[2].register_forward_hook(lambda *call: seen.append(call[0]))
    net(images())
    assert seen == [net[2]]
    assert taken == ["none"]
    handle.remove()
    net[1].register_forward_hook(lambda module, inputs, y: seen.append(y.detach().min()))
    expected = net(images())
    assert taken == ["none"]
    assert float(seen[1]) < -0.4  # what no hardswish puts out
    everywhere = nn.modules.module.register_module_forward_hook(lambda *call: seen.append(call[0]))
    try:
        layers()(images())
    finally:
        everywhere.remove()
    assert [type(module).__name__ for module in seen[2:5]] == ["Conv2d", "BatchNorm2d", "Hardswish"]
    assert taken == ["none"]
    assert expected.requires_grad


def test_what_looks_for_layers_finds_them(taken: list[str]) -> None:
    net, plain = layers(), layers(nn.Sequential)
    assert list(net.state_dict()) == list(plain.state_dict())
    graphs = [torch.fx.symbolic_trace(each).graph for each in (net, plain)]
    assert [(n.op, n.target) for n in graphs[0].nodes] == [(n.op, n.target) for n in graphs[1].nodes]
    assert type(nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net))[1]) is nn.SyncBatchNorm
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), net[:3]):
        assert type(copied) is Layers
        torch.testing.assert_close(copied(images()), plain(images()), rtol=1e-4, atol=1e-4)
        plain = layers(nn.Sequential)
    assert len(taken) == 3


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_compilers_and_scripts_see_the_layers(taken: list[str]) -> None:
    net, seen = layers(), []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    y = torch.compile(net, backend=keep, fullgraph=True)(images())
    torch.testing.assert_close(y, layers(nn.Sequential)(images()))
    assert not any("hadaptive" in name for name in seen)
    torch.testing.assert_close(torch.jit.script(layers())(images()), y)
    assert taken == []


def test_a_single_value_per_channel_is_refused(taken: list[str]) -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layers()(torch.randn(1, 3, 3, 3))


def test_checkpoints_and_transforms(taken: list[str]) -> None:
    net, plain = layers(), layers(nn.Sequential)
    for each in (net, plain):
        checkpoint(each, images(), use_reentrant=False).square().sum().backward()
    assert len(taken) == 2
    torch.testing.assert_close(net[0].weight.grad, plain[0].weight.grad, rtol=1e-4, atol=1e-4)
    state = {"0.bias": net[0].bias.detach()}
    for each in (net, plain):
        each[1].track_running_stats, each[1].num_batches_tracked = False, None
    jacobians = [
        torch.func.jacrev(lambda s, each=each: torch.func.functional_call(each, s, images()).sum((0, 2, 3)))(state)
        for each in (net, plain)
    ]
    torch.testing.assert_close(jacobians[0]["0.bias"], jacobians[1]["0.bias"])


def test_half_precision_and_autocast_are_pytorchs(taken: list[str]) -> None:
    for net, plain in ((layers().bfloat16(), layers(nn.Sequential).bfloat16()),):
        assert net(images().bfloat16()).equal(plain(images().bfloat16()))
    with torch.autocast("cpu", torch.bfloat16):
        assert layers()(images()).equal(layers(nn.Sequential)(images()))
    assert taken == []


def test_the_networks_norms_take_the_kernel(taken: list[str]) -> None:
    net = timm.create_model("hadaptive_net_s", num_classes=3)
    net(torch.randn(2, 3, 64, 64))
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    assert len(taken) > 0.7 * norms  # the last maps are of four positions and few channels
    assert {"none", "hardswish"} == set(taken)


def test_products_are_normalised_by_the_kernel(taken: list[str]) -> None:
    module = AdaptiveCrossHadamard(8, 7, norm="batchnorm", selection="sample")
    module(torch.randn(2, 8, 6, 6)).sum().backward()
    assert taken == ["none", "none"]


@pytest.mark.parametrize("compiled", [False, True])
def test_depthwise_layers_under_vmap_with_gradients(compiled: bool) -> None:
    """What the layout of a mapped map is, PyTorch does not say: it was asked, and raised."""
    torch.manual_seed(0)
    row = Layers(nn.Conv2d(8, 8, 7, padding=3, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6()).eval()
    mapped = torch.compile(torch.vmap(row), backend="eager") if compiled else torch.vmap(row)
    x = torch.randn(3, 1, 8, 12, 12)
    expected = torch.stack([row(each) for each in x])
    (wanted,) = torch.autograd.grad(expected.sum(), row[0].weight)
    for laid in (x, x.to(memory_format=torch.channels_last_3d)):
        found = mapped(laid)
        torch.testing.assert_close(found, expected)
        (gradient,) = torch.autograd.grad(found.sum(), row[0].weight)
        torch.testing.assert_close(gradient, wanted)
