"""Fused CPU kernels of the expansion, compiled by Numba when first used and cached.

The forward pass reads the mixed input once and writes the concatenated output once; the backward pass recomputes
everything from the input, the indices and the gates. A kernel does one chunk of samples; partial sums are kept per
chunk, so that results do not depend on the number of threads. A worker takes chunks until none is left, and any
number of threads may enter the same one: see :mod:`hadaptive.ops.cpu_launch`.

Source: arXiv 2505.22226, section 3; the recomputing backward pass is ours.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

# Sums may be reordered and fused; NaN and infinity keep their meaning. Factors may not be reordered:
# (w * u) / (1 + |u|) overflows where w * (u / (1 + |u|)) does not. A flag holds for one function only.
_SUMS = {"reassoc", "contract", "nsz"}
_TERMS = {"contract"}
_BIG = np.float32(3.4028234663852886e38)
_ONE = np.float32(1)
_ZERO = np.float32(0)


class Task(ctypes.Structure):
    """What a worker is to do: counters, sizes, and the addresses of contiguous arrays.

    `next` is the chunk that the next free thread takes; `bad` is set where an index is out of range. x is
    (batch, channels, positions) or, for the kernels named cols, (batch, positions, channels); y and grad have
    channels + pairs in place of channels; sums_* have a row for each chunk.
    """

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("next", "bad", "chunks", "batch", "channels", "positions", "k", "parts", "tile"),
            *("x", "index", "gate", "alpha", "weight", "bias", "y"),
            *("grad", "grad_x", "grad_gate", "sums_alpha", "sums_weight", "sums_bias"),
        )
    ]


_TASK = types.CPointer(numba.from_dtype(np.dtype(Task)))


def _compiled(flags: set[str], inline: bool = False) -> Callable[[Callable], Any]:
    """A decorator: compile on the first call, cached on disk where there is a place for it.

    `inline` puts the function's body into its callers: handing over five arrays costs as much as one pair's work.
    """
    options: dict[str, Any] = {
        "nogil": True,
        "error_model": "numpy",
        "fastmath": flags,
        "inline": "always" if inline else "never",
    }

    def decorate(function: Callable) -> Any:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no folder that can be written
            return numba.njit(**options)(function)

    return decorate


@intrinsic
def _take(typing: Any, task: Any) -> Any:
    """The task's first field, and that field plus one, in one step that no other thread can divide."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        counter = builder.bitcast(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", counter, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(task), generate


def _pointer_to(kind: Any) -> Any:
    @intrinsic
    def pointer(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), generate

    return pointer


_floats = _pointer_to(types.float32)
_ints = _pointer_to(types.int64)


@_compiled(_TERMS)
def _clamp(v):
    """Infinity to the largest finite number; NaN passes."""
    if v > _BIG:
        return _BIG
    if v < -_BIG:
        return -_BIG
    return v


@_compiled(_TERMS)
def _dysoft_of_product(a, c, alpha, w, b):
    u = _clamp(alpha * _clamp(a * c))
    return w * (u / (_ONE + abs(u))) + b


@_compiled(_TERMS)
def _derivatives(a, c, g, alpha, w):
    """One position's terms of the gradients of weight and alpha, and the gradient of the product."""
    product = _clamp(a * c)
    u = _clamp(alpha * product)
    r = _ONE / (_ONE + abs(u))
    t = w * (g * r * r)
    return g * (u * r), t * product, t * alpha


@_compiled(_TERMS)
def _out_of_range(index, channels):
    bad = False
    for s in range(len(index)):
        bad |= index[s] < 0 or index[s] >= channels
    return bad


@_compiled(_TERMS)
def _operands(task):
    """index and gate (batch, k), alpha, weight and bias (pairs,)."""
    shape, pairs = (task.batch, task.k), task.k * (task.k - 1) // 2
    return (
        numba.carray(_ints(task.index), shape),
        numba.carray(_floats(task.gate), shape),
        numba.carray(_floats(task.alpha), 1)[0],
        numba.carray(_floats(task.weight), pairs),
        numba.carray(_floats(task.bias), pairs),
    )


@_compiled(_TERMS)
def _gathered_rows(x, index, gate, z):
    """Selected and gated channels of one sample: x (C, N) to z (k, N)."""
    for s in range(len(index)):
        scale, row, out = gate[s], x[index[s]], z[s]
        for n in range(len(out)):
            out[n] = scale * row[n]


@_compiled(_SUMS)
def expand_rows_fwd_kernel(task, chunk):
    """One of the `parts` of one sample, positions contiguous: x (B, C, N), y (B, C + P, N)."""
    index, gate, alpha, weight, bias = _operands(task)
    b, part = chunk // task.parts, chunk % task.parts
    channels, k, pairs = task.channels, task.k, len(weight)
    if _out_of_range(index[b], channels):
        task.bad = 1
        return
    x = numba.carray(_floats(task.x), (task.batch, channels, task.positions))[b]
    y = numba.carray(_floats(task.y), (task.batch, channels + pairs, task.positions))[b]
    start, stop = channels * part // task.parts, channels * (part + 1) // task.parts
    y[start:stop] = x[start:stop]
    z = np.empty((k, task.positions), np.float32)
    _gathered_rows(x, index[b], gate[b], z)
    start, stop = pairs * part // task.parts, pairs * (part + 1) // task.parts
    first = 0
    for i in range(k - 1):
        zi = z[i]
        for p in range(max(start, first), min(stop, first + k - 1 - i)):
            zj, out, w, c = z[i + 1 + p - first], y[channels + p], weight[p], bias[p]
            for n in range(len(out)):
                out[n] = _dysoft_of_product(zi[n], zj[n], alpha, w, c)
        first += k - 1 - i


@_compiled(_SUMS)
def expand_cols_fwd_kernel(task, chunk):
    """The same with the channels contiguous: x (B, N, C), y (B, N, C + P). `tile` positions are done at a time."""
    index, gate, alpha, weight, bias = _operands(task)
    b, part = chunk // task.parts, chunk % task.parts
    channels, k, pairs, tile = task.channels, task.k, len(weight), task.tile
    if _out_of_range(index[b], channels):
        task.bad = 1
        return
    x = numba.carray(_floats(task.x), (task.batch, task.positions, channels))[b]
    y = numba.carray(_floats(task.y), (task.batch, task.positions, channels + pairs))[b]
    z = np.empty((k, tile), np.float32)
    d = np.empty((pairs, tile), np.float32)
    stop = task.positions * (part + 1) // task.parts
    for start in range(task.positions * part // task.parts, stop, tile):
        size = min(tile, stop - start)
        for n in range(size):
            for s in range(k):
                z[s, n] = gate[b, s] * x[start + n, index[b, s]]
        p = 0
        for i in range(k - 1):
            zi = z[i]
            for j in range(i + 1, k):
                zj, out, w, c = z[j], d[p], weight[p], bias[p]
                for n in range(size):
                    out[n] = _dysoft_of_product(zi[n], zj[n], alpha, w, c)
                p += 1
        # Whole rows in order: the memory's prefetcher follows no other pattern.
        for n in range(size):
            source, target = x[start + n], y[start + n]
            for c in range(channels):
                target[c] = source[c]
            for p in range(pairs):
                target[channels + p] = d[p, n]


@_compiled(_SUMS, inline=True)
def _pair_bwd(zi, zj, grad, gzi, gzj, alpha, w, size):
    """One pair's share: adds to gzi and gzj, returns the sums for weight, bias and alpha."""
    for_weight, for_bias, for_alpha = _ZERO, _ZERO, _ZERO
    for n in range(size):
        a, c, g = zi[n], zj[n], grad[n]
        of_weight, of_alpha, of_product = _derivatives(a, c, g, alpha, w)
        for_weight += of_weight
        for_bias += g
        for_alpha += of_alpha
        gzi[n] += of_product * c
        gzj[n] += of_product * a
    return for_weight, for_bias, for_alpha


@_compiled(_TERMS)
def _gradients(task, chunk):
    """grad_gate (batch, k), and this chunk's own sums: alpha (1,), weight and bias (pairs,)."""
    pairs = task.k * (task.k - 1) // 2
    return (
        numba.carray(_floats(task.grad_gate), (task.batch, task.k)),
        numba.carray(_floats(task.sums_alpha), (task.chunks, 1))[chunk],
        numba.carray(_floats(task.sums_weight), (task.chunks, pairs))[chunk],
        numba.carray(_floats(task.sums_bias), (task.chunks, pairs))[chunk],
    )


@_compiled(_SUMS)
def expand_rows_bwd_kernel(task, chunk):
    """Gradients of one chunk of the batch, positions contiguous."""
    index, gate, alpha, weight, _ = _operands(task)
    grad_gate, sum_alpha, sum_weight, sum_bias = _gradients(task, chunk)
    channels, k, shape = task.channels, task.k, (task.batch, task.channels, task.positions)
    xs, grad_xs = numba.carray(_floats(task.x), shape), numba.carray(_floats(task.grad_x), shape)
    grads = numba.carray(_floats(task.grad), (task.batch, channels + len(weight), task.positions))
    z = np.empty((k, task.positions), np.float32)
    gz = np.empty((k, task.positions), np.float32)
    for b in range(task.batch * chunk // task.chunks, task.batch * (chunk + 1) // task.chunks):
        if _out_of_range(index[b], channels):
            task.bad = 1
            return
        x, grad, grad_x = xs[b], grads[b], grad_xs[b]
        grad_x[:] = grad[:channels]
        _gathered_rows(x, index[b], gate[b], z)
        gz[:] = _ZERO
        p = 0
        for i in range(k - 1):
            for j in range(i + 1, k):
                for_weight, for_bias, for_alpha = _pair_bwd(
                    z[i], z[j], grad[channels + p], gz[i], gz[j], alpha, weight[p], task.positions
                )
                sum_weight[p] += for_weight
                sum_bias[p] += for_bias
                sum_alpha[0] += for_alpha
                p += 1
        for s in range(k):
            scale, row, out, of_row = gate[b, s], x[index[b, s]], grad_x[index[b, s]], gz[s]
            for_gate = _ZERO
            for n in range(len(row)):
                for_gate += of_row[n] * row[n]
                out[n] += scale * of_row[n]
            grad_gate[b, s] = for_gate


@_compiled(_SUMS)
def expand_cols_bwd_kernel(task, chunk):
    """The same with the channels contiguous."""
    index, gate, alpha, weight, _ = _operands(task)
    grad_gate, sum_alpha, sum_weight, sum_bias = _gradients(task, chunk)
    channels, k, pairs, tile = task.channels, task.k, len(weight), task.tile
    shape = (task.batch, task.positions, channels)
    xs, grad_xs = numba.carray(_floats(task.x), shape), numba.carray(_floats(task.grad_x), shape)
    grads = numba.carray(_floats(task.grad), (task.batch, task.positions, channels + pairs))
    z = np.empty((k, tile), np.float32)
    gz = np.empty((k, tile), np.float32)
    g = np.empty((pairs, tile), np.float32)
    for b in range(task.batch * chunk // task.chunks, task.batch * (chunk + 1) // task.chunks):
        if _out_of_range(index[b], channels):
            task.bad = 1
            return
        x, grad, grad_x = xs[b], grads[b], grad_xs[b]
        grad_gate[b] = _ZERO
        for start in range(0, task.positions, tile):
            size = min(tile, task.positions - start)
            for n in range(size):
                source, target = grad[start + n], grad_x[start + n]
                for c in range(channels):
                    target[c] = source[c]
                for p in range(pairs):
                    g[p, n] = source[channels + p]
                for s in range(k):
                    z[s, n] = gate[b, s] * x[start + n, index[b, s]]
                    gz[s, n] = _ZERO
            p = 0
            for i in range(k - 1):
                for j in range(i + 1, k):
                    for_weight, for_bias, for_alpha = _pair_bwd(
                        z[i], z[j], g[p], gz[i], gz[j], alpha, weight[p], size
                    )
                    sum_weight[p] += for_weight
                    sum_bias[p] += for_bias
                    sum_alpha[0] += for_alpha
                    p += 1
            for n in range(size):
                for s in range(k):
                    c = index[b, s]
                    grad_gate[b, s] += gz[s, n] * x[start + n, c]
                    grad_x[start + n, c] += gate[b, s] * gz[s, n]


@_compiled(_TERMS)
def _next_chunk(pointer):
    """The number of a chunk that no thread has taken yet, or -1."""
    task = numba.carray(pointer, 1)[0]
    chunk = _take(pointer)
    return chunk if chunk < task.chunks else -1


# One function for each: Numba finds in its cache what is made of globals, and not what is made of closures.


def _expand_rows_fwd(pointer):
    while True:
        chunk = _next_chunk(pointer)
        if chunk < 0:
            return
        expand_rows_fwd_kernel(numba.carray(pointer, 1)[0], chunk)


def _expand_cols_fwd(pointer):
    while True:
        chunk = _next_chunk(pointer)
        if chunk < 0:
            return
        expand_cols_fwd_kernel(numba.carray(pointer, 1)[0], chunk)


def _expand_rows_bwd(pointer):
    while True:
        chunk = _next_chunk(pointer)
        if chunk < 0:
            return
        expand_rows_bwd_kernel(numba.carray(pointer, 1)[0], chunk)


def _expand_cols_bwd(pointer):
    while True:
        chunk = _next_chunk(pointer)
        if chunk < 0:
            return
        expand_cols_bwd_kernel(numba.carray(pointer, 1)[0], chunk)


_WORKERS = {
    "expand_rows_fwd": _expand_rows_fwd,
    "expand_cols_fwd": _expand_cols_fwd,
    "expand_rows_bwd": _expand_rows_bwd,
    "expand_cols_bwd": _expand_cols_bwd,
}


@cache
def worker(name: str) -> Any:
    """A C function (Task*) -> void, compiled on the first call; its `address` is what threads are given."""
    signature = types.void(_TASK)
    try:
        return numba.cfunc(signature, cache=True)(_WORKERS[name])
    except RuntimeError:  # no folder that can be written
        return numba.cfunc(signature)(_WORKERS[name])
