"""The operators written as loops in NumPy, and the inputs to compare them on."""

import numpy as np
import pytest
import torch
from tolerances import DTYPES, assert_close, dtype_id
from torch import Tensor

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


def numpy_products(z):
    return np.stack([z[:, i] * z[:, j] for i, j in pairs_of(z.shape[1])], axis=1)


OPERATORS = {
    "cross_hadamard_expand": lambda x: ops.cross_hadamard_expand(
        x, torch.arange(3).expand(len(x), 3), None, torch.ones(1), torch.ones(3), torch.zeros(3)
    ),
    "cross_hadamard": ops.cross_hadamard,
    "dysoft": lambda x: ops.dysoft(x, torch.ones(1), torch.ones(x.shape[1]), torch.zeros(x.shape[1])),
}
every_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS.keys())
