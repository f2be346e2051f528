"""Batch normalisation with an activation, against PyTorch's in float64: values, every gradient, statistics."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from norms import DENSE, check, each_act, each_layout, in_float64, near, problem
from problems import LAYOUTS, arranged
from processes import forked

from hadaptive import ops
from hadaptive.ops import norm, reference
from hadaptive.ops.reference import ACTS

pytestmark = pytest.mark.skipif(norm.unsupported_reason(torch.zeros(2, 1, 4, 4)) is not None, reason="no Numba")


@pytest.mark.usefixtures("nan_empty")
@each_act
@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((2, 1, 4, 4), "contiguous"),
        ((1, 3, 17), "contiguous"),
        ((3, 5, 3, 11), "contiguous"),
        ((2, 3, 31, 33), "contiguous"),
        ((70, 2, 4, 4), "contiguous"),
        ((1, 2, 2, 3, 4), "contiguous"),
        ((2, 16, 1, 1), "channels_last"),
        ((3, 17, 1, 2), "channels_last"),
        ((5, 31, 7), "channels_last"),
        ((2, 33, 5, 5), "channels_last"),
        ((3, 100, 15, 17), "channels_last"),
        ((9, 64, 16, 16), "channels_last"),
        ((40, 20), "contiguous"),
        ((2, 19, 2, 3, 4), "channels_last"),
    ],
    ids=str,
)
def test_awkward_shapes(shape: tuple[int, ...], layout: str, act: str) -> None:
    check(problem(shape, layout), act)


@each_layout
@pytest.mark.parametrize("layout_of_gradient", LAYOUTS)
def test_gradients_of_any_layout(layout: str, layout_of_gradient: str) -> None:
    check(problem((3, 18, 6, 5), layout), "hardswish", layout_of_gradient)


@each_layout
def test_expanded_gradient(layout: str) -> None:
    arguments = problem((2, 17, 4, 5), layout)
    true = in_float64(arguments)
    ops.batch_norm_act(*arguments, True, act="relu6", backend="fused").sum().backward()
    reference.batch_norm_act(*true, True, 0.1, 1e-5, "relu6").sum().backward()
    for n in (0, 3, 4):
        near(arguments[n].grad, true[n].grad)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_fuzz(data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    layout = data.draw(st.sampled_from(DENSE))
    small, large = st.integers(1, 6), st.integers(16, 90)
    channels, width = (small, large) if layout == "contiguous" else (large, small)
    shape = (data.draw(st.integers(2, 5)), data.draw(channels), data.draw(st.integers(1, 9)), data.draw(width))
    mean, std = data.draw(st.sampled_from([(0.0, 1.0), (3.0, 0.1), (-50.0, 1.0), (0.0, 1e-3), (1e4, 1e3)]))
    check(
        problem(shape, layout, mean, std, data.draw(st.booleans())),
        data.draw(st.sampled_from(ACTS)),
        data.draw(st.sampled_from(LAYOUTS)),
    )


# What is near zero must be so for the right reason: numbers as exact as their inputs.


@each_layout
@pytest.mark.parametrize("outlier", [False, True])
def test_a_small_variance_around_a_large_mean(layout: str, outlier: bool) -> None:
    x = 1000 + 0.01 * torch.randn(4, 20, 31, 33, dtype=torch.float64)
    if outlier:  # where sums take their distances from
        x[:, :, 0, 0] = 1001
    x = arranged(x.float(), layout)
    expected = F.batch_norm(x.double(), None, None, training=True)
    error = (ops.batch_norm_act(x, None, None, training=True, backend="fused") - expected).abs().max()
    assert error < 1e-4 * expected.abs().max()
    assert error <= (F.batch_norm(x, None, None, training=True) - expected).abs().max()


@each_layout
@pytest.mark.parametrize("scale", [1e25, 1e-25])
def test_numbers_whose_squares_leave_float32(layout: str, scale: float) -> None:
    x = arranged(scale * torch.randn(2, 16, 4, 8), layout)
    y = ops.batch_norm_act(x, None, None, training=True, eps=1e-60, backend="fused")
    near(y, F.batch_norm(x.double(), None, None, training=True, eps=1e-60))


@each_layout
def test_a_constant_channel(layout: str) -> None:
    x = torch.randn(2, 16, 4, 8)
    x[:, 3] = 0.7
    arguments = problem((2, 16, 4, 8), layout)
    arguments[0] = arranged(x, layout).requires_grad_()
    y = ops.batch_norm_act(*arguments, True, 1.0, backend="fused")
    assert arguments[4] is not None
    torch.testing.assert_close(y[:, 3], arguments[4][3].expand(2, 4, 8))
    assert arguments[2] is not None
    assert float(arguments[2][3]) < 1e-12
    y.square().sum().backward()
    assert arguments[0].grad.isfinite().all()


@each_layout
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_passes_as_in_pytorch(layout: str, value: float) -> None:
    x = torch.randn(2, 17, 4, 8)
    x[1, 5, 2, 3] = value
    results = []
    for backend in ("fused", "reference"):
        mean, var = torch.zeros(17), torch.ones(17)
        leaf = arranged(x, layout).requires_grad_()
        y = ops.batch_norm_act(leaf, mean, var, training=True, act="hardswish", backend=backend)
        y.sum().backward()
        results.append((y.detach(), mean, var, leaf.grad))
    for a, b in zip(*results, strict=True):
        assert a.isnan().equal(b.isnan())
        torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-4, atol=1e-4)


@each_layout
def test_a_map_that_overflows_has_the_gradient_of_pytorch(layout: str) -> None:
    x = torch.ones(2, 16, 4, 8)
    x[0] = -1
    weight, bias = (torch.full((16,), 3e38, requires_grad=True) for _ in range(2))
    for act in ("none", "relu"):
        found = []
        for backend in ("fused", "reference"):
            leaf = arranged(x, layout).requires_grad_()
            y = ops.batch_norm_act(leaf, None, None, weight, bias, True, act=act, backend=backend)
            assert y.isinf().any()
            found.append(torch.autograd.grad(y, (leaf, weight, bias), torch.ones_like(y)))
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)


# Threads and processes.


@each_layout
def test_the_number_of_threads_changes_no_bit(layout: str) -> None:
    before, results = torch.get_num_threads(), []
    arguments = problem((4, 70, 17, 16), layout)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = ops.batch_norm_act(*arguments, True, 0.0, act="hardswish", backend="fused")
            leaves = [arguments[n] for n in (0, 3, 4)]
            results.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(a.equal(b) for a, b in zip(results[0], others, strict=True))


def _in_a_child() -> None:
    check(problem((2, 20, 12, 12), "channels_last"), "hardswish")


def test_a_forked_process() -> None:
    _in_a_child()
    done = forked(_in_a_child)
    assert done.returncode == 0, done.stdout
