"""Fused GPU kernels of the expansion, written in Triton (CUDA, and ROCm as far as Triton does).

Four schedules walk the triangle of pairs (i, j), i < j:

* ``native``: a program for each i, with a loop over j whose length depends on i;
* ``direct``: a program for each block of pairs, which finds (i, j) from their number (Direct-Indexing);
* ``balanced``: a program for each channel c, which owns (i, c) where c - i is even and (c, j) where j - c is odd,
  so that every program has k/2 pairs, give or take one (Parity-Balanced);
* ``tiled``: a program for each tile of positions, which holds the k planes in registers and writes all products.

Backward, ``tiled`` reads each output gradient once. The others have a program for each selected channel, which
visits all its partners; a schedule decides which program adds up a pair's share of weight, bias and alpha. Sums go
through partial buffers, without atomics: results are the same in every run.

Source: arXiv 2505.22226, section 5, for native, Direct-Indexing and Parity-Balanced; the rest is ours.
"""

# The type checker takes a kernel for the function it is made of.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAssignmentType=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from hadaptive.ops.layout import channels_contiguous, dense, empty_map

SCHEDULES = ("native", "direct", "balanced", "tiled")
TILED_UP_TO = 64  # selected channels: more planes than that do not fit into the registers


@triton.jit
def _clamp(v):
    """Infinity to the largest finite number; NaN passes."""
    v = tl.where(v > 3.4028234663852886e38, 3.4028234663852886e38, v)
    return tl.where(v < -3.4028234663852886e38, -3.4028234663852886e38, v)


@triton.jit
def _dysoft_of_product(a, c, alpha, weight, bias):
    u = _clamp(alpha * _clamp(a * c))
    return weight * (u / (1.0 + tl.abs(u))) + bias


@triton.jit
def _derivatives(a, c, g, alpha, weight):
    """Terms of the gradients of weight and alpha, and the gradient of the product."""
    product = _clamp(a * c)
    u = _clamp(alpha * product)
    r = 1.0 / (1.0 + tl.abs(u))
    t = weight * (g * r * r)
    return g * (u * r), t * product, t * alpha


@triton.jit
def _plane(x, index, gate, b, s, k, n, live, xb, xc, xn):
    """Selected channel s of sample b at positions n, float32: as it is, and gated."""
    c = tl.load(index + b * k + s, mask=s < k, other=0)
    scale = tl.load(gate + b * k + s, mask=s < k, other=0.0)
    plain = tl.load(x + b * xb + c * xc + n * xn, mask=live, other=0.0).to(tl.float32)
    return plain, plain * scale


@triton.jit
def _first_pair(i, k):
    """Number of the pair (i, i + 1)."""
    return i * (2 * k - i - 1) // 2


@triton.jit
def _pair_of(p, k):
    """Direct-Indexing: (i, j) of pair p. The root is a float32's, so it is put right by one where it must."""
    m = 2 * k - 1
    i = ((m - tl.sqrt((m * m - 8 * p).to(tl.float32))) * 0.5).to(tl.int32)
    i = tl.where(_first_pair(i, k) > p, i - 1, i)
    i = tl.where(_first_pair(i + 1, k) <= p, i + 1, i)
    return i, i + 1 + p - _first_pair(i, k)


@triton.jit
def _program(parts, block_n: tl.constexpr, positions):
    """This program's sample, part and positions; 64 bits, as every factor of a stride must be."""
    blocks = tl.cdiv(positions, block_n)
    pid = tl.program_id(0)
    n = (pid % blocks) * block_n + tl.arange(0, block_n)
    b, part = pid // blocks // parts, pid // blocks % parts
    return b.to(tl.int64), part.to(tl.int64), n.to(tl.int64), n < positions


@triton.jit
def expand_channel_fwd_kernel(
    x, index, gate, alpha, weight, bias, y, channels, k, positions, xb, xc, xn, yb, yc, yn,
    balanced: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """Native and Parity-Balanced: a program for each selected channel s of a sample, and block of positions."""
    b, s, n, live = _program(k, block_n, positions)
    for turn in range(tl.cdiv(channels - s, k)):
        c = s + turn * k
        tl.store(y + b * yb + c * yc + n * yn, tl.load(x + b * xb + c * xc + n * xn, mask=live), mask=live)
    a = tl.load(alpha)
    zs = _plane(x, index, gate, b, s, k, n, live, xb, xc, xn)[1]
    if balanced:
        for turn in range(s // 2):
            i = s % 2 + 2 * turn
            p = _first_pair(i, k) + s - i - 1
            zi = _plane(x, index, gate, b, i, k, n, live, xb, xc, xn)[1]
            d = _dysoft_of_product(zi, zs, a, tl.load(weight + p), tl.load(bias + p))
            tl.store(y + b * yb + (channels + p) * yc + n * yn, d.to(y.dtype.element_ty), mask=live)
    step: tl.constexpr = 2 if balanced else 1
    for turn in range(tl.cdiv(k - s - 1, step)):
        j = s + 1 + turn * step
        p = _first_pair(s, k) + j - s - 1
        zj = _plane(x, index, gate, b, j, k, n, live, xb, xc, xn)[1]
        d = _dysoft_of_product(zs, zj, a, tl.load(weight + p), tl.load(bias + p))
        tl.store(y + b * yb + (channels + p) * yc + n * yn, d.to(y.dtype.element_ty), mask=live)


@triton.jit
def expand_direct_fwd_kernel(
    x, index, gate, alpha, weight, bias, y, channels, k, positions, xb, xc, xn, yb, yc, yn,
    block_p: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """Direct-Indexing: a program for each block of output channels of a sample, and block of positions."""
    pairs = k * (k - 1) // 2
    b, part, n, live = _program(tl.cdiv(channels + pairs, block_p), block_n, positions)
    n, live = n[None, :], live[None, :]
    row = (part * block_p + tl.arange(0, block_p))[:, None]
    p = row - channels
    product = (p >= 0) & (p < pairs)
    i, j = _pair_of(tl.where(product, p, 0), k)
    zi = _plane(x, index, gate, b, i, k, n, live & product, xb, xc, xn)[1]
    zj = _plane(x, index, gate, b, j, k, n, live & product, xb, xc, xn)[1]
    w = tl.load(weight + p, mask=product, other=0.0)
    d = _dysoft_of_product(zi, zj, tl.load(alpha), w, tl.load(bias + p, mask=product, other=0.0))
    copied = tl.load(x + b * xb + row * xc + n * xn, mask=live & (p < 0), other=0.0)
    value = tl.where(p < 0, copied, d.to(y.dtype.element_ty))
    tl.store(y + b * yb + row * yc + n * yn, value, mask=live & (p < pairs))


@triton.jit
def expand_tiled_fwd_kernel(
    x, index, gate, alpha, weight, bias, y, channels, k, positions, xb, xc, xn, yb, yc, yn,
    block_k: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """Tiled: a program for each block of positions of a sample."""
    b, _, row, live_row = _program(1, block_n, positions)
    n, live = row[None, :], live_row[None, :]
    slot = tl.arange(0, block_k).to(tl.int64)[:, None]
    for start in range(0, channels, block_k):
        c = start + slot
        inside = live & (c < channels)
        tl.store(y + b * yb + c * yc + n * yn, tl.load(x + b * xb + c * xc + n * xn, mask=inside), mask=inside)
    a = tl.load(alpha)
    z = _plane(x, index, gate, b, slot, k, n, live & (slot < k), xb, xc, xn)[1]
    for turn in range(k - 1):
        i = tl.cast(turn, tl.int64)
        zi = _plane(x, index, gate, b, i, k, row, live_row, xb, xc, xn)[1][None, :]
        p = _first_pair(i, k) + slot - i - 1
        wanted = (slot > i) & (slot < k)
        w, c = tl.load(weight + p, mask=wanted, other=0.0), tl.load(bias + p, mask=wanted, other=0.0)
        d = _dysoft_of_product(zi, z, a, w, c)
        tl.store(y + b * yb + (channels + p) * yc + n * yn, d.to(y.dtype.element_ty), mask=live & wanted)


@triton.jit
def expand_channel_bwd_kernel(
    grad, x, index, gate, alpha, weight, gz, of_gate, of_alpha, of_weight, of_bias,
    channels, k, positions, xb, xc, xn, yb, yc, yn, zb, zc, zn,
    balanced: tl.constexpr, block_t: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """A program for each selected channel s of a sample, and block of positions: all partners t of s."""
    b, s, row, live_row = _program(k, block_n, positions)
    n, live = row[None, :], live_row[None, :]
    pairs = k * (k - 1) // 2
    blocks = tl.cdiv(positions, block_n)
    place = b * blocks + tl.program_id(0) % blocks  # of this program's row in the partial sums
    a = tl.load(alpha)
    plain, zs = _plane(x, index, gate, b, s, k, row, live_row, xb, xc, xn)
    sum_alpha = tl.zeros((1,), tl.float32)
    sum_z = tl.zeros((block_n,), tl.float32)
    for start in range(0, k, block_t):
        t = start + tl.arange(0, block_t).to(tl.int64)[:, None]
        wanted = (t < k) & (t != s)
        i, j = tl.minimum(s, t), tl.maximum(s, t)
        p = tl.where(wanted, _first_pair(i, k) + j - i - 1, 0)
        zt = _plane(x, index, gate, b, t, k, n, live & (t < k), xb, xc, xn)[1]
        g = tl.load(grad + b * yb + (channels + p) * yc + n * yn, mask=live & wanted, other=0.0).to(tl.float32)
        w = tl.load(weight + p, mask=wanted, other=0.0)
        for_weight, for_alpha, for_product = _derivatives(zs[None, :], zt, g, a, w)
        sum_z += tl.sum(tl.where(live & wanted, for_product * zt, 0.0), axis=0)
        if balanced:
            own = wanted & (((t < s) & ((s - t) % 2 == 0)) | ((t > s) & ((t - s) % 2 == 1)))
        else:
            own = wanted & (t > s)
        for_weight = tl.sum(tl.where(live & own, for_weight, 0.0), axis=1)[:, None]
        tl.store(of_weight + place * pairs + p, for_weight, mask=own)
        tl.store(of_bias + place * pairs + p, tl.sum(g, axis=1)[:, None], mask=own)
        sum_alpha += tl.sum(tl.sum(tl.where(live & own, for_alpha, 0.0), axis=1), axis=0)
    tl.store(of_alpha + place * k + s + tl.zeros((1,), tl.int32), sum_alpha)
    tl.store(of_gate + place * k + s, tl.sum(tl.where(live_row, sum_z * plain, 0.0), axis=0))
    tl.store(gz + b * zb + s * zc + row * zn, sum_z, mask=live_row)


@triton.jit
def expand_tiled_bwd_kernel(
    grad, x, index, gate, alpha, weight, gz, of_gate, of_alpha, of_weight, of_bias,
    channels, k, positions, xb, xc, xn, yb, yc, yn, zb, zc, zn,
    block_k: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """A program for each block of positions of a sample; every output gradient is read once."""
    b, _, row, live_row = _program(1, block_n, positions)
    n, live = row[None, :], live_row[None, :]
    pairs = k * (k - 1) // 2
    place = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, block_k).to(tl.int64)[:, None]
    a = tl.load(alpha)
    plain, z = _plane(x, index, gate, b, slot, k, n, live & (slot < k), xb, xc, xn)
    sum_alpha = tl.zeros((1,), tl.float32)
    sum_z = tl.zeros((block_k, block_n), tl.float32)
    for turn in range(k - 1):
        i = tl.cast(turn, tl.int64)
        zi = _plane(x, index, gate, b, i, k, row, live_row, xb, xc, xn)[1][None, :]
        p = _first_pair(i, k) + slot - i - 1
        wanted = (slot > i) & (slot < k)
        here = live & wanted
        g = tl.load(grad + b * yb + (channels + p) * yc + n * yn, mask=here, other=0.0).to(tl.float32)
        w = tl.load(weight + p, mask=wanted, other=0.0)
        for_weight, for_alpha, for_product = _derivatives(zi, z, g, a, w)
        for_weight = tl.sum(tl.where(here, for_weight, 0.0), axis=1)[:, None]
        tl.store(of_weight + place * pairs + p, for_weight, mask=wanted)
        tl.store(of_bias + place * pairs + p, tl.sum(g, axis=1)[:, None], mask=wanted)
        sum_alpha += tl.sum(tl.sum(tl.where(here, for_alpha, 0.0), axis=1), axis=0)
        sum_z += tl.where(here, for_product * zi, 0.0)
        of_i = tl.sum(tl.where(here, for_product * z, 0.0), axis=0)[None, :]
        sum_z += tl.where(slot == i, of_i, 0.0)
    tl.store(of_alpha + place + tl.zeros((1,), tl.int32), sum_alpha)
    here = live & (slot < k)
    tl.store(
        of_gate + place * k + slot, tl.sum(tl.where(here, sum_z * plain, 0.0), axis=1)[:, None], mask=slot < k
    )
    tl.store(gz + b * zb + slot * zc + n * zn, sum_z, mask=here)


@triton.jit
def expand_input_bwd_kernel(
    grad, gz, index, gate, grad_x, channels, k, positions, yb, yc, yn, zb, zc, zn, xb, xc, xn,
    block_c: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """grad_x: what came through the concatenation, and what came through the selection."""
    b, part, row, live_row = _program(tl.cdiv(channels, block_c), block_n, positions)
    n = row[None, :]
    c = (part * block_c + tl.arange(0, block_c))[:, None]
    inside = live_row[None, :] & (c < channels)
    total = tl.load(grad + b * yb + c * yc + n * yn, mask=inside, other=0.0).to(tl.float32)
    for s in range(k):
        chosen = tl.load(index + b * k + s)
        if chosen // block_c == part:
            scale = tl.load(gate + b * k + s)
            through = tl.load(gz + b * zb + tl.cast(s, tl.int64) * zc + row * zn, mask=live_row, other=0.0) * scale
            total += tl.where(c == chosen, through[None, :], 0.0)
    tl.store(grad_x + b * xb + c * xc + n * xn, total.to(grad_x.dtype.element_ty), mask=inside)


def _strides(x: Tensor) -> tuple[int, int, int]:
    """Of samples, channels and positions of a map in one of the two layouts."""
    channels, positions = x.shape[1], x[0, 0].numel()
    cols = channels_contiguous(x)
    return channels * positions, 1 if cols else positions, channels if cols else 1


def _schedule(name: str | None, k: int, cols: bool) -> str:
    if name is None:
        return "tiled" if k <= TILED_UP_TO and not cols else "direct"
    if name not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}; got {name!r}")
    return name


def _block_n(positions: int, cols: bool, most: int) -> int:
    return min(triton.next_power_of_2(positions), 16 if cols else most)


def _operands(x: Tensor, index: Tensor, gate: Tensor | None, *vectors: Tensor) -> tuple[Tensor, ...]:
    gates = x.new_ones(index.shape, dtype=torch.float32) if gate is None else gate.detach().float().contiguous()
    return (index.contiguous(), gates, *(v.detach().float().contiguous() for v in vectors))


def expand_forward(
    x: Tensor,
    index: Tensor,
    gate: Tensor | None,
    alpha: Tensor,
    weight: Tensor,
    bias: Tensor,
    schedule: str | None = None,
) -> Tensor:
    """Forward of :func:`hadaptive.ops.cross_hadamard_expand` for GPU tensors in float32, bfloat16 or float16.

    Args:
        schedule: one of ``SCHEDULES``; None takes what measured best.

    Raises:
        ValueError: there is no such schedule.
    """
    cols, channels, k, pairs = channels_contiguous(x), x.shape[1], index.shape[1], len(weight)
    schedule = _schedule(schedule, k, cols)
    x = dense(x, cols)
    y = empty_map(x, channels + pairs)
    if not y.numel():
        return y
    batch, positions = x.shape[0], x[0, 0].numel()
    arguments = (x, *_operands(x, index, gate, alpha, weight, bias), y, channels, k, positions)
    arguments += (*_strides(x), *_strides(y))
    if schedule == "tiled":
        block_k = triton.next_power_of_2(k)
        block_n = _block_n(positions, cols, max(16, 4096 // block_k))
        grid = (batch * triton.cdiv(positions, block_n),)
        expand_tiled_fwd_kernel[grid](*arguments, block_k, block_n)
    elif schedule == "direct":
        block_p, block_n = (128 if cols else 16), _block_n(positions, cols, 128)
        grid = (batch * triton.cdiv(channels + pairs, block_p) * triton.cdiv(positions, block_n),)
        expand_direct_fwd_kernel[grid](*arguments, block_p, block_n)
    else:
        block_n = _block_n(positions, False, 256)
        grid = (batch * k * triton.cdiv(positions, block_n),)
        expand_channel_fwd_kernel[grid](*arguments, schedule == "balanced", block_n)
    return y


def expand_backward(
    grad: Tensor,
    x: Tensor,
    index: Tensor,
    gate: Tensor | None,
    alpha: Tensor,
    weight: Tensor,
    schedule: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (B, C, S...), gate (B, k), alpha (1,), weight (P,) and bias (P,), each in its tensor's dtype.

    The gate's gradient is float32 where gate is None.
    """
    cols, channels, k, pairs = channels_contiguous(x), x.shape[1], index.shape[1], len(weight)
    schedule = _schedule("tiled" if schedule is None and k <= TILED_UP_TO else schedule, k, cols)
    x, grad = dense(x, cols), dense(grad, cols)
    grad_x, gz = empty_map(x, channels), empty_map(x, k, torch.float32)
    batch, positions = x.shape[0], x.numel() // max(1, x.shape[0] * channels)
    gate_dtype = torch.float32 if gate is None else gate.dtype
    if not x.numel():
        of_gate = torch.zeros_like(index, dtype=gate_dtype)
        return grad_x, of_gate, torch.zeros_like(alpha), torch.zeros_like(weight), torch.zeros_like(weight)
    block_k = triton.next_power_of_2(k)
    if schedule == "tiled":
        block_n = _block_n(positions, cols, max(16, 2048 // block_k))
    else:
        block_n = _block_n(positions, cols and schedule == "direct", 128)
    blocks = batch * triton.cdiv(positions, block_n)
    of_weight, of_bias = gz.new_empty(blocks, pairs), gz.new_empty(blocks, pairs)
    of_gate = gz.new_empty(blocks, k)
    of_alpha = gz.new_empty(blocks) if schedule == "tiled" else gz.new_empty(blocks, k)
    index, gates, scale, factors = _operands(x, index, gate, alpha, weight)
    sums = (gz, of_gate, of_alpha, of_weight, of_bias)
    strides = (*_strides(x), *_strides(grad), *_strides(gz))
    arguments = (grad, x, index, gates, scale, factors, *sums, channels, k, positions, *strides)
    if schedule == "tiled":
        expand_tiled_bwd_kernel[(blocks,)](*arguments, block_k, block_n)
    else:
        block_t = 16 if schedule == "direct" else 1
        expand_channel_bwd_kernel[(blocks * k,)](*arguments, schedule == "balanced", block_t, block_n)
    block_c, block_n = (64 if cols else 8), _block_n(positions, cols, 128)
    grid = (batch * triton.cdiv(channels, block_c) * triton.cdiv(positions, block_n),)
    strides = (*_strides(grad), *_strides(gz), *_strides(grad_x))
    expand_input_bwd_kernel[grid](
        grad, gz, index, gates, grad_x, channels, k, positions, *strides, block_c, block_n
    )
    return (
        grad_x,
        of_gate.view(batch, -1, k).sum(1).to(gate_dtype),
        of_alpha.sum().to(alpha.dtype).view(alpha.shape),
        of_weight.sum(0).to(weight.dtype),
        of_bias.sum(0).to(weight.dtype),
    )
