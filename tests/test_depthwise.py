"""Depthwise convolutions with gradients of ours: PyTorch's in all but the time, and invisible to its tools."""

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from problems import LAYOUTS, arranged
from test_depthwise_kernels import CASES, truth
from tiny import TINY
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrizations, prune
from torch.utils._python_dispatch import TorchDispatchMode

from hadaptive import ops
from hadaptive.models import HadaptiveNet
from hadaptive.nn import AdaptiveBottleneck, GhostExpansion, Layers
from hadaptive.ops import convolution, library, reference
from hadaptive.ops.convolution import kernel_is_faster

pytestmark = pytest.mark.skipif(library._unusable("cpu") is not None, reason="Numba is not installed")
quiet = pytest.mark.filterwarnings("ignore:.torch.jit", "ignore::DeprecationWarning", "ignore::FutureWarning")
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
KERNEL = "hadaptive.depthwise_backward.default"


@pytest.fixture(autouse=True)
def _kernels_for_the_smallest(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size: in tests it is small."""
    if request.function is not test_the_rule:
        monkeypatch.setattr(convolution, "MIN_PRODUCTS", 0)
        monkeypatch.setattr(convolution, "MIN_NUMBERS", 0)


class Seen(TorchDispatchMode):
    """The operators that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def runs_kernel(function: Callable[[], Tensor]) -> bool:
    """Whether the gradients of what the function computes come from our kernel."""
    with Seen() as seen:
        function().sum().backward()
    return KERNEL in seen.names


def small(layout: str = "contiguous", dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    """x, weight, bias, stride, padding, dilation of a convolution that has a kernel in every layout."""
    x = arranged(torch.randn(2, 5, 6, 7, dtype=dtype), layout).requires_grad_()
    weight, bias = torch.randn(5, 1, 4, 5, dtype=dtype), torch.randn(5, dtype=dtype)
    return x, weight.requires_grad_(), bias.requires_grad_(), (1, 1), (2, 1), (1, 1)


def plain(x: Tensor, weight: Tensor, bias: Tensor | None = None, *sizes: Any) -> Tensor:
    return F.conv2d(x, weight, bias, *sizes, groups=x.shape[1])


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- values and gradients


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("biased", [False, True], ids=["no-bias", "bias"])
@each_case
def test_value_and_gradients(case: tuple, biased: bool, layout: str) -> None:
    shape, kernel, *sizes = case
    x, weight = arranged(torch.randn(shape), layout), torch.randn(shape[1], 1, *kernel)
    bias = torch.randn(shape[1]) if biased else None
    leaves = [t.requires_grad_() for t in (x, weight, bias) if t is not None]
    y = ops.depthwise(x, weight, bias, *sizes, backend="fused")
    expected = plain(x, weight, bias, *sizes)
    assert torch.equal(y, expected)
    assert y.stride() == expected.stride()
    grad = torch.randn(y.shape)
    found = torch.autograd.grad(y, leaves, grad)
    true = [*truth(grad, x.detach(), weight.detach(), *sizes), grad.double().sum((0, 2, 3))]
    for a, b in zip(found, true, strict=False):
        scale = b.abs().max().clamp(min=1)
        torch.testing.assert_close(a.double() / scale, b / scale, rtol=0, atol=2e-6)


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (True, True)], ids=["x", "weight", "both"])
def test_only_what_needs_a_gradient_gets_one(wanted: tuple[bool, bool]) -> None:
    x, weight, _, *sizes = small()
    for t, yes in zip((x, weight), wanted, strict=True):
        t.requires_grad_(yes)
    y = ops.depthwise(x, weight, None, *sizes, backend="fused")
    y.sum().backward()
    assert [x.grad is not None, weight.grad is not None] == list(wanted)


def test_a_bias_alone_may_need_a_gradient() -> None:
    x, weight, bias, *sizes = small()
    y = ops.depthwise(x.detach(), weight.detach(), bias, *sizes, backend="fused")
    assert torch.autograd.grad(y.sum(), bias)[0].equal(torch.full((5,), float(y[:, 0].numel())))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("size", [1, (2, 3), [3, 2]], ids=str)
def test_sizes_are_given_as_to_pytorch(size: Any, layout: str) -> None:
    x, weight, bias, *_ = small(layout)
    for sizes in ((size, 2, 1), (1, size, 1), (1, 3, size)):
        y, expected = ops.depthwise(x, weight, bias, *sizes), plain(x, weight, bias, *sizes)
        assert torch.equal(y, expected)
        grad = torch.randn(y.shape)
        for a, b in zip(*(torch.autograd.grad(t, (x, weight, bias), grad) for t in (y, expected)), strict=True):
            close(a, b)


def test_gradients_that_are_differentiated_themselves() -> None:
    x, weight, bias, *sizes = small(dtype=torch.float64)
    arguments = (x[:1, :2, :4, :5].detach().requires_grad_(), weight[:2].detach().requires_grad_(), bias[:2])

    def function(*tensors: Tensor) -> Tensor:
        return ops.depthwise(*tensors, *sizes)

    assert torch.autograd.gradcheck(function, arguments)
    assert torch.autograd.gradgradcheck(function, arguments)


def test_second_derivatives_of_arguments_that_depend_on_each_other() -> None:
    start, *_, stride, padding, dilation = small()
    results = []
    for operator, dtype in ((ops.depthwise, torch.float32), (plain, torch.float64)):
        x = start.detach().to(dtype).requires_grad_()
        weight = x[0, :, :4, :5].unsqueeze(1).tanh()
        y = operator(x, weight, x.mean((0, 2, 3)), stride, padding, dilation)
        first = torch.autograd.grad(y.square().sum(), x, create_graph=True)[0]
        results += [[first, torch.autograd.grad(first.square().sum(), x)[0]]]
    for a, b in zip(*results, strict=True):
        close((a / b.abs().max()).double(), b / b.abs().max())


@quiet
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # opcheck's own
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck(layout: str) -> None:
    x, weight, bias, *sizes = small(layout)
    torch.library.opcheck(torch.ops.hadaptive.depthwise.default, (x, weight, bias, *sizes))
    grad = torch.randn_like(plain(x, weight, bias, *sizes)).requires_grad_()
    for wanted in ([True, True], [False, True]):
        arguments = (grad, x, weight, *sizes, wanted)
        torch.library.opcheck(torch.ops.hadaptive.depthwise_backward.default, arguments)


def test_mistakes_are_named() -> None:
    x, weight, bias, *_ = small()
    for arguments, message in (
        ((x[0], weight), r"x must have shape \(B, C, H, W\)"),
        ((x, weight[:4]), r"weight must have shape \(5, 1, h, w\), got \(4, 1, 4, 5\)"),
        ((x, weight.expand(5, 5, 4, 5)), r"weight must have shape \(5, 1, h, w\)"),
        ((x, weight, bias[:4]), r"bias must have shape \(5,\), got \(4,\)"),
        ((x, weight.double()), "weight is torch.float64 and x torch.float32"),
        ((x, weight.to("meta")), "weight is on meta and the map on cpu"),
        ((x, weight, None, 0), "stride must be positive"),
        ((x, weight, None, 1, -1), "padding must not be negative"),
        (
            (x, weight, None, 1, 0, 9),
            r"reaches over \(28, 37\) positions, and the padded map has \(6, 7\)",
        ),
        ((x, weight, None, (1, 2, 3)), "stride must be a number or two"),
        ((x.long(), weight), "x must be a floating-point tensor"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.depthwise(*arguments)


# ---------------------------------------------------------------- who takes it


def faster(nhwc: bool, side: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> bool:
    pairs = [(n, n) for n in (kernel, stride, padding, dilation)]
    return kernel_is_faster(nhwc, (16, 256, side, side), *pairs)


def test_the_rule() -> None:
    for nhwc in (False, True):
        assert faster(nhwc, 7, 7, padding=3)
        assert faster(nhwc, 14, 5, padding=2)
        assert faster(nhwc, 28, 3, padding=2)
        assert faster(nhwc, 28, 3, padding=2, dilation=2)
        assert faster(nhwc, 28, 1)
        assert faster(nhwc, 28, 3, padding=1) == (not nhwc)
        assert faster(nhwc, 28, 2, stride=2) == (not nhwc)
        assert not faster(nhwc, 257, 7)  # larger than caches
        assert not faster(nhwc, 3, 5)  # less than a call costs
        assert not faster(nhwc, 7, 5, stride=4)
        assert not faster(nhwc, 14, 3, padding=1)


def explained(*arguments: Any) -> str:
    return ops.explain("depthwise", *arguments)[1]


def test_explanations() -> None:
    x, weight, bias, *sizes = small()
    assert ops.explain("depthwise", x, weight, bias, *sizes) == ("fused", library.describe(x))
    assert ops.explain("depthwise", x)[0] == "fused"
    assert explained(x.double(), weight.double()) == "torch.float64 is left to plain PyTorch"
    assert explained(x, weight.detach()) == "x's gradient alone is as fast in PyTorch"
    last = arranged(torch.randn(2, 5, 6, 7), "channels_last")
    assert (
        explained(last, weight[:, :, :3, :3]) == "PyTorch's gradients are as fast for this kernel, size and layout"
    )
    with torch.no_grad():
        assert explained(x, weight) == "without gradients it is PyTorch's convolution"
    with torch.autocast("cpu"):
        assert explained(x, weight) == "autocast chooses the dtype of convolutions"


def test_a_forced_backend_is_taken_or_says_why_not() -> None:
    x, weight, bias, *sizes = small()
    assert runs_kernel(lambda: ops.depthwise(x, weight, bias, *sizes))
    assert not runs_kernel(lambda: ops.depthwise(x, weight, bias, *sizes, backend="reference"))
    with ops.backend("reference"):
        assert not runs_kernel(lambda: ops.depthwise(x, weight, bias, *sizes))
    with pytest.raises(ValueError, match="float64"):
        ops.depthwise(x.double(), weight.double(), backend="fused")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes_are_pytorchs(dtype: torch.dtype) -> None:
    x, weight, bias, *sizes = small(dtype=dtype)
    results = [f(x, weight, bias, *sizes) for f in (ops.depthwise, plain)]
    assert torch.equal(*results)
    gradients = [torch.autograd.grad(y.float().square().sum(), (x, weight, bias)) for y in results]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_default_dtype_and_device_are_not_asked(dtype: torch.dtype) -> None:
    x, weight, bias, *sizes = small("channels_last")
    expected = torch.autograd.grad(ops.depthwise(x, weight, bias, *sizes).square().sum(), (x, weight, bias))
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            y = ops.depthwise(x, weight, bias, *sizes)
            found = torch.autograd.grad(y.square().sum(), (x, weight, bias))
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_autocast_is_pytorchs() -> None:
    x, weight, bias, *sizes = small()
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = (f(x, weight, bias, *sizes) for f in (ops.depthwise, plain))
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected)


# ---------------------------------------------------------------- PyTorch's tools


TRANSFORMS = {
    "jacrev": lambda f, *a: torch.func.jacrev(f, argnums=(0, 1))(*a),
    "jacfwd": lambda f, *a: torch.func.jacfwd(f, argnums=1)(*a),
    "hessian": lambda f, *a: torch.func.hessian(lambda *t: f(*t).square().sum(), argnums=1)(*a),
    "vmap": lambda f, *a: torch.vmap(f)(*(torch.stack([t, 2 * t]) for t in a)),
    "vmap-of-grad": lambda f, *a: torch.vmap(torch.func.grad(lambda *t: f(*t).square().sum(), argnums=(0, 1)))(
        *(torch.stack([t, 2 * t]) for t in a)
    ),
    "jvp": lambda f, *a: torch.func.jvp(f, a, tuple(map(torch.ones_like, a))),
    "functionalize": lambda f, *a: torch.func.functionalize(f)(*a),
    "jacobian": lambda f, *a: torch.autograd.functional.jacobian(f, a, vectorize=True),
}


@quiet
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms(transform: Any) -> None:
    x, weight, bias, *sizes = small()
    arguments = [t.detach()[:2] for t in (x[:, :2, :4, :5], weight, bias)]
    found, expected = (transform(lambda *t, f=f: f(*t, *sizes), *arguments) for f in (ops.depthwise, plain))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(mode: str) -> None:
    def gradients(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        y = ops.depthwise(x, weight, bias, 1, (2, 1), 1)
        return torch.autograd.grad(y.square().sum(), (x, weight, bias))

    graph = make_fx(gradients, tracing_mode=mode)(*small()[:3])
    others = small()[:3]
    close(graph(*others), gradients(*others))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compiled_training(layout: str) -> None:
    net, x = layers(), image(layout).requires_grad_()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    wanted = [x, *net.parameters()]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        found = torch.autograd.grad(compiled(x).square().sum(), wanted)
    assert "hadaptive::depthwise_backward" in {row.key for row in profile.key_averages()}
    close(found, torch.autograd.grad(net(x).square().sum(), wanted))


def test_scripts_and_traces_are_pytorchs() -> None:
    def function(x: Tensor, weight: Tensor) -> Tensor:
        return ops.depthwise(x, weight, None, (1, 1), (2, 1), (1, 1))

    x, weight, *_ = small()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = [torch.jit.trace(function, (x, weight)), torch.jit.script(function)]
    for run in made:
        assert "hadaptive::" not in str(run.inlined_graph)
        assert torch.equal(run(x, weight), function(x, weight))


def test_it_is_one_node_of_an_fx_graph() -> None:
    graph = torch.fx.symbolic_trace(lambda x, w: ops.depthwise(x, w, padding=2))
    assert [n.target for n in graph.graph.nodes if n.op == "call_function"] == [ops.depthwise]


# ---------------------------------------------------------------- the module


def layers(kernel: int = 5, channels: int = 6, cls: type[nn.Sequential] = Layers, **options: Any) -> Any:
    """A depthwise convolution with a norm and an activation; the same numbers for every class."""
    torch.manual_seed(1)
    conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False, **options)
    return cls(conv, nn.BatchNorm2d(channels), nn.Hardswish())


def image(layout: str = "contiguous") -> Tensor:
    return arranged(torch.randn(3, 6, 7, 9), layout)


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


def test_the_plain_backward_pass_is_that_of_autograd() -> None:
    x, weight, _, *sizes = small()
    y = plain(x, weight, None, *sizes)
    grad = torch.randn_like(y)
    found = reference.depthwise_backward(grad, x, weight, *sizes, (True, True))
    for a, b in zip(found, torch.autograd.grad(y, (x, weight), grad), strict=True):
        close(a, b)
