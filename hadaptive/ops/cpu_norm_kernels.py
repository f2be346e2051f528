"""CPU kernels of batch normalisation with an activation where positions are contiguous, and what all share.

Forward passes keep the mean and the variance of each channel in float64 and nothing else; backward passes
recompute the rest from x. Sums of float32 are short, and added up in float64, in an order that depends on the
shape alone. A row holds at least sixteen numbers; its last sixteen are taken together, and some computed twice.

With m the mean rounded to float32, h = (x - m) / std, z = weight * h + offset and y = act(z).

Source: arXiv 1502.03167; the recomputing backward pass as in arXiv 1712.02616.
"""

import ctypes

import numba
import numpy as np

from hadaptive.ops.cpu_compile import compiled, doubles, floats, task_fields
from hadaptive.ops.cpu_lanes import (
    LINE,
    add,
    clamp,
    clamp_slope,
    hardswish,
    hardswish_slope,
    last,
    load,
    mul,
    splat,
    store,
    sub,
    total,
)

ZERO = np.float32(0)
_SPAN = 64 * LINE  # bytes of a row that are added up in float32
_RELU, _RELU6, _HARDSWISH = 1, 2, 3  # places in hadaptive.ops.reference.ACTS
_TINY = 1e-30  # a variance below which squares may have been too small for float32


class NormTask(ctypes.Structure):
    """What a kernel is to do: counters, sizes, and the addresses of contiguous arrays.

    x, y, grad and grad_x are (batch, channels, positions) or, for the kernels named nhwc, (batch, positions,
    channels), float32; weight, bias and their gradients (channels,), float32; mean and var (channels,), float64.
    The kernels named nhwc share between their steps sums (parts, 2, channels), float64, and table (6, channels),
    float32, whose rows are the mean, 1 / std, the weight and the offset, then what the gradient of z loses: a
    number, and a multiple of h.
    """

    _fields_ = [
        *task_fields(
            *("batch", "channels", "positions", "act", "parts"),
            *("x", "weight", "bias", "y", "mean", "var"),
            *("grad", "grad_x", "grad_weight", "grad_bias", "sums", "table"),
        ),
        ("eps", ctypes.c_double),
    ]


@compiled
def bounds(act):
    """Of an activation that clamps; NaN is no bound."""
    low = ZERO if act in (_RELU, _RELU6) else np.float32(np.nan)
    return low, np.float32(6) if act == _RELU6 else np.float32(np.nan)


@compiled
def activated(z, act, low, high):
    if act == _HARDSWISH:
        return hardswish(z)
    return clamp(z, low, high)


@compiled
def of_z(grad, z, act, low, high):
    """The gradient before the activation."""
    if act == _HARDSWISH:
        return hardswish_slope(grad, z)
    return clamp_slope(grad, z, low, high)


@compiled
def channel(task, c):
    """Of one channel: its mean, that in float32, 1 / std in float64, and the offset."""
    mean = numba.carray(doubles(task.mean), task.channels)[c]
    inverse = 1 / np.sqrt(numba.carray(doubles(task.var), task.channels)[c] + task.eps)
    weight = numba.carray(floats(task.weight), task.channels)[c]
    bias = numba.carray(floats(task.bias), task.channels)[c]
    rounded = np.float32(mean)
    return mean, rounded, inverse, np.float32(bias - weight * ((mean - rounded) * inverse))


@compiled
def keep_statistics(task, c, mean, var):
    """Mean and variance of a channel; computed anew in float64 where float32 does not reach."""
    if not (np.isfinite(mean) and np.isfinite(var)) or var + task.eps < _TINY:
        batch, channels, positions = task.batch, task.channels, task.positions
        x = numba.carray(floats(task.x), batch * channels * positions)
        stride, row = (channels, c) if task.parts else (1, c * positions)
        step = channels * positions
        mean = 0.0
        for b in range(batch):
            for n in range(positions):
                mean += x[b * step + row + n * stride]
        mean /= batch * positions
        var = 0.0
        for b in range(batch):
            for n in range(positions):
                d = x[b * step + row + n * stride] - mean
                var += d * d
        var /= batch * positions
    numba.carray(doubles(task.mean), task.channels)[c] = mean
    numba.carray(doubles(task.var), task.channels)[c] = 0.0 if var < 0 else var


@compiled
def _sum(at, size):
    """The sum of a row of so many bytes."""
    result = 0.0
    whole = size // LINE * LINE
    for start in range(0, whole, _SPAN):
        even = odd = splat(ZERO)
        stop = min(whole, start + _SPAN)
        for i in range(start, stop - LINE, 2 * LINE):
            even, odd = add(even, load(at + i)), add(odd, load(at + i + LINE))
        if (stop - start) // LINE % 2:
            even = add(even, load(at + stop - LINE))
        result += total(add(even, odd))
    if size > whole:
        result += total(last(load(at + size - LINE), (size - whole) // 4))
    return result


@compiled
def _distances(at, size, m):
    """Of a row of so many bytes the sum of the distances from m, and that of their squares."""
    plain, squares = 0.0, 0.0
    whole = size // LINE * LINE
    for start in range(0, whole, _SPAN):
        p = q = splat(ZERO)
        for i in range(start, min(whole, start + _SPAN), LINE):
            d = sub(load(at + i), m)
            p, q = add(p, d), add(q, mul(d, d))
        plain += total(p)
        squares += total(q)
    if size > whole:
        d = last(sub(load(at + size - LINE), m), (size - whole) // 4)
        plain += total(d)
        squares += total(mul(d, d))
    return plain, squares


@compiled
def norm_nchw_fwd_kernel(task, chunk):
    channels, size, act = task.channels, 4 * task.positions, task.act
    low, high = bounds(act)
    count = task.batch * task.positions
    weights = numba.carray(floats(task.weight), channels)
    for c in range(channels * chunk // task.chunks, channels * (chunk + 1) // task.chunks):
        rows = range(c * size, task.batch * channels * size, channels * size)
        mean = 0.0
        for row in rows:
            mean += _sum(task.x + row, size)
        mean /= count
        around, off, squares = np.float32(mean), 0.0, 0.0
        for row in rows:
            plain, square = _distances(task.x + row, size, splat(around))
            off += plain
            squares += square
        off /= count
        keep_statistics(task, c, around + off, squares / count - off * off)
        mean, rounded, inverse, offset = channel(task, c)
        m, r, w, o = splat(rounded), splat(np.float32(inverse)), splat(weights[c]), splat(offset)
        for row in rows:
            x, y = task.x + row, task.y + row
            for start in range(0, size, LINE):
                i = min(start, size - LINE)
                z = add(mul(mul(sub(load(x + i), m), r), w), o)
                store(activated(z, act, low, high), y + i)


@compiled
def norm_nchw_bwd_kernel(task, chunk):
    channels, size, act = task.channels, 4 * task.positions, task.act
    low, high = bounds(act)
    count, whole = task.batch * task.positions, 4 * task.positions // LINE * LINE
    weights = numba.carray(floats(task.weight), channels)
    grad_weight = numba.carray(floats(task.grad_weight), channels)
    grad_bias = numba.carray(floats(task.grad_bias), channels)
    for c in range(channels * chunk // task.chunks, channels * (chunk + 1) // task.chunks):
        rows = range(c * size, task.batch * channels * size, channels * size)
        mean, rounded, inverse, offset = channel(task, c)
        m, r, w, o = splat(rounded), splat(np.float32(inverse)), splat(weights[c]), splat(offset)
        of_bias = of_weight = 0.0
        for row in rows:
            x, grad = task.x + row, task.grad + row
            for start in range(0, whole, _SPAN):
                plain = scaled = splat(ZERO)
                for i in range(start, min(whole, start + _SPAN), LINE):
                    h = mul(sub(load(x + i), m), r)
                    g = of_z(load(grad + i), add(mul(h, w), o), act, low, high)
                    plain, scaled = add(plain, g), add(scaled, mul(g, h))
                of_bias += total(plain)
                of_weight += total(scaled)
            if size > whole:
                i, rest = size - LINE, (size - whole) // 4
                h = mul(sub(load(x + i), m), r)
                g = of_z(load(grad + i), add(mul(h, w), o), act, low, high)
                of_bias += total(last(g, rest))
                of_weight += total(last(mul(g, h), rest))
        shift = (mean - rounded) * inverse  # what h is too large by
        of_weight -= shift * of_bias
        grad_weight[c], grad_bias[c] = of_weight, of_bias
        k, v = splat(np.float32(of_weight / count)), splat(np.float32((of_bias - shift * of_weight) / count))
        s = splat(np.float32(weights[c] * inverse))
        for row in rows:
            x, grad, grad_x = task.x + row, task.grad + row, task.grad_x + row
            for start in range(0, size, LINE):
                i = min(start, size - LINE)
                h = mul(sub(load(x + i), m), r)
                g = of_z(load(grad + i), add(mul(h, w), o), act, low, high)
                store(mul(s, sub(sub(g, v), mul(h, k))), grad_x + i)
