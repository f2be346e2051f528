"""The operators against loops in NumPy: values, every gradient, dtypes, layouts."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import DTYPES, assert_close
from transcription import (
    CASES,
    LAYOUTS,
    array,
    check_expand,
    differentiable,
    every_case,
    every_dtype,
    every_operator,
    expand_inputs,
    lay_out,
    numpy_products,
    pairs_of,
)

from hadaptive import ops

pytestmark = pytest.mark.usefixtures("nan_empty")


# expand


@every_dtype
@every_case
def test_expand_equals_the_transcription(case, dtype: torch.dtype) -> None:
    check_expand(*expand_inputs(case, dtype))


@every_dtype
def test_expand_accepts_parameters_of_the_input_dtype(dtype: torch.dtype) -> None:
    check_expand(*expand_inputs(CASES["map"], dtype, parameter_dtype=dtype))


@pytest.mark.parametrize("layout_of_gradient", [*LAYOUTS, "constant"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_expand_takes_any_strides(layout: str, layout_of_gradient: str) -> None:
    x, *rest = expand_inputs((2, 7, 4, (3, 5)), torch.float32)
    shape = (2, 7 + 6, 3, 5)
    gy = (
        torch.tensor(0.5).expand(shape)
        if layout_of_gradient == "constant"
        else lay_out(torch.randn(shape), layout_of_gradient)
    )
    check_expand(lay_out(x, layout), *rest, gy=gy)


@settings(derandomize=True, deadline=None, max_examples=60, database=None)
@given(data=st.data())
def test_expand_property(data: st.DataObject) -> None:
    channels = data.draw(st.integers(2, 11), "channels")
    case = (
        data.draw(st.integers(0, 3), "batch"),
        channels,
        data.draw(st.integers(2, channels), "k"),
        tuple(data.draw(st.lists(st.integers(1, 5), max_size=3), "spatial")),
    )
    x, *rest = expand_inputs(case, data.draw(st.sampled_from(DTYPES), "dtype"), seed=data.draw(st.integers(0, 99)))
    layout = data.draw(st.sampled_from(LAYOUTS), "layout")
    y = check_expand(lay_out(x, layout), *rest)
    assert y.shape == (case[0], channels + case[2] * (case[2] - 1) // 2, *case[3])


def test_expand_starts_with_the_input_itself() -> None:
    x, *rest = expand_inputs(CASES["map"], torch.float16)
    assert torch.equal(ops.cross_hadamard_expand(x, *rest)[:, :5], x)


@every_dtype
def test_no_gate_is_a_gate_of_ones(dtype: torch.dtype) -> None:
    x, index, gate, *affine = expand_inputs(CASES["map"], dtype)
    (x,) = differentiable(x)
    without = ops.cross_hadamard_expand(x, index, None, *affine)
    with_ones = ops.cross_hadamard_expand(x, index, torch.ones_like(gate), *affine)
    assert torch.equal(without, with_ones)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (without, with_ones)]
    assert torch.equal(*gradients)


def test_expand_is_its_three_operators() -> None:
    x, index, gate, *affine = expand_inputs(CASES["tokens"], torch.float32)
    products = ops.cross_hadamard(ops.select_channels(x, index, gate))
    assert_close(
        ops.cross_hadamard_expand(x, index, gate, *affine), torch.cat([x, ops.dysoft(products, *affine)], dim=1)
    )


def test_alpha_zero_leaves_the_bias_and_still_learns_alpha() -> None:
    x, index, gate, alpha, weight, bias = expand_inputs(CASES["map"], torch.float64)
    y = check_expand(x, index, gate, torch.zeros_like(alpha), weight, bias)
    assert torch.equal(y[:, 5:], bias.view(-1, 1, 1).expand_as(y[:, 5:]))


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "no-gate"])
def test_expand_first_and_second_derivatives(gated: bool) -> None:
    x, index, gate, alpha, weight, bias = expand_inputs((2, 4, 3, (2,)), torch.float64)
    inputs = differentiable(x, alpha, weight, bias, *([gate] if gated else []))

    def function(x, alpha, weight, bias, gate=None):
        return ops.cross_hadamard_expand(x, index, gate, alpha, weight, bias)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


# cross_hadamard


@every_dtype
@every_case
def test_cross_hadamard_equals_the_transcription(case, dtype: torch.dtype) -> None:
    (z,) = differentiable(expand_inputs(case, dtype)[0])
    q = ops.cross_hadamard(z)
    assert q.dtype == dtype
    assert_close(q, numpy_products(array(z)))

    gq = torch.randn_like(q) / z.shape[1]
    expected = np.zeros(z.shape)
    for p, (i, j) in enumerate(pairs_of(z.shape[1])):
        expected[:, i] += array(gq)[:, p] * array(z)[:, j]
        expected[:, j] += array(gq)[:, p] * array(z)[:, i]
    assert_close(torch.autograd.grad(q, z, gq)[0], expected)


def test_cross_hadamard_first_and_second_derivatives() -> None:
    z = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ops.cross_hadamard, z)
    assert torch.autograd.gradgradcheck(ops.cross_hadamard, z)


@pytest.mark.parametrize("k", [2, 3, 7, 16, 31, 65])
def test_pairs_come_in_lexicographic_order(k: int) -> None:
    assert ops.num_pairs(k) == len(pairs_of(k))
    assert ops.pair_indices(k).T.tolist() == [list(pair) for pair in pairs_of(k)]
    assert torch.equal(ops.pair_indices(k), torch.triu_indices(k, k, 1))
    z = torch.rand(1, k, dtype=torch.float64)  # no two pairs share a product
    assert ops.cross_hadamard(z)[0].tolist() == [float(z[0, i] * z[0, j]) for i, j in pairs_of(k)]


# dysoft


@every_dtype
@every_case
def test_dysoft_equals_the_transcription(case, dtype: torch.dtype) -> None:
    x = expand_inputs(case, dtype)[0]
    channels = x.shape[1]
    affine = torch.tensor([0.7]), torch.randn(channels), torch.randn(channels)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    x, alpha, weight, bias = differentiable(x, *(p.to(compute) for p in affine))
    y = ops.dysoft(x, alpha, weight, bias)
    column = (channels, *[1] * (x.dim() - 2))
    q, a, w, b = array(x), array(alpha)[0], array(weight).reshape(column), array(bias).reshape(column)
    u = a * q
    assert y.dtype == dtype
    assert_close(y, w * u / (1 + np.abs(u)) + b, dtype)

    gy = torch.randn_like(y)
    g, others = array(gy), (0, *range(2, x.dim()))
    slope = g * w / (1 + np.abs(u)) ** 2
    expected = slope * a, [(slope * q).sum()], (g * u / (1 + np.abs(u))).sum(others), g.sum(others)
    for actual, e in zip(torch.autograd.grad(y, (x, alpha, weight, bias), gy), expected, strict=True):
        assert_close(actual, e, dtype)


def test_dysoft_first_and_second_derivatives() -> None:
    inputs = torch.randn(2, 3, 2), torch.tensor([0.7]), torch.randn(3), torch.randn(3)
    inputs = differentiable(*(t.double() for t in inputs))
    assert torch.autograd.gradcheck(ops.dysoft, inputs)
    assert torch.autograd.gradgradcheck(ops.dysoft, inputs)


def test_dysoft_at_known_points() -> None:
    y = ops.dysoft(torch.tensor([[0.0], [2.0], [-2.0], [6.0]]), torch.tensor([0.5]), torch.ones(1), torch.zeros(1))
    assert torch.equal(y, torch.tensor([[0.0], [0.5], [-0.5], [0.75]]))


# select_channels


@every_dtype
@every_case
def test_select_channels_equals_the_transcription(case, dtype: torch.dtype) -> None:
    x, index, gate, *_ = expand_inputs(case, dtype)
    x, gate = differentiable(x, gate)
    z = ops.select_channels(x, index, gate)
    assert z.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)

    gz = torch.randn_like(z)
    expected, gx, ggate = np.zeros(z.shape), np.zeros(x.shape), np.zeros(gate.shape)
    for n, row in enumerate(index.tolist()):
        for slot, channel in enumerate(row):
            expected[n, slot] = array(gate)[n, slot] * array(x)[n, channel]
            gx[n, channel] = array(gate)[n, slot] * array(gz)[n, slot]
            ggate[n, slot] = (array(gz)[n, slot] * array(x)[n, channel]).sum()
    assert_close(z, expected)
    actual = torch.autograd.grad(z, (x, gate), gz)
    assert_close(actual[0], gx)
    assert_close(actual[1], ggate)


def test_a_channel_may_be_selected_twice() -> None:
    x, _, gate, *affine = expand_inputs((2, 5, 3, (4,)), torch.float64)
    check_expand(x, torch.tensor([[1, 1, 4], [0, 3, 0]]), gate, *affine)


# Layout


@every_operator
def test_memory_format_is_kept(operator) -> None:
    x = torch.randn(2, 5, 3, 4)
    in_channels_last = operator(x.contiguous(memory_format=torch.channels_last))
    assert in_channels_last.is_contiguous(memory_format=torch.channels_last)
    assert not in_channels_last.is_contiguous()
    assert operator(x).is_contiguous()
    assert torch.equal(in_channels_last, operator(x))


@every_operator
def test_inputs_are_left_alone(operator) -> None:
    x = torch.randn(2, 5, 3, 4)
    before = x.clone()
    operator(x).mul_(0)
    assert torch.equal(x, before)
