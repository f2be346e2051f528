"""Fused GPU kernels of the expansion's forward pass, written in Triton (CUDA, and ROCm as far as Triton does).

Five schedules walk the triangle of pairs (i, j), i < j:

* ``native``: a program for each i, with a loop over j whose length depends on i;
* ``balanced``: a program for each channel c, which owns (i, c) where c - i is even and (c, j) where j - c is odd,
  so that every program has k/2 pairs, give or take one (Parity-Balanced);
* ``direct``: a program for each block of pairs, which finds (i, j) from their number (Direct-Indexing);
* ``tiled``: a program for each block of positions, which holds some selected channels and meets them with all;
* ``flat``: a program for each run of y, whatever rows are in it: stored in vectors where rows are of odd size.

``direct`` and ``flat`` also multiply whole blocks of `group` channels; in the others it is 1.

Maps are dense, with positions side by side or, where `cols`, channels side by side. `unit` divides the length of
their rows, so that loads and stores of so many elements are aligned.

Source: arXiv 2505.22226, section 5, for native, Direct-Indexing and Parity-Balanced; the rest is ours.
"""

# The type checker takes a kernel for the function it is made of.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAssignmentType=false, reportOptionalMemberAccess=false

import triton
import triton.language as tl


@triton.jit
def _clamp(v, most: tl.constexpr):
    """To the finite numbers up to `most`; NaN passes."""
    return tl.clamp(v, -most, most, tl.PropagateNan.ALL)


@triton.jit
def _softsign_parts(a, c, alpha):
    """The product of a and c, alpha times it, and 1 / (1 + |that|).

    Beyond 1e30 softsign is 1 and its slope 0 to the last bit; below, a root squared is the reciprocal in two
    instructions instead of eight.
    """
    product = _clamp(a * c, 3.4028234663852886e38)
    u = _clamp(alpha * product, 1e30)
    root = tl.rsqrt(1.0 + tl.abs(u))
    return product, u, root * root


@triton.jit
def _dysoft_of_product(a, c, alpha, weight, bias):
    _, u, r = _softsign_parts(a, c, alpha)
    return weight * (u * r) + bias


@triton.jit
def _aligned(length, unit: tl.constexpr):
    """`length`, and the compiler is told that `unit` divides it."""
    return length // unit * unit


@triton.jit
def _at(tensor, c, n, width, positions, cols: tl.constexpr, far: tl.constexpr):
    """Position n of channel c in a sample of `width` channels; distances take 64 bits where `far`."""
    if far:
        c, n = tl.cast(c, tl.int64), tl.cast(n, tl.int64)
    return tensor + n * width + c if cols else tensor + c * positions + n


@triton.jit
def _across(v, cols: tl.constexpr):
    """A vector over channels as an axis of a tile, whose last axis lies side by side in memory."""
    return v[None, :] if cols else v[:, None]


@triton.jit
def _along(v, cols: tl.constexpr):
    """A vector over positions as the other axis of that tile."""
    return v[:, None] if cols else v[None, :]


@triton.jit
def _float(pointer):
    """What is there, as float32."""
    return tl.load(pointer).to(tl.float32)


@triton.jit
def _selected(index, gate, s, wanted, gated: tl.constexpr):
    """Channel number and gate of slot s; 1 for a gate that there is not."""
    c = tl.load(index + s, mask=wanted, other=0).to(tl.int32)
    scale = 1.0
    if gated:
        scale = tl.load(gate + s, mask=wanted, other=0.0).to(tl.float32)
    return c, scale


@triton.jit
def _sample(tensor, b, size):
    """A tensor from its sample b on."""
    return tensor + tl.cast(b, tl.int64) * size


@triton.jit
def _pairs_before(i, k):
    """Number of the pair (i, i + 1)."""
    return i * (2 * k - i - 1) // 2


@triton.jit
def _products(k, group: tl.constexpr):
    """How many there are, of whole blocks of `group` channels."""
    groups = k // group
    return group * (groups * (groups - 1) // 2)


@triton.jit
def _number(s, t, k, group: tl.constexpr):
    """Number of the pair of s and t, which are at the same place in their blocks."""
    i, j = tl.minimum(s, t), tl.maximum(s, t)
    first, second = i // group, j // group
    return (_pairs_before(first, k // group) + second - first - 1) * group + i % group


@triton.jit
def _pair_of(p, k, group: tl.constexpr):
    """Direct-Indexing: (i, j) of pair p. The root is a float32's, so it is put right by one where it must."""
    q, groups = p // group, k // group
    m = 2 * groups - 1
    i = ((m - tl.sqrt((m * m - 8 * q).to(tl.float32))) * 0.5).to(tl.int32)
    i = tl.where(_pairs_before(i, groups) > q, i - 1, i)
    i = tl.where(_pairs_before(i + 1, groups) <= q, i + 1, i)
    within = p - q * group
    return i * group + within, (i + 1 + q - _pairs_before(i, groups)) * group + within


@triton.jit
def expand_channel_fwd_kernel(
    x, index, gate, alpha, weight, bias, y, channels, k, positions, parts,
    balanced: tl.constexpr, gated: tl.constexpr, group: tl.constexpr, cols: tl.constexpr, far: tl.constexpr,
    unit: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """Native and Parity-Balanced: a program for each selected channel s, part of its pairs, block of positions."""
    size = positions if cols else _aligned(positions, unit)
    width = channels + _products(k, group)
    blocks = tl.cdiv(size, block_n)
    rest = tl.program_id(0) // blocks
    n = tl.program_id(0) % blocks * block_n + tl.arange(0, block_n)
    part, s, b = rest % parts, rest // parts % k, rest // parts // k
    x, y = _sample(x, b, tl.cast(channels, tl.int64) * size), _sample(y, b, tl.cast(width, tl.int64) * size)
    index, gate = _sample(index, b, k), _sample(gate, b, k)
    live = n < size
    for c in range(part * k + s, channels, k * parts):
        copied = tl.load(_at(x, c, n, channels, size, cols, far), mask=live)
        tl.store(_at(y, c, n, width, size, cols, far), copied, mask=live)
    a = _float(alpha)
    c, scale = _selected(index, gate, s, True, gated)
    zs = tl.load(_at(x, c, n, channels, size, cols, far), mask=live, other=0.0).to(tl.float32) * scale
    below = s // 2 if balanced else 0
    own = below + (k - s) // 2 if balanced else k - s - 1
    for turn in range(part, own, parts):
        t = s + 1 + turn
        if balanced:
            t = tl.where(turn < below, s % 2 + 2 * turn, s + 1 + 2 * (turn - below))
        p = _number(s, t, k, group)
        ct, gt = _selected(index, gate, t, True, gated)
        zt = tl.load(_at(x, ct, n, channels, size, cols, far), mask=live, other=0.0).to(tl.float32) * gt
        d = _dysoft_of_product(zs, zt, a, _float(weight + p), _float(bias + p))
        tl.store(_at(y, channels + p, n, width, size, cols, far), d.to(y.dtype.element_ty), mask=live)


@triton.jit
def expand_direct_fwd_kernel(
    x, index, gate, alpha, weight, bias, y, channels, k, positions, parts,
    gated: tl.constexpr, group: tl.constexpr, cols: tl.constexpr, far: tl.constexpr, unit: tl.constexpr,
    block_p: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """Direct-Indexing: a program for each block of channels to copy or of pairs, and part of the positions."""
    size = positions if cols else _aligned(positions, unit)
    pairs = _products(k, group)
    if cols:
        channels, pairs = _aligned(channels, unit), _aligned(pairs, unit)
    width = channels + pairs
    copies = tl.cdiv(channels, block_p)
    both = copies + tl.cdiv(pairs, block_p)
    part, block, b = tl.program_id(0) % parts, tl.program_id(0) // parts % both, tl.program_id(0) // parts // both
    x, y = _sample(x, b, tl.cast(channels, tl.int64) * size), _sample(y, b, tl.cast(width, tl.int64) * size)
    index, gate = _sample(index, b, k), _sample(gate, b, k)
    lane = tl.arange(0, block_n)
    if block < copies:
        own = _across(block * block_p + tl.arange(0, block_p), cols)
        for start in range(part * block_n, size, parts * block_n):
            n = _along(start + lane, cols)
            live = (n < size) & (own < channels)
            copied = tl.load(_at(x, own, n, channels, size, cols, far), mask=live)
            tl.store(_at(y, own, n, width, size, cols, far), copied, mask=live)
    else:
        p = _across((block - copies) * block_p + tl.arange(0, block_p), cols)
        wanted = p < pairs
        i, j = _pair_of(tl.where(wanted, p, 0), k, group)
        ci, gi = _selected(index, gate, i, wanted, gated)
        cj, gj = _selected(index, gate, j, wanted, gated)
        a = _float(alpha)
        w = tl.load(weight + p, mask=wanted, other=0.0).to(tl.float32)
        c = tl.load(bias + p, mask=wanted, other=0.0).to(tl.float32)
        for start in range(part * block_n, size, parts * block_n):
            n = _along(start + lane, cols)
            live = (n < size) & wanted
            zi = tl.load(_at(x, ci, n, channels, size, cols, far), mask=live, other=0.0).to(tl.float32) * gi
            zj = tl.load(_at(x, cj, n, channels, size, cols, far), mask=live, other=0.0).to(tl.float32) * gj
            d = _dysoft_of_product(zi, zj, a, w, c).to(y.dtype.element_ty)
            tl.store(_at(y, channels + p, n, width, size, cols, far), d, mask=live)


@triton.jit
def expand_tiled_fwd_kernel(
    x, index, gate, alpha, weight, bias, y, channels, k, positions,
    gated: tl.constexpr, group: tl.constexpr, cols: tl.constexpr, far: tl.constexpr, unit: tl.constexpr,
    block_s: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """Tiled: a program for each block of positions of a sample; block after block of selected channels."""
    size = positions if cols else _aligned(positions, unit)
    width = channels + _products(k, group)
    blocks = tl.cdiv(size, block_n)
    b = tl.program_id(0) // blocks
    x, y = _sample(x, b, tl.cast(channels, tl.int64) * size), _sample(y, b, tl.cast(width, tl.int64) * size)
    index, gate = _sample(index, b, k), _sample(gate, b, k)
    n = _along(tl.program_id(0) % blocks * block_n + tl.arange(0, block_n), cols)
    slot = _across(tl.arange(0, block_s), cols)
    for start in range(0, channels, block_s):
        c = start + slot
        live = (n < size) & (c < channels)
        copied = tl.load(_at(x, c, n, channels, size, cols, far), mask=live)
        tl.store(_at(y, c, n, width, size, cols, far), copied, mask=live)
    a = _float(alpha)
    for start in range(0, k, block_s):
        j = start + slot
        cj, gj = _selected(index, gate, j, j < k, gated)
        zj = tl.load(_at(x, cj, n, channels, size, cols, far), mask=(n < size) & (j < k), other=0.0)
        zj = zj.to(tl.float32) * gj
        for i in range(tl.minimum(start + block_s, k) - 1):
            ci, gi = _selected(index, gate, i, True, gated)
            zi = tl.load(_at(x, ci, n, channels, size, cols, far), mask=n < size, other=0.0).to(tl.float32) * gi
            wanted = (j > i) & (j < k)
            p = _number(i, j, k, group)
            w = tl.load(weight + p, mask=wanted, other=0.0).to(tl.float32)
            d = _dysoft_of_product(zi, zj, a, w, tl.load(bias + p, mask=wanted, other=0.0).to(tl.float32))
            place = _at(y, channels + p, n, width, size, cols, far)
            tl.store(place, d.to(y.dtype.element_ty), mask=(n < size) & wanted)


@triton.jit
def _row_of_y(row, weight, bias, channels, k, group: tl.constexpr, width):
    """Of row `row` of some samples of y: its sample, channel, whether that is a product, of which slots, and what
    scales and shifts it."""
    b = row // width
    c = row - b * width
    product = c >= channels
    p = tl.where(product, c - channels, 0)
    i, j = _pair_of(p, k, group)
    return b, c, product, i, j, _float(weight + p), _float(bias + p)


@triton.jit
def expand_flat_fwd_kernel(
    x, index, gate, alpha, weight, bias, y, batch, channels, k, positions, parts,
    gated: tl.constexpr, group: tl.constexpr, period: tl.constexpr, ragged: tl.constexpr, vector: tl.constexpr,
    block: tl.constexpr,
):  # fmt: skip
    """Flat: a program for each block of vectors of y, at the same place in every `period` samples, which are a
    whole number of vectors. A row is no shorter than a vector, so that one has elements of one row or of two."""
    width = channels + _products(k, group)
    stretch = _aligned(period * width * positions, vector)
    part = tl.program_id(0) % parts
    place = (tl.program_id(0) // parts * block + tl.arange(0, block)[:, None]) * vector
    place = tl.minimum(place, stretch - vector)  # the last vector more than once: nothing needs a mask
    lane = tl.arange(0, vector)[None, :]
    row = place // positions
    n = place - row * positions + lane
    first = n < positions
    n = tl.where(first, n, n - positions)
    b1, c1, product1, i1, j1, w1, v1 = _row_of_y(row, weight, bias, channels, k, group, width)
    row = tl.minimum(row + 1, period * width - 1)
    b2, c2, product2, i2, j2, w2, v2 = _row_of_y(row, weight, bias, channels, k, group, width)
    product = tl.where(first, product1, product2)
    w, v = tl.where(first, w1, w2), tl.where(first, v1, v2)
    a = _float(alpha)
    for turn in range(part, tl.cdiv(batch, period), parts):
        b = turn * period
        mine, gates = _sample(index, b, k), _sample(gate, b, k)
        here = _sample(x, b, tl.cast(channels, tl.int64) * positions)
        s1, s2 = b1, b2
        if ragged:
            s1, s2 = tl.minimum(b1, batch - 1 - b), tl.minimum(b2, batch - 1 - b)
        ci1, gi1 = _selected(mine, gates, s1 * k + i1, True, gated)
        cj1, gj1 = _selected(mine, gates, s1 * k + j1, True, gated)
        ci2, gi2 = _selected(mine, gates, s2 * k + i2, True, gated)
        cj2, gj2 = _selected(mine, gates, s2 * k + j2, True, gated)
        ci1, ci2 = tl.where(product1, ci1, c1), tl.where(product2, ci2, c2)
        ni = tl.where(first, (s1 * channels + ci1) * positions, (s2 * channels + ci2) * positions) + n
        nj = tl.where(first, (s1 * channels + cj1) * positions, (s2 * channels + cj2) * positions) + n
        zi, zj = _float(here + ni), _float(here + nj)
        plain = zi
        if gated:
            zi, zj = zi * tl.where(first, gi1, gi2), zj * tl.where(first, gj1, gj2)
        d = tl.where(product, _dysoft_of_product(zi, zj, a, w, v), plain).to(y.dtype.element_ty)
        if ragged:
            live = b + tl.where(first, b1, b2) < batch
            tl.store(_sample(y, turn, stretch) + place + lane, d, mask=live)
        else:
            tl.store(_sample(y, turn, stretch) + place + lane, d)
