"""The kernels of a depthwise convolution's gradients against PyTorch in float64."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import LAYOUTS, arranged
from torch import Tensor

pytest.importorskip("numba")
from hadaptive.measure.timing import threads
from hadaptive.ops.cpu_depthwise_launch import depthwise_backward

pytestmark = pytest.mark.usefixtures("nan_empty")
Pair = tuple[int, int]

# x (B, C, H, W), kernel, stride, padding, dilation: those of our networks, ones, primes, and what no tile fits.
CASES: dict[str, tuple[tuple[int, int, int, int], Pair, Pair, Pair, Pair]] = {
    "3x3": ((2, 24, 14, 14), (3, 3), (1, 1), (1, 1), (1, 1)),
    "5x5": ((2, 17, 14, 14), (5, 5), (1, 1), (2, 2), (1, 1)),
    "7x7 on 7x7": ((2, 40, 7, 7), (7, 7), (1, 1), (3, 3), (1, 1)),
    "7x7 on 3x3": ((3, 16, 3, 3), (7, 7), (1, 1), (3, 3), (1, 1)),
    "2x2 by 2": ((2, 32, 8, 8), (2, 2), (2, 2), (0, 0), (1, 1)),
    "3x3 by 2": ((2, 33, 9, 8), (3, 3), (2, 2), (1, 1), (1, 1)),
    "ones": ((1, 1, 1, 1), (1, 1), (1, 1), (0, 0), (1, 1)),
    "1x1": ((2, 15, 5, 3), (1, 1), (1, 1), (0, 0), (1, 1)),
    "a row": ((2, 3, 1, 31), (1, 9), (1, 1), (0, 4), (1, 1)),
    "a column": ((2, 3, 31, 1), (11, 1), (1, 1), (5, 0), (1, 1)),
    "much padding": ((2, 5, 4, 3), (2, 3), (1, 1), (5, 7), (1, 1)),
    "much padding by 3": ((2, 5, 4, 3), (2, 3), (3, 2), (5, 7), (1, 1)),
    "dilated": ((2, 18, 11, 13), (3, 5), (1, 1), (4, 3), (2, 3)),
    "dilated by 2": ((2, 18, 11, 13), (3, 5), (2, 1), (4, 3), (2, 3)),
    "rows unread": ((2, 4, 10, 10), (2, 2), (4, 3), (0, 0), (1, 1)),
    "only padding": ((2, 4, 1, 1), (3, 3), (5, 5), (3, 3), (1, 1)),
    "wide": ((1, 2, 3, 129), (8, 17), (1, 1), (4, 8), (1, 1)),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def convolution(shape: tuple[int, ...], kernel: Pair, *sizes: Pair, layout: str = "contiguous") -> tuple[Any, ...]:
    """grad, x, weight and the sizes of a convolution of random numbers."""
    x, weight = arranged(torch.randn(shape), layout), torch.randn(shape[1], 1, *kernel)
    y = F.conv2d(x, weight, None, *sizes, groups=shape[1])
    return torch.randn(y.shape), x, weight, *sizes


def truth(grad: Tensor, x: Tensor, weight: Tensor, *sizes: Pair) -> tuple[Tensor, Tensor]:
    """Both gradients in float64."""
    a, w = (t.double().contiguous().requires_grad_() for t in (x, weight))
    y = F.conv2d(a, w, None, *sizes, groups=x.shape[1])
    of_x, of_weight = torch.autograd.grad(y, (a, w), grad.double().contiguous())
    return of_x, of_weight


def check(grad: Tensor, x: Tensor, weight: Tensor, *sizes: Any) -> None:
    found = depthwise_backward(grad, x, weight, *sizes)
    for name, a, b in zip(("x", "weight"), found, truth(grad, x, weight, *sizes), strict=True):
        assert (a.shape, a.dtype) == (b.shape, torch.float32), name
        scale = b.abs().max().clamp(min=1) if b.numel() else 1
        torch.testing.assert_close(a.double() / scale, b / scale, rtol=0, atol=2e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@each_case
def test_both_gradients(case: tuple, layout: str) -> None:
    check(*convolution(*case, layout=layout))


@pytest.mark.parametrize("of_grad", [*LAYOUTS, "constant"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_any_strides(layout: str, of_grad: str) -> None:
    grad, *rest = convolution(*CASES["5x5"], layout=layout)
    grad = torch.tensor(0.5).expand(grad.shape) if of_grad == "constant" else arranged(grad, of_grad)
    check(grad, *rest)


@settings(derandomize=True, deadline=None, max_examples=80, database=None)
@given(data=st.data())
def test_any_convolution(data: st.DataObject) -> None:
    def pair(low: int, high: int, name: str) -> Pair:
        first, second = (data.draw(st.integers(low, high), name) for _ in "hw")
        return first, second

    kernel, stride, dilation = pair(1, 9, "kernel"), pair(1, 4, "stride"), pair(1, 3, "dilation")
    padding, size = pair(0, 9, "padding"), pair(1, 13, "size")
    size = tuple(
        max(s, 1 + d * (k - 1) - 2 * p) for s, d, k, p in zip(size, dilation, kernel, padding, strict=True)
    )
    shape = (data.draw(st.integers(1, 3), "batch"), data.draw(st.sampled_from([1, 3, 15, 16, 17, 33]), "channels"))
    layout = data.draw(st.sampled_from(LAYOUTS), "layout")
    check(*convolution((*shape, *size), kernel, stride, padding, dilation, layout=layout))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_only_what_is_wanted(layout: str) -> None:
    arguments: Any = convolution(*CASES["3x3 by 2"], layout=layout)
    both = depthwise_backward(*arguments)
    for wanted in ((True, False), (False, True), (False, False)):
        found = depthwise_backward(*arguments, wanted=wanted)
        for a, b, yes in zip(found, both, wanted, strict=True):
            assert torch.equal(a, b if yes else b.new_empty(0))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", ["7x7 on 7x7", "3x3 by 2"])
def test_any_number_of_threads_adds_up_alike(case: str, layout: str) -> None:
    (_, *shape), *rest = CASES[case]
    arguments = convolution((9, *shape), *rest, layout=layout)
    found = []
    for number in (1, 2, 5):
        with threads(number):
            found.append(depthwise_backward(*arguments))
    for gradients in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients, found[0], strict=True))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", ["5x5", "3x3 by 2", "1x1"])
def test_no_channel_and_no_sample_meets_another(case: str, layout: str) -> None:
    grad, x, weight, *sizes = convolution(*CASES[case], layout=layout)
    clean = depthwise_backward(grad, x, weight, *sizes)
    x[0, 1], grad[0, 1] = float("nan"), float("inf")
    of_x, of_weight = depthwise_backward(grad, x, weight, *sizes)
    kept = torch.ones(x.shape[:2], dtype=torch.bool)
    kept[0, 1] = False
    assert torch.equal(of_x[kept], clean[0][kept])
    others = [c for c in range(x.shape[1]) if c != 1]
    assert torch.equal(of_weight[others], clean[1][others])
    assert not of_weight[1].isfinite().any()


def test_a_map_without_rows_is_all_padding() -> None:
    of_x, of_weight = depthwise_backward(
        torch.randn(2, 3, 2, 5), torch.randn(2, 3, 0, 5), torch.randn(3, 1, 3, 3), (1, 1), (2, 1), (1, 1)
    )
    assert of_x.shape == (2, 3, 0, 5)
    assert torch.equal(of_weight, torch.zeros(3, 1, 3, 3))


def test_threads_may_call_it_at_once() -> None:
    problems = [
        convolution(*case, layout=layout) for case in CASES.values() for layout in ("contiguous", "channels_last")
    ]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda problem: check(*problem), problems))


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4)], ids=["no sample", "no channel"])
def test_nothing_to_do(shape: tuple[int, int, int, int]) -> None:
    of_x, of_weight = depthwise_backward(
        torch.randn(shape), torch.randn(shape), torch.randn(shape[1], 1, 3, 3), (1, 1), (1, 1), (1, 1)
    )
    assert of_x.shape == shape
    assert torch.equal(of_weight, torch.zeros(shape[1], 1, 3, 3))


def test_what_the_kernel_cannot_read_is_refused() -> None:
    grad, x, weight, *sizes = convolution(*CASES["3x3"])
    for arguments in (
        (grad, x.double(), weight),
        (grad[:1], x, weight),
        (grad, x, weight[:-1]),
        (grad, x, weight.to("meta")),
        (grad, x, weight.bfloat16()),
    ):
        with pytest.raises(ValueError, match=r"must be|on the CPU"):
            depthwise_backward(*arguments, *sizes)
    far = 2**40
    for wrong in (((2, 1), (1, 1), (1, 1)), ((1, 1), (9, 9), (1, 1)), ((0, 0), (-1, 1), (0, 1))):
        with pytest.raises(ValueError, match="must be"):
            depthwise_backward(grad, x, weight, *wrong)
    with pytest.raises(ValueError, match="too large to copy"):
        depthwise_backward(torch.randn(2, 24, 3, 3), x, weight, (far, far), (far, far), (1, 1))
    for three in ((grad[0], x[0], weight), (grad, x, weight[0])):
        with pytest.raises(ValueError, match="must have four dims"):
            depthwise_backward(*three, *sizes)
    assert x.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_default_dtype_is_not_asked(dtype: torch.dtype) -> None:
    arguments = convolution(*CASES["5x5"])
    expected = depthwise_backward(*arguments)
    torch.set_default_dtype(dtype)
    try:
        found = depthwise_backward(*arguments)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    with torch.device("meta"):
        found = depthwise_backward(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
