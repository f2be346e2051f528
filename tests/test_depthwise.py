"""Depthwise convolutions with gradients of ours: PyTorch's in all but the time."""

from typing import Any

import pytest
import torch
from convolutions import close, plain, runs_kernel, small, take_the_smallest
from problems import LAYOUTS, arranged
from test_depthwise_kernels import CASES, truth
from torch import Tensor

from hadaptive import ops
from hadaptive.ops import library, reference
from hadaptive.ops.convolution import kernel_is_faster

pytestmark = pytest.mark.skipif(library._unusable("cpu") is not None, reason="Numba is not installed")
quiet = pytest.mark.filterwarnings("ignore:.torch.jit", "ignore::DeprecationWarning", "ignore::FutureWarning")
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.fixture(autouse=True)
def _kernels_for_the_smallest(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.function is not test_the_rule:
        take_the_smallest(monkeypatch)


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


def test_the_plain_backward_pass_is_that_of_autograd() -> None:
    x, weight, _, *sizes = small()
    y = plain(x, weight, None, *sizes)
    grad = torch.randn_like(y)
    found = reference.depthwise_backward(grad, x, weight, *sizes, (True, True))
    for a, b in zip(found, torch.autograd.grad(y, (x, weight), grad), strict=True):
        close(a, b)
