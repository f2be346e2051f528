"""CPU kernels of batch normalisation with an activation, where channels are contiguous.

Sums over each of `parts` parts of the rows, then what follows from them for each channel, then the rows: a kernel
for each step, for several threads, and one of them all.
"""

import numba
import numpy as np

from hadaptive.ops.cpu_compile import compiled, doubles, floats
from hadaptive.ops.cpu_lanes import LANES, LINE, add, add_to_doubles, last, load, mul, splat, store, sub
from hadaptive.ops.cpu_norm_kernels import ZERO, activated, bounds, channel, keep_statistics, of_z

_ROWS = 32  # rows whose numbers are added up in float32


@compiled
def _rows_of(task, part, parts):
    rows = task.batch * task.positions
    return rows * part // parts, rows * (part + 1) // parts


@compiled
def _add_line(at, first, rows, width, sums, live):
    """Sums over rows of sixteen channels' distances from their first number, and of the squares."""
    k = load(first)
    plain = squares = splat(ZERO)
    for i in range(at, at + rows * width, width):
        d = sub(load(i), k)
        plain, squares = add(plain, d), add(squares, mul(d, d))
    add_to_doubles(sums, last(plain, live))
    add_to_doubles(sums + 2 * width, last(squares, live))


@compiled
def _add_four_lines(at, first, rows, width, sums):
    """The same of sixty-four channels: four lines lie side by side in memory."""
    k0, k1, k2, k3 = load(first), load(first + LINE), load(first + 2 * LINE), load(first + 3 * LINE)
    p0 = p1 = p2 = p3 = q0 = q1 = q2 = q3 = splat(ZERO)
    for i in range(at, at + rows * width, width):
        d0, d1 = sub(load(i), k0), sub(load(i + LINE), k1)
        d2, d3 = sub(load(i + 2 * LINE), k2), sub(load(i + 3 * LINE), k3)
        p0, q0 = add(p0, d0), add(q0, mul(d0, d0))
        p1, q1 = add(p1, d1), add(q1, mul(d1, d1))
        p2, q2 = add(p2, d2), add(q2, mul(d2, d2))
        p3, q3 = add(p3, d3), add(q3, mul(d3, d3))
    for at in (sums, sums + 2 * width):
        add_to_doubles(at, p0)
        add_to_doubles(at + 2 * LINE, p1)
        add_to_doubles(at + 4 * LINE, p2)
        add_to_doubles(at + 6 * LINE, p3)
        p0, p1, p2, p3 = q0, q1, q2, q3


@compiled
def norm_nhwc_sums_kernel(task, chunk):
    """Of a part of the rows, sums of the distances from its first row, and of their squares."""
    channels, width = task.channels, 4 * task.channels
    begin, end = _rows_of(task, chunk, task.parts)
    sums = task.sums + 4 * width * chunk
    numba.carray(doubles(sums), 2 * channels)[:] = 0.0
    first = task.x + begin * width
    for start in range(begin, end, _ROWS):
        rows, at = min(end, start + _ROWS) - start, task.x + start * width
        wide = channels // (4 * LANES) * 4 * LANES
        for c in range(0, wide, 4 * LANES):
            _add_four_lines(at + 4 * c, first + 4 * c, rows, width, sums + 8 * c)
        for c in range(wide, channels, LANES):
            j = min(c, channels - LANES)
            _add_line(at + 4 * j, first + 4 * j, rows, width, sums + 8 * j, min(LANES, channels - c))


@compiled
def norm_nhwc_statistics_kernel(task, chunk):
    """Mean, variance and table of all channels."""
    channels, parts = task.channels, task.parts
    sums = numba.carray(doubles(task.sums), (parts, 2, channels))
    x = numba.carray(floats(task.x), (task.batch * task.positions, channels))
    means, variances = np.zeros(channels), np.zeros(channels)
    for part in range(parts):
        begin, end = _rows_of(task, part, parts)
        count = end - begin
        for c in range(channels):
            d = sums[part, 0, c] / count
            further = x[begin, c] + d - means[c]
            means[c] += further * count / end
            variances[c] += sums[part, 1, c] - count * d * d + further * further * begin * count / end
    for c in range(channels):
        keep_statistics(task, c, means[c], variances[c] / (task.batch * task.positions))
    norm_nhwc_table_kernel(task, chunk)


@compiled
def norm_nhwc_table_kernel(task, chunk):
    """The table's first four rows."""
    table = numba.carray(floats(task.table), (6, task.channels))
    weights = numba.carray(floats(task.weight), task.channels)
    for c in range(task.channels):
        _, table[0, c], inverse, table[3, c] = channel(task, c)
        table[1, c], table[2, c] = inverse, weights[c]


@compiled
def norm_nhwc_map_kernel(task, chunk):
    """A chunk of the rows, by the table."""
    width, act = 4 * task.channels, task.act
    low, high = bounds(act)
    # The last rows that were added up are still in the processor's cache.
    begin, end = _rows_of(task, task.parts - 1 - chunk, task.parts)
    means, scales = task.table, task.table + width
    weights, offsets = scales + width, scales + 2 * width
    for row in range(begin * width, end * width, width):
        x, y = task.x + row, task.y + row
        for start in range(0, width, LINE):
            i = min(start, width - LINE)
            h = mul(sub(load(x + i), load(means + i)), load(scales + i))
            store(activated(add(mul(h, load(weights + i)), load(offsets + i)), act, low, high), y + i)


@compiled
def norm_nhwc_fwd_kernel(task, chunk):
    """All steps in one chunk."""
    for part in range(task.parts):
        norm_nhwc_sums_kernel(task, part)
    norm_nhwc_statistics_kernel(task, 0)
    for part in range(task.parts):
        norm_nhwc_map_kernel(task, part)


@compiled
def _add_gradients(task, at, i, rows, width, sums, live, act, low, high):
    """Sums over rows of z's gradient and of its products with h, of sixteen channels; the last `live`."""
    table = task.table + i
    m, r, w, o = load(table), load(table + width), load(table + 2 * width), load(table + 3 * width)
    plain = scaled = splat(ZERO)
    x, grad = task.x, task.grad
    for row in range(at, at + rows * width, width):
        h = mul(sub(load(x + row), m), r)
        g = of_z(load(grad + row), add(mul(h, w), o), act, low, high)
        plain, scaled = add(plain, g), add(scaled, mul(g, h))
    add_to_doubles(sums, last(plain, live))
    add_to_doubles(sums + 2 * width, last(scaled, live))


@compiled
def _add_two_gradients(task, at, i, rows, width, sums, act, low, high):
    """The same of thirty-two channels."""
    table = task.table + i
    m, r, w, o = load(table), load(table + width), load(table + 2 * width), load(table + 3 * width)
    table += LINE
    m1, r1, w1, o1 = load(table), load(table + width), load(table + 2 * width), load(table + 3 * width)
    plain = scaled = plain1 = scaled1 = splat(ZERO)
    x, grad = task.x, task.grad
    for row in range(at, at + rows * width, width):
        h = mul(sub(load(x + row), m), r)
        g = of_z(load(grad + row), add(mul(h, w), o), act, low, high)
        plain, scaled = add(plain, g), add(scaled, mul(g, h))
        h = mul(sub(load(x + row + LINE), m1), r1)
        g = of_z(load(grad + row + LINE), add(mul(h, w1), o1), act, low, high)
        plain1, scaled1 = add(plain1, g), add(scaled1, mul(g, h))
    for at in (sums, sums + 2 * width):
        add_to_doubles(at, plain)
        add_to_doubles(at + 2 * LINE, plain1)
        plain, plain1 = scaled, scaled1


@compiled
def norm_nhwc_bwd_sums_kernel(task, chunk):
    """Of a part of the rows, sums of z's gradient and of its products with h."""
    channels, width, act = task.channels, 4 * task.channels, task.act
    low, high = bounds(act)
    begin, end = _rows_of(task, chunk, task.parts)
    sums = task.sums + 4 * width * chunk
    numba.carray(doubles(sums), 2 * channels)[:] = 0.0
    for start in range(begin, end, _ROWS):
        rows, at = min(end, start + _ROWS) - start, start * width
        wide = channels // (2 * LANES) * 2 * LANES
        for i in range(0, 4 * wide, 2 * LINE):
            _add_two_gradients(task, at + i, i, rows, width, sums + 2 * i, act, low, high)
        for c in range(wide, channels, LANES):
            i = 4 * min(c, channels - LANES)
            _add_gradients(task, at + i, i, rows, width, sums + 2 * i, min(LANES, channels - c), act, low, high)


@compiled
def norm_nhwc_bwd_statistics_kernel(task, chunk):
    """Gradients of weight and bias, and the rest of the table."""
    channels, count = task.channels, task.batch * task.positions
    sums = numba.carray(doubles(task.sums), (task.parts, 2, channels))
    table = numba.carray(floats(task.table), (6, channels))
    grad_weight = numba.carray(floats(task.grad_weight), channels)
    grad_bias = numba.carray(floats(task.grad_bias), channels)
    for part in range(1, task.parts):
        for i in range(2):
            for c in range(channels):
                sums[0, i, c] += sums[part, i, c]
    for c in range(channels):
        mean, rounded, inverse, _ = channel(task, c)
        shift, of_bias = (mean - rounded) * inverse, sums[0, 0, c]
        of_weight = sums[0, 1, c] - shift * of_bias
        grad_weight[c], grad_bias[c] = of_weight, of_bias
        table[4, c], table[5, c] = (of_bias - shift * of_weight) / count, of_weight / count


@compiled
def norm_nhwc_bwd_map_kernel(task, chunk):
    """A chunk of the rows of x's gradient, by the table."""
    width, act = 4 * task.channels, task.act
    low, high = bounds(act)
    # The last rows that were added up are still in the processor's cache.
    begin, end = _rows_of(task, task.parts - 1 - chunk, task.parts)
    means, scales = task.table, task.table + width
    weights, offsets, lost, slopes = scales + width, scales + 2 * width, scales + 3 * width, scales + 4 * width
    for row in range(begin * width, end * width, width):
        x, grad, grad_x = task.x + row, task.grad + row, task.grad_x + row
        for start in range(0, width, LINE):
            i = min(start, width - LINE)
            r, w = load(scales + i), load(weights + i)
            h = mul(sub(load(x + i), load(means + i)), r)
            g = of_z(load(grad + i), add(mul(h, w), load(offsets + i)), act, low, high)
            rest = sub(sub(g, load(lost + i)), mul(h, load(slopes + i)))
            store(mul(mul(r, w), rest), grad_x + i)


@compiled
def norm_nhwc_bwd_kernel(task, chunk):
    """All steps in one chunk."""
    norm_nhwc_table_kernel(task, 0)
    for part in range(task.parts):
        norm_nhwc_bwd_sums_kernel(task, part)
    norm_nhwc_bwd_statistics_kernel(task, 0)
    for part in range(task.parts):
        norm_nhwc_bwd_map_kernel(task, part)
