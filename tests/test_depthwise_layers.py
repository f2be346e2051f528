"""Layers with a depthwise convolution train and export as PyTorch's sequence of them."""

import copy
import io
import pickle
import warnings
from collections.abc import Callable

import onnx
import pytest
import torch
from convolutions import KERNEL, Seen, close, image, layers, runs_kernel, take_the_smallest
from problems import arranged
from tiny import TINY
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from hadaptive import ops
from hadaptive.models import HadaptiveNet
from hadaptive.nn import AdaptiveBottleneck, GhostExpansion, Layers
from hadaptive.ops import library

pytestmark = pytest.mark.skipif(library._unusable("cpu") is not None, reason="Numba is not installed")
quiet = pytest.mark.filterwarnings("ignore:.torch.jit", "ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def _kernels_for_the_smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    take_the_smallest(monkeypatch)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_layers_train_as_pytorchs_sequence(kernel: int, layout: str) -> None:
    x = image(layout)
    results = []
    for cls in (Layers, nn.Sequential):
        net, leaf = layers(kernel, cls=cls), x.detach().requires_grad_()
        y = net(leaf)
        gradients = torch.autograd.grad(y.square().sum(), [leaf, *net.parameters()])
        results.append([y, *gradients, *net.buffers(), net.eval()(x)])
    for a, b in zip(*results, strict=True):
        close(a, b)
    assert torch.equal(results[0][0], results[1][0])


def test_layers_run_the_kernel_where_it_is_faster_and_only_in_training() -> None:
    x = image()
    assert runs_kernel(lambda: layers()(x))
    assert not runs_kernel(lambda: layers(3)(image("channels_last")))
    with torch.no_grad(), Seen() as seen:
        layers()(x)
    assert not any("hadaptive" in name for name in seen.names)


def frozen(net: nn.Sequential) -> None:
    net[0].requires_grad_(False)


def hooked(net: nn.Sequential) -> None:
    net[0].register_forward_hook(lambda module, arguments, output: 2 * output)


def hooked_before(net: nn.Sequential) -> None:
    net[0].register_forward_pre_hook(lambda module, arguments: (3 * arguments[0],))


def hooked_behind(net: nn.Sequential) -> None:
    net[0].register_full_backward_hook(lambda module, gradients, outputs: (2 * gradients[0],))


def replaced(net: nn.Sequential) -> None:
    net[0].forward = lambda x: x + net[0].weight.sum()


def parametrized(net: nn.Sequential) -> None:
    parametrizations.weight_norm(net[0])


def pruned(net: nn.Sequential) -> None:
    prune.random_unstructured(net[0], "weight", 0.5)


def reflecting(net: nn.Sequential) -> None:
    net[0] = nn.Conv2d(6, 6, 5, padding=2, groups=6, padding_mode="reflect")


def multiplied(net: nn.Sequential) -> None:
    net[0], net[1] = nn.Conv2d(6, 12, 5, padding=2, groups=6), nn.BatchNorm2d(12)


def same(net: nn.Sequential) -> None:
    net[0] = nn.Conv2d(6, 6, 5, padding="same", groups=6)


def dense(net: nn.Sequential) -> None:
    net[0] = nn.Conv2d(6, 6, 5, padding=2)


def without(net: nn.Sequential) -> None:
    net[0] = nn.Identity()


def shorter(net: nn.Sequential) -> None:
    del net[0]


CHANGES = (
    *(frozen, hooked, hooked_before, hooked_behind, replaced, parametrized, pruned),
    *(reflecting, multiplied, same, dense, without, shorter),
)


@quiet
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_whatever_is_done_to_the_convolution_is_done(change: Callable[[nn.Sequential], None]) -> None:
    results = []
    for cls in (Layers, nn.Sequential):
        net, x = layers(cls=cls), image().requires_grad_()
        torch.manual_seed(2)
        change(net)
        torch.manual_seed(3)
        x = torch.randn(3, 6, 7, 9, requires_grad=True)
        y = net(x)
        wanted = [x, *(p for p in net.parameters() if p.requires_grad)]
        results.append([y, *torch.autograd.grad(y.square().sum(), wanted)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_hooks_on_every_module_see_the_convolution() -> None:
    seen: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, a, y: seen.append(module))
    try:
        net = layers()
        net(image())
    finally:
        handle.remove()
    assert net[0] in seen


def test_the_convolution_stays_pytorchs() -> None:
    for block in (AdaptiveBottleneck(GhostExpansion(4, 2.0), 4, 8, 4, 5), copy.deepcopy(layers())):
        depthwise = [m for m in block.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
        assert depthwise
        assert all(type(m) is nn.Conv2d for m in depthwise)
    net = layers()
    assert list(net.state_dict()) == list(layers(cls=nn.Sequential).state_dict())
    assert repr(net).removeprefix("Layers") == repr(layers(cls=nn.Sequential)).removeprefix("Sequential")
    assert type(net[:2]) is Layers
    again = pickle.loads(pickle.dumps(net))
    x = image()
    assert torch.equal(again(x), net(x))


def test_graphs_are_those_of_pytorchs_sequence() -> None:
    x = image()
    codes = []
    for cls in (Layers, nn.Sequential):
        net = layers(cls=cls)
        wrapped = nn.Sequential(net)
        exported = torch.export.export(wrapped, (x,))
        codes.append([torch.fx.symbolic_trace(wrapped).code, exported.graph_module.code])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nodes = torch.jit.trace(net, x).inlined_graph.nodes()
            codes[-1] += [[(node.kind(), node.scopeName()) for node in nodes], torch.jit.script(net)(x)]
    for a, b in zip(*codes, strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


@quiet
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
def test_onnx_files_are_those_of_pytorchs_sequence(dynamo: bool) -> None:
    files = []
    for cls in (Layers, nn.Sequential):
        file = io.BytesIO()
        program = torch.onnx.export(
            layers(cls=cls).eval(), (image(),), None if dynamo else file, dynamo=dynamo, verbose=False
        )
        proto = onnx.load_from_string(file.getvalue()) if program is None else program.model_proto
        files.append([(node.op_type, node.name, list(node.input)) for node in proto.graph.node])
    assert files[0] == files[1]


@quiet
def test_pytorchs_quantisers_fuse_it() -> None:
    net = layers().eval()
    fused = torch.ao.quantization.fuse_modules(net, ["0", "1"])
    x = image()
    close(fused(x), net(x))
    assert isinstance(fused[1], nn.Identity)
    trained = torch.ao.quantization.fuse_modules_qat(layers().train(), ["0", "1"])
    assert torch.isfinite(trained(x)).all()


def test_every_depthwise_convolution_of_a_network_runs_it() -> None:
    model = HadaptiveNet(TINY, num_classes=4).train()
    count = sum(isinstance(m, nn.Conv2d) and m.groups > 1 for m in model.modules())
    with Seen() as seen:
        model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert seen.names.count(KERNEL) == count > 2


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_network_learns_as_in_plain_pytorch(layout: str) -> None:
    x = arranged(torch.randn(4, 3, 32, 32), layout)
    gradients = []
    for name in ("fused", "reference"):
        torch.manual_seed(0)
        model = HadaptiveNet(TINY, num_classes=4, drop_rate=0.0).train()
        torch.manual_seed(1)
        if name == "reference":
            with ops.backend(name):
                model(x).square().sum().backward()
        else:
            model(x).square().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, b in gradients[1].items():
        scale = b.abs().max().clamp(min=1e-3)
        torch.testing.assert_close(gradients[0][name] / scale, b / scale, rtol=0, atol=1e-3, msg=name)
