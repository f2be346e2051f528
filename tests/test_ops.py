"""The operators against loops in NumPy: values, every gradient, dtypes, layouts, extremes, errors, backends."""

import threading
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import DTYPES, assert_close, dtype_id
from torch import Tensor, nn

from hadaptive import ops

# (batch, channels, k, spatial): 0 to 3 spatial dims, ones, primes, powers of two and their neighbours.
CASES = {
    "no-space": (2, 5, 3, ()),
    "tokens": (2, 7, 4, (17,)),
    "map": (2, 5, 3, (3, 7)),
    "volume": (1, 4, 2, (2, 3, 2)),
    "all-ones": (1, 2, 2, (1, 1)),
    "every-channel": (2, 9, 9, (15,)),
    "wide": (1, 33, 16, (2, 2)),
    "odd-k": (3, 31, 17, (1, 3)),
    "empty-batch": (0, 5, 3, (4, 4)),
    "empty-space": (2, 5, 3, (0, 4)),
}
LAYOUTS = ("contiguous", "channels_last", "transposed", "sliced")

pytestmark = pytest.mark.usefixtures("nan_empty")
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)


# The transcription: float64, one pair at a time, gradients by hand.


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def pairs_of(k: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(k) for j in range(i + 1, k)]


def numpy_expand(x, index, gate, alpha, weight, bias):
    batch, channels = x.shape[:2]
    pairs = pairs_of(index.shape[1])
    y = np.zeros((batch, channels + len(pairs), *x.shape[2:]))
    y[:, :channels] = x
    for n in range(batch):
        for p, (i, j) in enumerate(pairs):
            u = alpha * gate[n, i] * x[n, index[n, i]] * gate[n, j] * x[n, index[n, j]]
            y[n, channels + p] = weight[p] * u / (1 + np.abs(u)) + bias[p]
    return y


def numpy_expand_gradients(x, index, gate, alpha, weight, gy):
    channels = x.shape[1]
    gx, ggate, galpha = gy[:, :channels].copy(), np.zeros(gate.shape), 0.0
    gweight, gbias = np.zeros(weight.shape), np.zeros(weight.shape)
    for n in range(x.shape[0]):
        for p, (i, j) in enumerate(pairs_of(index.shape[1])):
            a, b, g = x[n, index[n, i]], x[n, index[n, j]], gy[n, channels + p]
            q = gate[n, i] * gate[n, j] * a * b
            slope = g * weight[p] / (1 + np.abs(alpha * q)) ** 2
            galpha += (slope * q).sum()
            gweight[p] += (g * alpha * q / (1 + np.abs(alpha * q))).sum()
            gbias[p] += g.sum()
            gx[n, index[n, i]] += slope * alpha * gate[n, i] * gate[n, j] * b
            gx[n, index[n, j]] += slope * alpha * gate[n, i] * gate[n, j] * a
            ggate[n, i] += (slope * alpha * gate[n, j] * a * b).sum()
            ggate[n, j] += (slope * alpha * gate[n, i] * a * b).sum()
    return gx, ggate, [galpha], gweight, gbias


# Inputs.


def lay_out(x: Tensor, layout: str) -> Tensor:
    """The same values with other strides."""
    if layout == "channels_last" and x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.transpose(1, -1).contiguous().transpose(1, -1)
    if layout == "sliced":
        return x.repeat_interleave(2, dim=1)[:, ::2]
    return x.contiguous()


def expand_inputs(case, dtype: torch.dtype, parameter_dtype: torch.dtype | None = None, seed: int = 0):
    """x, index, gate, alpha, weight, bias; gate and parameters in the compute dtype unless told otherwise."""
    batch, channels, k, spatial = case
    generator = torch.Generator().manual_seed(seed)
    if parameter_dtype is None:
        parameter_dtype = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*shape: int, to: torch.dtype) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(to)

    x = normal(batch, channels, *spatial, to=dtype)
    index = torch.rand(batch, channels, generator=generator).argsort(1)[:, :k]
    gate = 1 + 0.3 * normal(batch, k, to=parameter_dtype)
    pairs = k * (k - 1) // 2
    alpha = torch.tensor([0.7], dtype=parameter_dtype)
    return x, index, gate, alpha, normal(pairs, to=parameter_dtype), normal(pairs, to=parameter_dtype)


def differentiable(*tensors: Tensor) -> list[Tensor]:
    return [t.detach().requires_grad_() for t in tensors]


def check_expand(x, index, gate, alpha, weight, bias, gy=None) -> Tensor:
    """Forward and all five gradients against the transcription, of every backend that takes x."""
    for name in ops.available_backends():
        if ops._BACKENDS[name].unsupported_reason("cross_hadamard_expand", x) is None:
            with ops.backend(name):
                y = check_expand_here(x, index, gate, alpha, weight, bias, gy)
    return y


def check_expand_here(x, index, gate, alpha, weight, bias, gy) -> Tensor:
    x, gate, alpha, weight, bias = differentiable(x, gate, alpha, weight, bias)
    y = ops.cross_hadamard_expand(x, index, gate, alpha, weight, bias)
    arrays = array(x), index.numpy(), array(gate), array(alpha)[0], array(weight)
    assert y.dtype == x.dtype
    assert_close(y, numpy_expand(*arrays, array(bias)))

    gy = torch.linspace(-1, 1, y.numel()).reshape(y.shape).to(y.dtype) if gy is None else gy
    actual = torch.autograd.grad(y, (x, gate, alpha, weight, bias), gy)
    expected = numpy_expand_gradients(*arrays, array(gy))
    for name, a, e in zip(("x", "gate", "alpha", "weight", "bias"), actual, expected, strict=True):
        try:
            assert_close(a, e)
        except AssertionError as error:
            raise AssertionError(f"gradient of {name}: {error}") from None
    return y


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


def numpy_products(z):
    return np.stack([z[:, i] * z[:, j] for i, j in pairs_of(z.shape[1])], axis=1)


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


OPERATORS = {
    "cross_hadamard_expand": lambda x: ops.cross_hadamard_expand(
        x, torch.arange(3).expand(len(x), 3), None, torch.ones(1), torch.ones(3), torch.zeros(3)
    ),
    "cross_hadamard": ops.cross_hadamard,
    "dysoft": lambda x: ops.dysoft(x, torch.ones(1), torch.ones(x.shape[1]), torch.zeros(x.shape[1])),
}
every_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS.keys())


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


# Extremes

SIGNS = {"same": [1.0] * 4, "alternating": [1.0, -1.0, 1.0, -1.0], "one-huge": [1.0, 0, 0, 0]}


def extreme_map(dtype: torch.dtype, signs: str) -> Tensor:
    """(2, 4, 3): channels at the largest finite value, the rest at 0.5."""
    column = torch.tensor(SIGNS[signs], dtype=torch.float64) * torch.finfo(dtype).max
    return torch.where(column == 0, 0.5, column).to(dtype).view(1, 4, 1).repeat(2, 1, 3)


@every_dtype
@pytest.mark.parametrize("scale", [0.0, 0.5, 1e6], ids=lambda a: f"alpha={a:g}")
@pytest.mark.parametrize("signs", SIGNS)
def test_expand_is_finite_for_every_finite_input(signs: str, scale: float, dtype: torch.dtype) -> None:
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    parameters = torch.tensor([scale]), torch.ones(6), torch.zeros(6), torch.ones(2, 4)
    x, alpha, weight, bias, gate = differentiable(extreme_map(dtype, signs), *(p.to(compute) for p in parameters))
    y = ops.cross_hadamard_expand(x, torch.arange(4).expand(2, 4), gate, alpha, weight, bias)
    assert y.isfinite().all()
    if scale and signs != "one-huge":
        assert_close(y[:, 4:], numpy_products(array(x.sign())))
    # Where alpha is 0 its true gradient, a product of huge values, is out of range.
    if scale:
        for gradient in torch.autograd.grad(y, (x, alpha, weight, bias, gate), torch.ones_like(y)):
            assert gradient.isfinite().all()


@every_dtype
@pytest.mark.parametrize("scale", [0.0, 0.5, 1e30], ids=lambda a: f"alpha={a:g}")
def test_dysoft_is_finite_for_every_finite_input(scale: float, dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    x = torch.tensor([[largest, -largest, 1.0]], dtype=dtype)
    x, alpha, weight, bias = differentiable(x, torch.tensor([scale]), torch.ones(3), torch.zeros(3))
    y = ops.dysoft(x, alpha, weight, bias)
    assert y.isfinite().all()
    if scale:
        assert_close(y[0, :2], [1.0, -1.0])
        for gradient in torch.autograd.grad(y, (x, alpha, weight, bias), torch.ones_like(y)):
            assert gradient.isfinite().all()


@every_operator
@every_dtype
def test_nan_propagates(operator, dtype: torch.dtype) -> None:
    x = torch.ones(2, 3, 4, dtype=dtype)
    x[1, 2, 3] = float("nan")
    y = operator(x)
    assert y[1, :, 3].isnan().any()
    assert y[0].isfinite().all()
    assert y[1, :, :3].isfinite().all()


def test_products_of_half_maps_do_not_pass_through_half() -> None:
    # 300 * 300 and 0.001 * 0.001 are outside float16's range; the fused operator must still see them.
    x = torch.tensor([[300.0, 300.0, 1e-4, 1e-4]], dtype=torch.float16)
    index = torch.arange(4).unsqueeze(0)
    y = ops.cross_hadamard_expand(x, index, None, torch.tensor([1e-5]), torch.ones(6), torch.zeros(6))
    assert_close(y[0, 4], 0.9 / 1.9)
    y = ops.cross_hadamard_expand(x, index, None, torch.tensor([1e8]), torch.ones(6), torch.zeros(6))
    assert_close(y[0, 9], 0.5, torch.float16)


# Errors


def wrong(**change) -> dict:
    arguments = {
        "x": torch.randn(2, 5, 4),
        "index": torch.zeros(2, 3, dtype=torch.int64),
        "gate": torch.ones(2, 3),
        "alpha": torch.ones(1),
        "weight": torch.ones(3),
        "bias": torch.ones(3),
    }
    return {**arguments, **change}


WRONG_EXPAND = {
    "x-too-few-dims": (wrong(x=torch.randn(5)), r"x must have shape \(B, C, S...\), got \(5,\)"),
    "x-integer": (wrong(x=torch.ones(2, 5, 4, dtype=torch.int64)), "x must be a floating-point tensor"),
    "index-dims": (wrong(index=torch.zeros(3, dtype=torch.int64)), r"index must have shape \(B, k\)"),
    "index-batch": (wrong(index=torch.zeros(3, 3, dtype=torch.int64)), "B = 2, got"),
    "index-dtype": (wrong(index=torch.zeros(2, 3, dtype=torch.int32)), "index must be int64, got torch.int32"),
    "k-too-large": (wrong(index=torch.zeros(2, 6, dtype=torch.int64)), "k = 6 of only 5 channels"),
    "k-too-small": (
        wrong(index=torch.zeros(2, 1, dtype=torch.int64), gate=None),
        "at least 2 channels, got k = 1",
    ),
    "gate-shape": (wrong(gate=torch.ones(2, 4)), r"gate must have index's shape \(2, 3\), got \(2, 4\)"),
    "alpha-size": (wrong(alpha=torch.ones(2)), "alpha must hold one number"),
    "weight-shape": (wrong(weight=torch.ones(4)), r"weight must have shape \(3,\), got \(4,\)"),
    "bias-shape": (wrong(bias=torch.ones(3, 1)), r"bias must have shape \(3,\), got \(3, 1\)"),
    "backend": (wrong(backend="cuda"), "unknown backend 'cuda'; choose one of .*reference"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG_EXPAND.values(), ids=WRONG_EXPAND.keys())
def test_expand_rejects(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.cross_hadamard_expand(**arguments)


def test_expand_accepts_what_the_wrong_arguments_change() -> None:
    assert ops.cross_hadamard_expand(**wrong()).shape == (2, 8, 4)


WRONG_OTHERS = {
    "products-dims": (lambda: ops.cross_hadamard(torch.randn(4)), "z must have shape"),
    "products-integer": (lambda: ops.cross_hadamard(torch.ones(2, 3, dtype=torch.int32)), "z must be a floating"),
    "products-one-channel": (lambda: ops.cross_hadamard(torch.randn(2, 1, 4)), "at least 2 channels .* got 1"),
    "products-backend": (lambda: ops.cross_hadamard(torch.randn(2, 3), backend="tpu"), "unknown backend 'tpu'"),
    "dysoft-dims": (lambda: ops.dysoft(torch.ones(3), *[torch.ones(1)] * 3), "x must have shape"),
    "dysoft-alpha": (lambda: ops.dysoft(torch.ones(2, 3), *[torch.ones(3)] * 3), "alpha must hold one number"),
    "dysoft-alpha-dims": (
        lambda: ops.dysoft(torch.ones(2, 3), torch.ones(1, 1, 1), *[torch.ones(3)] * 2),
        "alpha must hold one number",
    ),
    "dysoft-weight": (
        lambda: ops.dysoft(torch.ones(2, 3), torch.ones(1), torch.ones(1), torch.ones(3)),
        r"weight must have shape \(3,\)",
    ),
    "dysoft-backend": (
        lambda: ops.dysoft(torch.ones(2, 1), *[torch.ones(1)] * 3, backend=""),
        "unknown backend ''",
    ),
    "select-index": (lambda: ops.select_channels(torch.ones(2, 3), torch.zeros(2)), "index must have shape"),
    "select-gate": (
        lambda: ops.select_channels(torch.ones(2, 3), torch.zeros(2, 2, dtype=torch.int64), torch.ones(2)),
        "gate must have index's shape",
    ),
}


@pytest.mark.parametrize(("call", "message"), WRONG_OTHERS.values(), ids=WRONG_OTHERS.keys())
def test_other_operators_reject(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# Backends


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A registered backend "spy" that answers with a constant, so that a test sees who was asked."""

    def answer(*args: object) -> str:
        return "spy"

    backend = SimpleNamespace(**dict.fromkeys(ops.OPERATORS, answer), unsupported_reason=lambda *arguments: None)
    monkeypatch.setitem(ops._BACKENDS, "spy", backend)
    return backend


def asked() -> str:
    answer = ops.cross_hadamard(torch.ones(1, 2))
    return answer if isinstance(answer, str) else "other"


def test_reference_is_always_available() -> None:
    assert "reference" in ops.available_backends()


@pytest.mark.usefixtures("spy")
def test_backend_argument_reaches_every_operator() -> None:
    x, *rest = expand_inputs(CASES["map"], torch.float32)
    assert ops.cross_hadamard(x, backend="spy") == "spy"
    assert ops.dysoft(x, torch.ones(1), torch.ones(5), torch.ones(5), backend="spy") == "spy"
    assert ops.cross_hadamard_expand(x, *rest, backend="spy") == "spy"


@pytest.mark.usefixtures("spy")
def test_backend_context_nests_and_yields_to_the_argument() -> None:
    with ops.backend("spy"):
        assert asked() == "spy"
        with ops.backend("reference"):
            assert asked() == "other"
        assert asked() == "spy"
        assert isinstance(ops.cross_hadamard(torch.ones(1, 2), backend="reference"), Tensor)
    assert asked() == "other"


@pytest.mark.usefixtures("spy")
def test_backend_context_ends_with_an_exception() -> None:
    with pytest.raises(RuntimeError, match="inside"), ops.backend("spy"):
        raise RuntimeError("inside")
    assert asked() == "other"


def test_unknown_backend_is_rejected_before_the_block_runs() -> None:
    with pytest.raises(ValueError, match="unknown backend 'nope'; choose one of"), ops.backend("nope"):
        pytest.fail("the block ran")
    assert asked() == "other"


@pytest.mark.usefixtures("spy")
def test_backend_context_holds_for_its_own_thread_only() -> None:
    answers = []
    with ops.backend("spy"):
        thread = threading.Thread(target=lambda: answers.append(asked()))
        thread.start()
        thread.join()
    assert answers == ["other"]


def test_preferred_backend_is_used_where_it_supports_the_input(spy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_PREFERENCE", ("spy",))
    assert asked() == "spy"
    spy.unsupported_reason = lambda *arguments: "it would rather not"
    assert asked() == "other"


# Compilers


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_expand_compiles_without_a_graph_break(compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the compiler allocates for itself
    torch.compiler.reset()
    x, index, *floats = expand_inputs(CASES["map"], torch.float32)
    compiled = torch.compile(ops.cross_hadamard_expand, fullgraph=True, backend=compiler)
    results = []
    for function in (compiled, ops.cross_hadamard_expand):
        inputs = differentiable(x, *floats)
        y = function(inputs[0], index, *inputs[1:])
        results.append((y, *torch.autograd.grad(y.square().sum(), inputs)))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected)
    torch.compiler.reset()


class EveryOperator(nn.Module):
    """Uses all four operators, with and without a gate."""

    def forward(
        self, x: Tensor, index: Tensor, gate: Tensor, alpha: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        products = ops.cross_hadamard(ops.select_channels(x, index, gate))
        return (
            ops.dysoft(products, alpha, weight, bias),
            ops.cross_hadamard_expand(x, index, gate, alpha, weight, bias),
            ops.cross_hadamard_expand(x, index, None, alpha, weight, bias),
        )


@every_dtype
def test_operators_script(dtype: torch.dtype) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this PyTorch deprecates torch.jit
        scripted = torch.jit.script(EveryOperator())
    inputs = expand_inputs(CASES["map"], dtype)
    with ops.backend("reference"):
        plain = EveryOperator()(*inputs)
    for actual, expected in zip(scripted(*inputs), plain, strict=True):
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected)
