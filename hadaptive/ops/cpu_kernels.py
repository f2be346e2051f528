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

from hadaptive.ops.cpu_vectors import LANES, LINE, add_product, fold, intrinsic, pair_bwd, pair_fwd, transpose

# A product and a sum may become one instruction. Nothing may be reordered: (w * u) / (1 + |u|) overflows where
# w * (u / (1 + |u|)) does not, and a kernel that was just compiled would add up in another order than the same one
# from the cache, so that a resumed run differed from a whole one in the last digit.
_FLAGS = {"contract"}
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
            *("next", "bad", "chunks", "batch", "channels", "positions", "k"),
            *("x", "index", "gate", "alpha", "weight", "bias", "y"),
            *("grad", "grad_x", "grad_gate", "sums_alpha", "sums_weight", "sums_bias"),
        )
    ]


_TASK = types.CPointer(numba.from_dtype(np.dtype(Task)))


def _compiled(function: Callable) -> Any:
    """A decorator: compile on the first call, cached on disk where there is a place for it."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": _FLAGS}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder that can be written
        return numba.njit(**options)(function)


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


@_compiled
def _out_of_range(index, channels):
    bad = False
    for s in range(len(index)):
        bad |= index[s] < 0 or index[s] >= channels
    return bad


@_compiled
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


@_compiled
def _gathered_rows(x, index, gate, z):
    """Selected and gated channels of one sample: x (C, N) to the first N columns of z (k, _)."""
    for s in range(len(index)):
        scale, row, out = gate[s], x[index[s]], z[s]
        for n in range(len(row)):
            out[n] = scale * row[n]


@_compiled
def _gathered_cols(x, index, gate, start, live, per_sample, z):
    """The same for rows start to start + live of x (B * N, C), into the columns of z (k, LANES); zeros fill it."""
    for lane in range(LANES):
        row = start + lane
        b = row // per_sample
        for s in range(len(z)):
            z[s, lane] = gate[b, s] * x[row, index[b, s]] if lane < live else _ZERO


@_compiled
def _pairs(k):
    """The pairs (i, j), i < j < k, in order: two arrays of k(k-1)/2."""
    first = np.empty(k * (k - 1) // 2, np.int64)
    second = np.empty(k * (k - 1) // 2, np.int64)
    p = 0
    for i in range(k - 1):
        for j in range(i + 1, k):
            first[p], second[p] = i, j
            p += 1
    return first, second


@_compiled
def _keep(*arrays):
    """Numba frees an array after the last line that names it, and an address does not name it."""


@_compiled
def expand_rows_fwd_kernel(task, chunk):
    """A chunk of a sample's channels, positions contiguous: x (B, C, N), y (B, C + P, N)."""
    index, gate, alpha, weight, bias = _operands(task)
    per_sample = task.chunks // task.batch
    b, part = chunk // per_sample, chunk % per_sample
    channels, pairs, positions = task.channels, len(weight), task.positions
    if _out_of_range(index[b], channels):
        task.bad = 1
        return
    x = numba.carray(_floats(task.x), (task.batch, channels, positions))[b]
    y = numba.carray(_floats(task.y), (task.batch, channels + pairs, positions))[b]
    start, stop = channels * part // per_sample, channels * (part + 1) // per_sample
    y[start:stop] = x[start:stop]
    whole, rest = positions // LANES, positions % LANES
    z = np.zeros((task.k, (whole + 1) * LANES), np.float32)
    _gathered_rows(x, index[b], gate[b], z)
    last = np.empty(LANES, np.float32)
    row, step = z.ctypes.data, (whole + 1) * LINE
    first, second = _pairs(task.k)
    for p in range(pairs * part // per_sample, pairs * (part + 1) // per_sample):
        zi, zj, out = row + first[p] * step, row + second[p] * step, y[channels + p].ctypes.data
        w, c = weight[p], bias[p]
        for n in range(whole):
            pair_fwd(zi + n * LINE, zj + n * LINE, out + n * LINE, alpha, w, c)
        if rest:
            pair_fwd(zi + whole * LINE, zj + whole * LINE, last.ctypes.data, alpha, w, c)
            y[channels + p, whole * LANES :] = last[:rest]
    _keep(z, last)


@_compiled
def expand_cols_fwd_kernel(task, chunk):
    """A chunk of the positions of all samples, channels contiguous: x (B, N, C), y (B, N, C + P)."""
    index, gate, alpha, weight, bias = _operands(task)
    channels, pairs, rows = task.channels, len(weight), task.batch * task.positions
    begin, end = rows * chunk // task.chunks, rows * (chunk + 1) // task.chunks
    for b in range(begin // task.positions, (end + task.positions - 1) // task.positions):
        if _out_of_range(index[b], channels):
            task.bad = 1
            return
    x = numba.carray(_floats(task.x), (rows, channels))
    y = numba.carray(_floats(task.y), (rows, channels + pairs))
    z = np.empty((task.k, LANES), np.float32)
    d = np.empty((LANES, LANES), np.float32)
    z_at, d_at, width = z.ctypes.data, d.ctypes.data, 4 * (channels + pairs)
    first, second = _pairs(task.k)
    for start in range(begin, end, LANES):
        live = min(LANES, end - start)
        _gathered_cols(x, index, gate, start, live, task.positions, z)
        for row in range(start, start + live):
            y[row, :channels] = x[row]
        for block in range(0, pairs, LANES):
            size = min(LANES, pairs - block)
            for p in range(block, block + size):
                zi, zj, out = z_at + first[p] * LINE, z_at + second[p] * LINE, d_at + (p - block) * LINE
                pair_fwd(zi, zj, out, alpha, weight[p], bias[p])
            if live == LANES and size == LANES:
                transpose(d_at, LINE, y[start, channels + block :].ctypes.data, width)
            else:
                for lane in range(live):
                    for p in range(size):
                        y[start + lane, channels + block + p] = d[p, lane]
    _keep(z, d)


@_compiled
def _add_up(lanes, total):
    """The sum of each row of lanes (_, LANES), in a fixed order."""
    for p in range(len(total)):
        fold(lanes[p].ctypes.data, total[p:].ctypes.data)


@_compiled
def _dot(a, b, lanes):
    """The sum of a * b over the length of b, in a fixed order."""
    lanes[:] = _ZERO
    whole = len(b) // LANES
    a_at, b_at, lanes_at = a.ctypes.data, b.ctypes.data, lanes.ctypes.data
    for n in range(0, whole * LINE, LINE):
        add_product(a_at + n, b_at + n, lanes_at)
    for n in range(whole * LANES, len(b)):
        lanes[n - whole * LANES] += a[n] * b[n]
    fold(lanes_at, lanes_at)
    return lanes[0]


@_compiled
def _gradients(task, chunk):
    """grad_gate (batch, k), and this chunk's own sums: alpha (1,), weight and bias (pairs,)."""
    pairs = task.k * (task.k - 1) // 2
    return (
        numba.carray(_floats(task.grad_gate), (task.batch, task.k)),
        numba.carray(_floats(task.sums_alpha), (task.chunks, 1))[chunk],
        numba.carray(_floats(task.sums_weight), (task.chunks, pairs))[chunk],
        numba.carray(_floats(task.sums_bias), (task.chunks, pairs))[chunk],
    )


@_compiled
def expand_rows_bwd_kernel(task, chunk):
    """Gradients of a chunk of samples, positions contiguous."""
    index, gate, alpha, weight, _ = _operands(task)
    grad_gate, sum_alpha, sum_weight, sum_bias = _gradients(task, chunk)
    channels, k, positions, pairs = task.channels, task.k, task.positions, len(weight)
    xs = numba.carray(_floats(task.x), (task.batch, channels, positions))
    grad_xs = numba.carray(_floats(task.grad_x), (task.batch, channels, positions))
    grads = numba.carray(_floats(task.grad), (task.batch, channels + pairs, positions))
    whole, rest = positions // LANES, positions % LANES
    z = np.zeros((k, (whole + 1) * LANES), np.float32)
    gz = np.empty_like(z)
    last, of_gate = np.zeros(LANES, np.float32), np.empty(LANES, np.float32)
    lanes = np.zeros((2 * pairs + 1, LANES), np.float32)
    z_at, gz_at, step = z.ctypes.data, gz.ctypes.data, (whole + 1) * LINE
    of_alpha = lanes[2 * pairs].ctypes.data
    first, second = _pairs(k)
    for b in range(task.batch * chunk // task.chunks, task.batch * (chunk + 1) // task.chunks):
        if _out_of_range(index[b], channels):
            task.bad = 1
            return
        x, grad, grad_x = xs[b], grads[b], grad_xs[b]
        grad_x[:] = grad[:channels]
        _gathered_rows(x, index[b], gate[b], z)
        gz[:] = _ZERO
        for p in range(pairs):
            i, j, w, g = first[p] * step, second[p] * step, weight[p], grad[channels + p].ctypes.data
            of_weight, of_bias = lanes[p].ctypes.data, lanes[pairs + p].ctypes.data
            for n in range(0, whole * LINE, LINE):
                pair_bwd(
                    z_at + i + n,
                    z_at + j + n,
                    g + n,
                    gz_at + i + n,
                    gz_at + j + n,
                    of_alpha,
                    of_weight,
                    of_bias,
                    alpha,
                    w,
                )
            if rest:
                n = whole * LINE
                last[:rest] = grad[channels + p, whole * LANES :]
                pair_bwd(
                    z_at + i + n,
                    z_at + j + n,
                    last.ctypes.data,
                    gz_at + i + n,
                    gz_at + j + n,
                    of_alpha,
                    of_weight,
                    of_bias,
                    alpha,
                    w,
                )
        for s in range(k):
            scale, row, out, of_row = gate[b, s], x[index[b, s]], grad_x[index[b, s]], gz[s]
            for n in range(positions):
                out[n] += scale * of_row[n]
            grad_gate[b, s] = _dot(of_row, row, of_gate)
    _add_up(lanes[:pairs], sum_weight)
    _add_up(lanes[pairs : 2 * pairs], sum_bias)
    _add_up(lanes[2 * pairs :], sum_alpha)
    _keep(z, gz, last)


@_compiled
def expand_cols_bwd_kernel(task, chunk):
    """The same with the channels contiguous."""
    index, gate, alpha, weight, _ = _operands(task)
    grad_gate, sum_alpha, sum_weight, sum_bias = _gradients(task, chunk)
    channels, k, pairs, rows = task.channels, task.k, len(weight), task.batch * task.positions
    x = numba.carray(_floats(task.x), (rows, channels))
    grad_x = numba.carray(_floats(task.grad_x), (rows, channels))
    grad = numba.carray(_floats(task.grad), (rows, channels + pairs))
    z = np.empty((k, LANES), np.float32)
    gz = np.empty((k, LANES), np.float32)
    g = np.zeros((LANES, LANES), np.float32)
    lanes = np.zeros((2 * pairs + 1, LANES), np.float32)
    z_at, gz_at, g_at, width = z.ctypes.data, gz.ctypes.data, g.ctypes.data, 4 * (channels + pairs)
    of_alpha = lanes[2 * pairs].ctypes.data
    first, second = _pairs(k)
    samples = range(task.batch * chunk // task.chunks, task.batch * (chunk + 1) // task.chunks)
    for b in samples:
        grad_gate[b] = _ZERO
        if _out_of_range(index[b], channels):
            task.bad = 1
            return
    end = samples.stop * task.positions
    for start in range(samples.start * task.positions, end, LANES):
        live = min(LANES, end - start)
        _gathered_cols(x, index, gate, start, live, task.positions, z)
        for row in range(start, start + live):
            grad_x[row] = grad[row, :channels]
        gz[:] = _ZERO
        for block in range(0, pairs, LANES):
            size = min(LANES, pairs - block)
            if live == LANES and size == LANES:
                transpose(grad[start, channels + block :].ctypes.data, width, g_at, LINE)
            else:
                for lane in range(LANES):
                    for p in range(size):
                        g[p, lane] = grad[start + lane, channels + block + p] if lane < live else _ZERO
            for p in range(block, block + size):
                i, j = first[p] * LINE, second[p] * LINE
                pair_bwd(
                    z_at + i,
                    z_at + j,
                    g_at + (p - block) * LINE,
                    gz_at + i,
                    gz_at + j,
                    of_alpha,
                    lanes[p].ctypes.data,
                    lanes[pairs + p].ctypes.data,
                    alpha,
                    weight[p],
                )
        for lane in range(live):
            row = start + lane
            b = row // task.positions
            for s in range(k):
                c = index[b, s]
                grad_gate[b, s] += gz[s, lane] * x[row, c]
                grad_x[row, c] += gate[b, s] * gz[s, lane]
    _add_up(lanes[:pairs], sum_weight)
    _add_up(lanes[pairs : 2 * pairs], sum_bias)
    _add_up(lanes[2 * pairs :], sum_alpha)
    _keep(z, gz, g)


@_compiled
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
