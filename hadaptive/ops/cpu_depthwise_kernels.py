"""Gradients of depthwise 2-D convolutions on the CPU, compiled by Numba when first used and cached.

A kernel does one chunk: sixteen channels of some samples. It copies their maps into blocks whose lines are those
sixteen channels of one position, with columns of zeros beside them, whatever the layout they come from: there
both gradients are loops without a condition. Sums are kept per chunk, and chunks do not depend on the number of
threads.

At stride 1 x's gradient is the convolution of y's with the kernel turned round; otherwise every product is added
where its tap read.
"""

import ctypes
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils

from hadaptive.ops.cpu_compile import compiled, floats, keep, task_fields
from hadaptive.ops.simd import LANES, LINE, VECTOR, Vectors, intrinsic, step

TILE = 7  # sums in registers at once: with 16 registers of half a line each, as many as there are


class Task(ctypes.Structure):
    """What a kernel is to do: counters, sizes, and the addresses of contiguous arrays.

    x and grad_x are (batch, channels, height, width), or, with `nhwc`, (batch, height, width, channels); grad is
    the like of y. weight is (channels, kernel_h, kernel_w); sums has that shape for each of `parts` of the batch.
    An address of 0 is a gradient that is not wanted.
    """

    _fields_ = task_fields(
        *("parts", "batch", "channels", "nhwc"),
        *("height", "width", "out_height", "out_width", "kernel_h", "kernel_w"),
        *("stride_h", "stride_w", "padding_h", "padding_w", "dilation_h", "dilation_w"),
        *("x", "grad", "weight", "grad_x", "sums"),
    )


@intrinsic
def _products(typing, size, rows, cols, a, a_row, b, b_row, b_col, b_next, out, out_step):
    """Lines n < size, `out_step` apart: the sum over rows and cols of a[row, col] * b[row, col, n].

    Both gradients are such sums, and the convolution itself. Lines of a column of `a` lie side by side; all other
    steps are in bytes. There is code for each size up to TILE, so that so many sums stay in registers.
    """

    def emit(v: Vectors, size, rows, cols, a, a_row, b, b_row, b_col, b_next, out, out_step) -> None:
        builder = v.builder
        after = builder.append_basic_block("after")
        switch = builder.switch(size, after)
        for number in range(1, TILE + 1):
            block = builder.append_basic_block(f"of_{number}")
            switch.add_case(ir.Constant(ir.IntType(64), number), block)
            builder.position_at_end(block)
            sums = [cgutils.alloca_once(builder, VECTOR) for _ in range(number)]
            for place in sums:
                builder.store(v.constant(0.0), place)
            with cgutils.for_range(builder, rows) as row, cgutils.for_range(builder, cols) as col:
                factor = v.load(v.at(a, (row.index, a_row), (col.index, LINE)))
                start = v.at(b, (row.index, b_row), (col.index, b_col))
                for n, place in enumerate(sums):
                    product = v.mul(factor, v.load(v.at(start, (n, b_next))))
                    builder.store(v.add(builder.load(place), product), place)
            for n, place in enumerate(sums):
                v.store(builder.load(place), v.at(out, (n, out_step)))
            builder.branch(after)
        builder.position_at_end(after)

    return step(11, 0, emit)


@intrinsic
def _add_scaled(typing, grad, weight, out):
    """Adds grad * weight to out, a line each."""

    def emit(v: Vectors, grad: Any, weight: Any, out: Any) -> None:
        v.add_to(out, v.mul(v.load(grad), v.load(weight)))

    return step(3, 0, emit)


@intrinsic
def _add_line(typing, source, target):
    def emit(v: Vectors, source: Any, target: Any) -> None:
        v.add_to(target, v.load(source))

    return step(2, 0, emit)


@intrinsic
def _copy_line(typing, source, target):
    def emit(v: Vectors, source: Any, target: Any) -> None:
        v.store(v.load(source), target)

    return step(2, 0, emit)


@intrinsic
def _turn(typing, source, source_step, last, target):
    """Sixteen rows of sixteen, `source_step` bytes apart, as lines at target; rows after the last repeat it."""

    def emit(v: Vectors, source: Any, source_step: Any, last: Any, target: Any) -> None:
        rows = []
        for n in range(LANES):
            number = ir.Constant(ir.IntType(64), n)
            number = v.builder.select(v.builder.icmp_signed("<", number, last), number, last)
            rows.append(v.load(v.at(source, (number, source_step))))
        for n, row in enumerate(v.transposed(rows)):
            v.store(row, v.at(target, (n, LINE)))

    return step(4, 0, emit)


@compiled
def _filled_block(task, address, sample, first, live, height, width, spare, block, pitch, lines):
    """Sixteen channels of one sample's map into lines of `block`, `pitch` of them a row, `spare` before the first.

    Lanes past the live channels hold what happens to lie there: they meet no other lane.
    """
    channels, positions = task.channels, height * width
    target = block + spare * LINE
    if task.nhwc:
        step = 4 * channels
        source = address + 4 * (sample * positions * channels + first)
        end = address + 4 * task.batch * positions * channels
        for row in range(height):
            out = target + row * pitch * LINE
            for _ in range(width):
                if source + LINE <= end:
                    _copy_line(source, out)
                else:
                    _copy_floats(source, out, live)
                source += step
                out += LINE
        return
    source, step = address + 4 * (sample * channels + first) * positions, 4 * positions
    if positions < LANES:
        for n in range(positions):
            out = target + ((n // width) * pitch + n % width) * LINE
            for c in range(live):
                _copy_floats(source + c * step + 4 * n, out + 4 * c, 1)
        return
    for begin in range(0, positions, LANES):
        start = min(begin, positions - LANES)
        _turn(source + 4 * start, step, live - 1, lines)
        row, col = start // width, start % width
        for n in range(LANES):
            _copy_line(lines + n * LINE, target + (row * pitch + col) * LINE)
            col += 1
            if col == width:
                row, col = row + 1, 0


@compiled
def _copy_floats(source, target, count):
    a, b = numba.carray(floats(source), count), numba.carray(floats(target), count)
    for n in range(count):
        b[n] = a[n]


@compiled
def _emptied_block(task, block, pitch, spare, sample, first, live, lines):
    """Lines of `block` to sixteen channels of one sample's gradient of x."""
    channels, height, width = task.channels, task.height, task.width
    positions = height * width
    source = block + spare * LINE
    if task.nhwc:
        target = task.grad_x + 4 * (sample * positions * channels + first)
        for row in range(height):
            line = source + row * pitch * LINE
            for _ in range(width):
                if live == LANES:
                    _copy_line(line, target)
                else:
                    _copy_floats(line, target, live)
                line += LINE
                target += 4 * channels
        return
    target, step = task.grad_x + 4 * (sample * channels + first) * positions, 4 * positions
    if positions < LANES:
        for n in range(positions):
            line = source + ((n // width) * pitch + n % width) * LINE
            for c in range(live):
                _copy_floats(line + 4 * c, target + c * step + 4 * n, 1)
        return
    turned = lines + LANES * LINE
    for begin in range(0, positions, LANES):
        start = min(begin, positions - LANES)
        if pitch == width:
            _turn(source + start * LINE, LINE, LANES - 1, turned)
        else:
            for n in range(LANES):
                row, col = (start + n) // width, (start + n) % width
                _copy_line(source + (row * pitch + col) * LINE, lines + n * LINE)
            _turn(lines, LINE, LANES - 1, turned)
        for c in range(live):
            _copy_line(turned + c * LINE, target + c * step + 4 * start)


@compiled
def _rows_of(tap, size, out_size, stride, padding, dilation):
    """Which outputs read the map, and not the padding, through a tap: from, to."""
    offset = padding - tap * dilation
    start = max(0, (offset + stride - 1) // stride)
    return start, max(start, min(out_size, (size - 1 + offset) // stride + 1))


@compiled
def _add_weight(task, x, x_pitch, grad, grad_pitch, lines, total):
    """Adds one sample's gradient of the weights, a line for each tap, to total."""
    for u in range(task.kernel_h):
        start, stop = _rows_of(u, task.height, task.out_height, task.stride_h, task.padding_h, task.dilation_h)
        if start == stop:
            continue
        row = start * task.stride_h + u * task.dilation_h - task.padding_h
        for v in range(0, task.kernel_w, TILE):
            size = min(TILE, task.kernel_w - v)
            _products(
                size,
                stop - start,
                task.out_width,
                grad + start * grad_pitch * LINE,
                grad_pitch * LINE,
                x + (row * x_pitch + v * task.dilation_w) * LINE,
                task.stride_h * x_pitch * LINE,
                task.stride_w * LINE,
                task.dilation_w * LINE,
                lines,
                LINE,
            )
            for tap in range(size):
                _add_line(lines + tap * LINE, total + (u * task.kernel_w + v + tap) * LINE)


@compiled
def _tiled(task, grad, grad_pitch, weight, out, out_pitch, out_step):
    """One sample's gradient of x at stride 1; grad begins at its first column of zeros."""
    tiles = (task.width + TILE - 1) // TILE
    for y in range(task.height):
        # y + padding - u * dilation is a row of grad for these u.
        low = max(0, (y + task.padding_h - task.out_height + task.dilation_h) // task.dilation_h)
        high = max(low, min(task.kernel_h, (y + task.padding_h) // task.dilation_h + 1))
        row = y + task.padding_h - low * task.dilation_h
        for tile in range(tiles):
            start, stop = task.width * tile // tiles, task.width * (tile + 1) // tiles
            _products(
                stop - start,
                high - low,
                task.kernel_w,
                weight + low * task.kernel_w * LINE,
                task.kernel_w * LINE,
                grad + (row * grad_pitch + (task.kernel_w - 1) * task.dilation_w + start) * LINE,
                -task.dilation_h * grad_pitch * LINE,
                -task.dilation_w * LINE,
                LINE,
                out + y * out_pitch + start * out_step,
                out_step,
            )


@compiled
def _scattered(task, grad, grad_pitch, weight, out, out_pitch):
    """The same at any stride, added to lines of zeros; out begins at its first column of padding."""
    for u in range(task.kernel_h):
        start, stop = _rows_of(u, task.height, task.out_height, task.stride_h, task.padding_h, task.dilation_h)
        for i in range(start, stop):
            row = i * task.stride_h + u * task.dilation_h - task.padding_h
            for v in range(task.kernel_w):
                w = weight + (u * task.kernel_w + v) * LINE
                place = out + (row * out_pitch + v * task.dilation_w) * LINE
                for j in range(task.out_width):
                    _add_scaled(grad + (i * grad_pitch + j) * LINE, w, place + j * task.stride_w * LINE)


@compiled
def depthwise_bwd_kernel(task, chunk):
    """Sixteen channels of a part of the batch: their gradient of x, and their own sums for the weight's."""
    blocks = (task.channels + LANES - 1) // LANES
    part, first = chunk // blocks, chunk % blocks * LANES
    live, area = min(LANES, task.channels - first), task.kernel_h * task.kernel_w
    reach = (task.kernel_w - 1) * task.dilation_w
    tiled = task.stride_h == 1 and task.stride_w == 1 and reach >= task.padding_w
    spare = reach - task.padding_w if tiled else 0
    # Lines that taps reach: beside the map for x, beside its gradient for the convolution that is turned round.
    x_pitch = max(task.width + task.padding_w, (task.out_width - 1) * task.stride_w + reach + 1)
    grad_pitch = max(spare + task.out_width, task.width + reach) if tiled else task.out_width
    x_block = np.zeros((task.height * x_pitch, LANES), np.float32)
    grad_block = np.zeros((task.out_height * grad_pitch, LANES), np.float32)
    x_at, grad_at = x_block.ctypes.data, grad_block.ctypes.data
    direct = task.nhwc and live == LANES and tiled
    wants_x, wants_weight = task.grad_x != 0, task.sums != 0
    out_pitch = task.width if tiled else x_pitch
    out_block = np.empty((task.height * out_pitch if wants_x and not direct else 1, LANES), np.float32)
    out_at = out_block.ctypes.data
    lines, total = np.empty((2 * LANES, LANES), np.float32), np.zeros((area, LANES), np.float32)
    lines_at = lines.ctypes.data
    weight = np.zeros((area, LANES), np.float32)
    weights = numba.carray(floats(task.weight), (task.channels, area))
    for c in range(live):
        for tap in range(area):
            weight[tap, c] = weights[first + c, tap]
    for b in range(task.batch * part // task.parts, task.batch * (part + 1) // task.parts):
        _filled_block(
            task,
            task.grad,
            b,
            first,
            live,
            task.out_height,
            task.out_width,
            spare,
            grad_at,
            grad_pitch,
            lines_at,
        )
        if wants_weight:
            _filled_block(
                task, task.x, b, first, live, task.height, task.width, task.padding_w, x_at, x_pitch, lines_at
            )
            _add_weight(task, x_at, x_pitch, grad_at + spare * LINE, grad_pitch, lines_at, total.ctypes.data)
        if not wants_x:
            continue
        if direct:
            step = 4 * task.channels
            out = task.grad_x + b * task.height * task.width * step + 4 * first
            _tiled(task, grad_at, grad_pitch, weight.ctypes.data, out, task.width * step, step)
        elif tiled:
            _tiled(task, grad_at, grad_pitch, weight.ctypes.data, out_at, task.width * LINE, LINE)
            _emptied_block(task, out_at, out_pitch, 0, b, first, live, lines_at)
        else:
            out_block[:] = np.float32(0)
            _scattered(task, grad_at, grad_pitch, weight.ctypes.data, out_at, out_pitch)
            _emptied_block(task, out_at, out_pitch, task.padding_w, b, first, live, lines_at)
    if wants_weight:
        sums = numba.carray(floats(task.sums), (task.parts, task.channels, area))[part]
        for c in range(live):
            for tap in range(area):
                sums[first + c, tap] = total[tap, c]
    keep(x_block, grad_block, out_block, lines, total, weight)
