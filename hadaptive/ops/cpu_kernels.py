"""Fused CPU kernels of the expansion: nchw where positions are contiguous, nhwc where channels are.

The same kernels make the bare products, without x and DySoft, for expansions with another norm.

The forward pass reads the mixed input once and writes the concatenated output once; the backward pass recomputes
everything from the input, the indices and the gates. A kernel does one chunk of samples; partial sums are kept per
chunk, so that results do not depend on the number of threads.

Source: arXiv 2505.22226, section 3; the recomputing backward pass is ours.
"""

import ctypes

import numba
import numpy as np

from hadaptive.ops.cpu_compile import compiled, floats, ints, keep, task_fields
from hadaptive.ops.simd import (
    LANES,
    LINE,
    add_product,
    fold,
    pair_bwd,
    pair_fwd,
    product_bwd,
    product_fwd,
    transpose,
)

_ZERO = np.float32(0)


class Task(ctypes.Structure):
    """What a kernel is to do: counters, sizes, and the addresses of contiguous arrays.

    x is (batch, channels, positions) or, for the kernels named nhwc, (batch, positions, channels); y and grad have
    kept + pairs in place of channels; sums_* have a row for each chunk. `kept` is how many channels of x come
    before the products: all of them, or 0 for bare products, which have no alpha, weight, bias and sums. Whole
    blocks of `block` channels are multiplied.
    """

    _fields_ = task_fields(
        *("batch", "channels", "positions", "k", "block", "kept"),
        *("x", "index", "gate", "alpha", "weight", "bias", "y"),
        *("grad", "grad_x", "grad_gate", "sums_alpha", "sums_weight", "sums_bias"),
    )


@compiled
def _out_of_range(index, channels):
    bad = False
    for s in range(len(index)):
        bad |= index[s] < 0 or index[s] >= channels
    return bad


@compiled
def _count(k, block):
    """How many products there are."""
    groups = k // block
    return block * (groups * (groups - 1) // 2)


@compiled
def _operands(task):
    """index and gate (batch, k), alpha, weight and bias (pairs,)."""
    shape, pairs = (task.batch, task.k), _count(task.k, task.block)
    return (
        numba.carray(ints(task.index), shape),
        numba.carray(floats(task.gate), shape),
        numba.carray(floats(task.alpha), 1)[0] if task.kept else _ZERO,
        numba.carray(floats(task.weight), pairs),
        numba.carray(floats(task.bias), pairs),
    )


@compiled
def _gathered_nchw(x, index, gate, z):
    """Selected and gated channels of one sample: x (C, N) to the first N columns of z (k, _)."""
    for s in range(len(index)):
        scale, row, out = gate[s], x[index[s]], z[s]
        for n in range(len(row)):
            out[n] = scale * row[n]


@compiled
def _gathered_nhwc(x, index, gate, start, live, per_sample, z):
    """The same for rows start to start + live of x (B * N, C), into the columns of z (k, LANES); zeros fill it."""
    for lane in range(LANES):
        row = start + lane
        b = row // per_sample
        for s in range(len(z)):
            z[s, lane] = gate[b, s] * x[row, index[b, s]] if lane < live else _ZERO


@compiled
def _pairs(k, block):
    """The pairs of channels of whole blocks, in order: two arrays."""
    first, second = np.empty(_count(k, block), np.int64), np.empty(_count(k, block), np.int64)
    p = 0
    for i in range(0, k - block, block):
        for j in range(i + block, k, block):
            for within in range(block):
                first[p], second[p] = i + within, j + within
                p += 1
    return first, second


@compiled
def _forward(kept, zi, zj, out, p, alpha, weight, bias):
    if kept:
        pair_fwd(zi, zj, out, alpha, weight[p], bias[p])
    else:
        product_fwd(zi, zj, out)


@compiled
def expand_nchw_fwd_kernel(task, chunk):
    """A chunk of a sample's channels, positions contiguous: x (B, C, N), y (B, C + P, N)."""
    index, gate, alpha, weight, bias = _operands(task)
    per_sample = task.chunks // task.batch
    b, part = chunk // per_sample, chunk % per_sample
    channels, kept, pairs, positions = task.channels, task.kept, len(weight), task.positions
    if _out_of_range(index[b], channels):
        task.bad = 1
        return
    x = numba.carray(floats(task.x), (task.batch, channels, positions))[b]
    y = numba.carray(floats(task.y), (task.batch, kept + pairs, positions))[b]
    start, stop = kept * part // per_sample, kept * (part + 1) // per_sample
    y[start:stop] = x[start:stop]
    whole, rest = positions // LANES, positions % LANES
    z = np.zeros((task.k, (whole + 1) * LANES), np.float32)
    _gathered_nchw(x, index[b], gate[b], z)
    last = np.empty(LANES, np.float32)
    row, step = z.ctypes.data, (whole + 1) * LINE
    first, second = _pairs(task.k, task.block)
    for p in range(pairs * part // per_sample, pairs * (part + 1) // per_sample):
        zi, zj, out = row + first[p] * step, row + second[p] * step, y[kept + p].ctypes.data
        for n in range(0, whole * LINE, LINE):
            _forward(kept, zi + n, zj + n, out + n, p, alpha, weight, bias)
        if rest:
            n = whole * LINE
            _forward(kept, zi + n, zj + n, last.ctypes.data, p, alpha, weight, bias)
            y[kept + p, whole * LANES :] = last[:rest]
    keep(z, last)


@compiled
def expand_nhwc_fwd_kernel(task, chunk):
    """A chunk of the positions of all samples, channels contiguous: x (B, N, C), y (B, N, C + P)."""
    index, gate, alpha, weight, bias = _operands(task)
    channels, kept, pairs, rows = task.channels, task.kept, len(weight), task.batch * task.positions
    blocks = (rows + LANES - 1) // LANES
    begin, end = LANES * (blocks * chunk // task.chunks), LANES * (blocks * (chunk + 1) // task.chunks)
    end = min(end, rows)
    for b in range(begin // task.positions, (end + task.positions - 1) // task.positions):
        if _out_of_range(index[b], channels):
            task.bad = 1
            return
    x = numba.carray(floats(task.x), (rows, channels))
    y = numba.carray(floats(task.y), (rows, kept + pairs))
    z = np.empty((task.k, LANES), np.float32)
    d = np.empty((LANES, LANES), np.float32)
    z_at, d_at, width = z.ctypes.data, d.ctypes.data, 4 * (kept + pairs)
    first, second = _pairs(task.k, task.block)
    for start in range(begin, end, LANES):
        live = min(LANES, end - start)
        _gathered_nhwc(x, index, gate, start, live, task.positions, z)
        for row in range(start, start + live):
            y[row, :kept] = x[row, :kept]
        for block in range(0, pairs, LANES):
            size = min(LANES, pairs - block)
            for p in range(block, block + size):
                zi, zj, out = z_at + first[p] * LINE, z_at + second[p] * LINE, d_at + (p - block) * LINE
                _forward(kept, zi, zj, out, p, alpha, weight, bias)
            if live == LANES and size == LANES:
                transpose(d_at, LINE, y[start, kept + block :].ctypes.data, width)
            else:
                for lane in range(live):
                    for p in range(size):
                        y[start + lane, kept + block + p] = d[p, lane]
    keep(z, d)


@compiled
def _add_up(lanes, total):
    """The sum of each row of lanes (_, LANES), in a fixed order."""
    for p in range(len(total)):
        fold(lanes[p].ctypes.data, total[p:].ctypes.data)


@compiled
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


@compiled
def _gradients(task, chunk):
    """grad_gate (batch, k), and this chunk's own sums: alpha (1,), weight and bias (pairs,)."""
    pairs = _count(task.k, task.block)
    return (
        numba.carray(floats(task.grad_gate), (task.batch, task.k)),
        numba.carray(floats(task.sums_alpha), (task.chunks, 1))[chunk],
        numba.carray(floats(task.sums_weight), (task.chunks, pairs))[chunk],
        numba.carray(floats(task.sums_bias), (task.chunks, pairs))[chunk],
    )


@compiled
def _rows_of_sums(kept, pairs):
    """Lane by lane: weight's (pairs), bias's (pairs) and alpha's."""
    return np.zeros((2 * pairs + 1 if kept else 0, LANES), np.float32)


@compiled
def _backward(kept, zi, zj, g, gzi, gzj, p, alpha, weight, lanes_at):
    if kept:
        pairs = len(weight)
        of_weight, of_bias, of_alpha = (
            lanes_at + p * LINE,
            lanes_at + (pairs + p) * LINE,
            lanes_at + 2 * pairs * LINE,
        )
        pair_bwd(zi, zj, g, gzi, gzj, of_alpha, of_weight, of_bias, alpha, weight[p])
    else:
        product_bwd(zi, zj, g, gzi, gzj)


@compiled
def _add_up_all(lanes, sum_alpha, sum_weight, sum_bias):
    pairs = len(sum_weight)
    _add_up(lanes[:pairs], sum_weight)
    _add_up(lanes[pairs : 2 * pairs], sum_bias)
    _add_up(lanes[2 * pairs :], sum_alpha)


@compiled
def expand_nchw_bwd_kernel(task, chunk):
    """Gradients of a chunk of samples, positions contiguous."""
    index, gate, alpha, weight, _ = _operands(task)
    grad_gate, sum_alpha, sum_weight, sum_bias = _gradients(task, chunk)
    channels, kept, k, positions, pairs = task.channels, task.kept, task.k, task.positions, len(weight)
    xs = numba.carray(floats(task.x), (task.batch, channels, positions))
    grad_xs = numba.carray(floats(task.grad_x), (task.batch, channels, positions))
    grads = numba.carray(floats(task.grad), (task.batch, kept + pairs, positions))
    whole, rest = positions // LANES, positions % LANES
    z = np.zeros((k, (whole + 1) * LANES), np.float32)
    gz = np.empty_like(z)
    last, of_gate = np.zeros(LANES, np.float32), np.empty(LANES, np.float32)
    lanes = _rows_of_sums(kept, pairs)
    z_at, gz_at, step, lanes_at = z.ctypes.data, gz.ctypes.data, (whole + 1) * LINE, lanes.ctypes.data
    first, second = _pairs(k, task.block)
    for b in range(task.batch * chunk // task.chunks, task.batch * (chunk + 1) // task.chunks):
        if _out_of_range(index[b], channels):
            task.bad = 1
            return
        x, grad, grad_x = xs[b], grads[b], grad_xs[b]
        if kept:
            grad_x[:] = grad[:channels]
        else:
            grad_x[:] = _ZERO
        _gathered_nchw(x, index[b], gate[b], z)
        gz[:] = _ZERO
        for p in range(pairs):
            i, j, g = first[p] * step, second[p] * step, grad[kept + p].ctypes.data
            zi, zj, gzi, gzj = z_at + i, z_at + j, gz_at + i, gz_at + j
            for n in range(0, whole * LINE, LINE):
                _backward(kept, zi + n, zj + n, g + n, gzi + n, gzj + n, p, alpha, weight, lanes_at)
            if rest:
                n = whole * LINE
                last[:rest] = grad[kept + p, whole * LANES :]
                _backward(kept, zi + n, zj + n, last.ctypes.data, gzi + n, gzj + n, p, alpha, weight, lanes_at)
        for s in range(k):
            scale, row, out, of_row = gate[b, s], x[index[b, s]], grad_x[index[b, s]], gz[s]
            for n in range(positions):
                out[n] += scale * of_row[n]
            grad_gate[b, s] = _dot(of_row, row, of_gate)
    if kept:
        _add_up_all(lanes, sum_alpha, sum_weight, sum_bias)
    keep(z, gz, last, lanes)


@compiled
def expand_nhwc_bwd_kernel(task, chunk):
    """The same with the channels contiguous."""
    index, gate, alpha, weight, _ = _operands(task)
    grad_gate, sum_alpha, sum_weight, sum_bias = _gradients(task, chunk)
    channels, kept, k, pairs, rows = task.channels, task.kept, task.k, len(weight), task.batch * task.positions
    x = numba.carray(floats(task.x), (rows, channels))
    grad_x = numba.carray(floats(task.grad_x), (rows, channels))
    grad = numba.carray(floats(task.grad), (rows, kept + pairs))
    z = np.empty((k, LANES), np.float32)
    gz = np.empty((k, LANES), np.float32)
    g = np.zeros((LANES, LANES), np.float32)
    lanes = _rows_of_sums(kept, pairs)
    z_at, gz_at, g_at, width = z.ctypes.data, gz.ctypes.data, g.ctypes.data, 4 * (kept + pairs)
    lanes_at = lanes.ctypes.data
    first, second = _pairs(k, task.block)
    samples = range(task.batch * chunk // task.chunks, task.batch * (chunk + 1) // task.chunks)
    for b in samples:
        grad_gate[b] = _ZERO
        if _out_of_range(index[b], channels):
            task.bad = 1
            return
    end = samples.stop * task.positions
    for start in range(samples.start * task.positions, end, LANES):
        live = min(LANES, end - start)
        _gathered_nhwc(x, index, gate, start, live, task.positions, z)
        for row in range(start, start + live):
            if kept:
                grad_x[row] = grad[row, :channels]
            else:
                grad_x[row] = _ZERO
        gz[:] = _ZERO
        for block in range(0, pairs, LANES):
            size = min(LANES, pairs - block)
            if live == LANES and size == LANES:
                transpose(grad[start, kept + block :].ctypes.data, width, g_at, LINE)
            else:
                for lane in range(LANES):
                    for p in range(size):
                        g[p, lane] = grad[start + lane, kept + block + p] if lane < live else _ZERO
            for p in range(block, block + size):
                i, j, g_of = first[p] * LINE, second[p] * LINE, g_at + (p - block) * LINE
                _backward(kept, z_at + i, z_at + j, g_of, gz_at + i, gz_at + j, p, alpha, weight, lanes_at)
        for lane in range(live):
            row = start + lane
            b = row // task.positions
            for s in range(k):
                c = index[b, s]
                grad_gate[b, s] += gz[s, lane] * x[row, c]
                grad_x[row, c] += gate[b, s] * gz[s, lane]
    if kept:
        _add_up_all(lanes, sum_alpha, sum_weight, sum_bias)
    keep(z, gz, g, lanes)
