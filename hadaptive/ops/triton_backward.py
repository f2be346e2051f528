"""Fused GPU kernels of the expansion's backward pass, for every schedule of the forward pass.

A program for each block of selected channels visits all partners and sums up in registers, and one for each block
of pairs walks over positions and samples and reduces its share of weight, bias and alpha once, at its end. Sums go
through partial buffers, without atomics: results are the same in every run.
"""

# The type checker takes a kernel for the function it is made of.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAssignmentType=false, reportOptionalMemberAccess=false

import triton
import triton.language as tl

from hadaptive.ops.triton_kernels import (
    _across,
    _aligned,
    _along,
    _at,
    _float,
    _number,
    _pair_of,
    _products,
    _sample,
    _selected,
    _softsign_parts,
)


@triton.jit
def expand_slots_bwd_kernel(
    grad, x, index, gate, alpha, weight, gz, of_gate, channels, k, positions,
    gated: tl.constexpr, group: tl.constexpr, cols: tl.constexpr, far: tl.constexpr, unit: tl.constexpr,
    block_s: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """Gradients of the gated channels, and partial ones of the gates: a program for each block of slots and of
    positions of a sample, which meets one partner after the other."""
    size = positions if cols else _aligned(positions, unit)
    width = channels + _products(k, group)
    blocks = tl.cdiv(size, block_n)
    parts = tl.cdiv(k, block_s)
    rest = tl.program_id(0) // blocks
    b = rest // parts
    x, gz = _sample(x, b, tl.cast(channels, tl.int64) * size), _sample(gz, b, tl.cast(k, tl.int64) * size)
    grad = _sample(grad, b, tl.cast(width, tl.int64) * size)
    index, gate = _sample(index, b, k), _sample(gate, b, k)
    n = _along(tl.program_id(0) % blocks * block_n + tl.arange(0, block_n), cols)
    s = _across(rest % parts * block_s + tl.arange(0, block_s), cols)
    live = (n < size) & (s < k)
    a = _float(alpha)
    c, scale = _selected(index, gate, s, s < k, gated)
    plain = tl.load(_at(x, c, n, channels, size, cols, far), mask=live, other=0.0).to(tl.float32)
    zs = plain * scale
    total = tl.zeros_like(plain)
    for turn in range(k // group):
        if group == 1:
            t = turn
            ct, gt = _selected(index, gate, t, True, gated)
        else:
            t = turn * group + s % group
            ct, gt = _selected(index, gate, t, s < k, gated)
        met = n < size if group == 1 else live
        zt = tl.load(_at(x, ct, n, channels, size, cols, far), mask=met, other=0.0).to(tl.float32) * gt
        wanted = (s != t) & (s < k)
        p = _number(s, t, k, group)
        w = tl.load(weight + p, mask=wanted, other=0.0).to(tl.float32)
        g = tl.load(_at(grad, channels + p, n, width, size, cols, far), mask=(n < size) & wanted, other=0.0)
        _, _, r = _softsign_parts(zs, zt, a)
        total += g.to(tl.float32) * w * (r * r) * tl.where(wanted, zt, 0.0)
    total *= a
    tl.store(_at(gz, s, n, k, size, cols, far), total, mask=live)
    of_gate = _sample(of_gate, b * blocks + tl.program_id(0) % blocks, k)
    share = tl.sum(tl.where(live, total * plain, 0.0), axis=0 if cols else 1, keep_dims=True)
    tl.store(of_gate + s, share, mask=s < k)


@triton.jit
def expand_pairs_bwd_kernel(
    grad, x, index, gate, alpha, sums, batch, channels, k, positions, parts,
    gated: tl.constexpr, group: tl.constexpr, cols: tl.constexpr, far: tl.constexpr, unit: tl.constexpr,
    block_p: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """Partial gradients of weight and bias, and each pair's of alpha, before its weight: a program for each block
    of pairs and part of all positions of all samples."""
    size = positions if cols else _aligned(positions, unit)
    pairs = _products(k, group)
    if cols:
        channels, pairs = _aligned(channels, unit), _aligned(pairs, unit)
    width = channels + pairs
    blocks = tl.cdiv(size, block_n)
    part = tl.program_id(0) % parts
    p = _across(tl.program_id(0) // parts * block_p + tl.arange(0, block_p), cols)
    wanted = p < pairs
    i, j = _pair_of(tl.where(wanted, p, 0), k, group)
    a = _float(alpha)
    lane = _along(tl.arange(0, block_n), cols)
    of_weight = tl.zeros_like((p + lane).to(tl.float32))
    of_bias, of_alpha = of_weight, of_weight
    for task in range(part, batch * blocks, parts):
        b = task // blocks
        mine, gates = _sample(index, b, k), _sample(gate, b, k)
        here = _sample(x, b, tl.cast(channels, tl.int64) * size)
        ci, gi = _selected(mine, gates, i, wanted, gated)
        cj, gj = _selected(mine, gates, j, wanted, gated)
        n = task % blocks * block_n + lane
        live = (n < size) & wanted
        zi = tl.load(_at(here, ci, n, channels, size, cols, far), mask=live, other=0.0).to(tl.float32) * gi
        zj = tl.load(_at(here, cj, n, channels, size, cols, far), mask=live, other=0.0).to(tl.float32) * gj
        place = _at(_sample(grad, b, tl.cast(width, tl.int64) * size), channels + p, n, width, size, cols, far)
        g = tl.load(place, mask=live, other=0.0).to(tl.float32)
        product, u, r = _softsign_parts(zi, zj, a)
        of_weight += g * r * u
        of_alpha += g * r * r * product
        of_bias += g
    sums = _sample(sums, part, 3 * pairs) + p
    axis: tl.constexpr = 0 if cols else 1
    tl.store(sums, tl.sum(of_weight, axis=axis, keep_dims=True), mask=wanted)
    tl.store(sums + pairs, tl.sum(of_bias, axis=axis, keep_dims=True), mask=wanted)
    tl.store(sums + 2 * pairs, tl.sum(of_alpha, axis=axis, keep_dims=True), mask=wanted)


@triton.jit
def expand_input_bwd_kernel(
    grad, gz, index, gate, grad_x, channels, k, positions,
    gated: tl.constexpr, group: tl.constexpr, cols: tl.constexpr, far: tl.constexpr, unit: tl.constexpr,
    block_c: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """grad_x: what came through the concatenation, and what came through the selection."""
    size = positions if cols else _aligned(positions, unit)
    width = channels + _products(k, group)
    if cols:
        channels, width = _aligned(channels, unit), _aligned(width, unit)
    blocks = tl.cdiv(size, block_n)
    parts = tl.cdiv(channels, block_c)
    rest = tl.program_id(0) // blocks
    part, b = rest % parts, rest // parts
    grad, grad_x = (
        _sample(grad, b, tl.cast(width, tl.int64) * size),
        _sample(grad_x, b, tl.cast(channels, tl.int64) * size),
    )
    gz, index, gate = _sample(gz, b, tl.cast(k, tl.int64) * size), _sample(index, b, k), _sample(gate, b, k)
    n = _along(tl.program_id(0) % blocks * block_n + tl.arange(0, block_n), cols)
    c = _across(part * block_c + tl.arange(0, block_c), cols)
    live = (n < size) & (c < channels)
    total = tl.load(_at(grad, c, n, width, size, cols, far), mask=live, other=0.0).to(tl.float32)
    for s in range(k):
        chosen, scale = _selected(index, gate, s, True, gated)
        if chosen // block_c == part:
            through = tl.load(_at(gz, s, n, k, size, cols, far), mask=n < size, other=0.0) * scale
            total += tl.where(c == chosen, through, 0.0)
    tl.store(_at(grad_x, c, n, channels, size, cols, far), total.to(grad_x.dtype.element_ty), mask=live)
