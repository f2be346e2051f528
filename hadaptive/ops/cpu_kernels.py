"""Fused CPU kernels, compiled by Numba on their first use and cached.

The forward pass reads the mixed input once and writes the concatenated output once; the backward pass recomputes
everything from the input, the indices and the gates. Numba's own parallel loops abort the process when two Python
threads enter them, and so the kernels here are sequential, release the GIL, and are spread over the batch by a
small thread pool of ours. Partial sums are kept per chunk of samples, so that results do not depend on the number
of threads.

The first call compiles for some seconds (forward and backward, per memory layout); later processes read the
compiled code from Numba's cache beside this file or, where that is read-only, in the user's cache folder.

Source: arXiv 2505.22226, section 3; the recomputing backward pass is ours.
"""

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from hadaptive.ops.layout import channels_contiguous, empty_map

MAX_CHUNKS = 32  # of the batch; fixed, so that sums are the same for any number of threads
TILE_FLOATS = 65_536  # of a channels_last kernel's scratch: 256 KiB stay in the second-level cache
WORK_PER_THREAD = 65_536  # multiplications below which a second thread costs more than it brings

# Sums may be reordered and fused; NaN and infinity keep their meaning. Factors may not be reordered:
# (w * u) / (1 + |u|) overflows where w * (u / (1 + |u|)) does not. A flag holds for one function only.
_SUMS = {"reassoc", "contract", "nsz"}
_TERMS = {"contract"}
_BIG = np.float32(3.4028234663852886e38)
_ONE = np.float32(1)
_ZERO = np.float32(0)


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


@_compiled(_SUMS)
def expand_rows_fwd_kernel(x, index, gate, alpha, weight, bias, y, first, last):
    """Samples first to last of an expansion with the positions contiguous: x (B, C, N), y (B, C + P, N)."""
    channels, positions = x.shape[1], x.shape[2]
    k = index.shape[1]
    z = np.empty((k, positions), np.float32)
    for b in range(first, last):
        y[b, :channels] = x[b]
        for s in range(k):
            scale, row = gate[b, s], x[b, index[b, s]]
            for n in range(positions):
                z[s, n] = scale * row[n]
        p = 0
        for i in range(k - 1):
            zi = z[i]
            for j in range(i + 1, k):
                zj, out, w, c = z[j], y[b, channels + p], weight[p], bias[p]
                for n in range(positions):
                    out[n] = _dysoft_of_product(zi[n], zj[n], alpha, w, c)
                p += 1


@_compiled(_SUMS)
def expand_cols_fwd_kernel(x, index, gate, alpha, weight, bias, y, tile, first, last):
    """The same with the channels contiguous: x (B, N, C), y (B, N, C + P). `tile` positions are done at a time."""
    positions, channels = x.shape[1], x.shape[2]
    k = index.shape[1]
    pairs = k * (k - 1) // 2
    z = np.empty((k, tile), np.float32)
    d = np.empty((pairs, tile), np.float32)
    for b in range(first, last):
        for start in range(0, positions, tile):
            size = min(tile, positions - start)
            for n in range(size):
                for s in range(k):
                    z[s, n] = gate[b, s] * x[b, start + n, index[b, s]]
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
                source, target = x[b, start + n], y[b, start + n]
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


@_compiled(_SUMS)
def expand_rows_bwd_kernel(
    grad, x, index, gate, alpha, weight, grad_x, grad_gate, sums_alpha, sums_weight, sums_bias, first, last
):
    """Gradients of the chunks first to last of the batch, positions contiguous; a row of sums for each chunk."""
    channels, positions = x.shape[1], x.shape[2]
    k = index.shape[1]
    z = np.empty((k, positions), np.float32)
    gz = np.empty((k, positions), np.float32)
    chunks = len(sums_alpha)
    for chunk in range(first, last):
        for b in range(len(x) * chunk // chunks, len(x) * (chunk + 1) // chunks):
            grad_x[b] = grad[b, :channels]
            for s in range(k):
                scale, row = gate[b, s], x[b, index[b, s]]
                for n in range(positions):
                    z[s, n] = scale * row[n]
                    gz[s, n] = _ZERO
            p = 0
            for i in range(k - 1):
                for j in range(i + 1, k):
                    for_weight, for_bias, for_alpha = _pair_bwd(
                        z[i], z[j], grad[b, channels + p], gz[i], gz[j], alpha, weight[p], positions
                    )
                    sums_weight[chunk, p] += for_weight
                    sums_bias[chunk, p] += for_bias
                    sums_alpha[chunk] += for_alpha
                    p += 1
            for s in range(k):
                scale, row, out = gate[b, s], x[b, index[b, s]], grad_x[b, index[b, s]]
                for_gate = _ZERO
                for n in range(positions):
                    for_gate += gz[s, n] * row[n]
                    out[n] += scale * gz[s, n]
                grad_gate[b, s] = for_gate


@_compiled(_SUMS)
def expand_cols_bwd_kernel(
    grad,
    x,
    index,
    gate,
    alpha,
    weight,
    grad_x,
    grad_gate,
    sums_alpha,
    sums_weight,
    sums_bias,
    tile,
    first,
    last,
):
    """The same with the channels contiguous."""
    positions, channels = x.shape[1], x.shape[2]
    k = index.shape[1]
    pairs = k * (k - 1) // 2
    z = np.empty((k, tile), np.float32)
    gz = np.empty((k, tile), np.float32)
    g = np.empty((pairs, tile), np.float32)
    chunks = len(sums_alpha)
    for chunk in range(first, last):
        for b in range(len(x) * chunk // chunks, len(x) * (chunk + 1) // chunks):
            for s in range(k):
                grad_gate[b, s] = _ZERO
            for start in range(0, positions, tile):
                size = min(tile, positions - start)
                for n in range(size):
                    source, target = grad[b, start + n], grad_x[b, start + n]
                    for c in range(channels):
                        target[c] = source[c]
                    for p in range(pairs):
                        g[p, n] = source[channels + p]
                    for s in range(k):
                        z[s, n] = gate[b, s] * x[b, start + n, index[b, s]]
                        gz[s, n] = _ZERO
                p = 0
                for i in range(k - 1):
                    for j in range(i + 1, k):
                        for_weight, for_bias, for_alpha = _pair_bwd(
                            z[i], z[j], g[p], gz[i], gz[j], alpha, weight[p], size
                        )
                        sums_weight[chunk, p] += for_weight
                        sums_bias[chunk, p] += for_bias
                        sums_alpha[chunk] += for_alpha
                        p += 1
                for n in range(size):
                    for s in range(k):
                        c = index[b, s]
                        grad_gate[b, s] += gz[s, n] * x[b, start + n, c]
                        grad_x[b, start + n, c] += gate[b, s] * gz[s, n]


class _Pool:
    """Threads for the kernels, made when first needed, and anew in a forked process, which inherits none."""

    def __init__(self) -> None:
        self.executor: ThreadPoolExecutor | None = None
        self.size = 0
        self.process = -1

    def run(self, work: Callable[[int, int], None], items: int, threads: int) -> None:
        """Call work(first, last) on consecutive shares of the items, one of them in this thread."""
        shares = min(threads, items)
        if shares <= 1:
            work(0, items)
            return
        if self.executor is None or self.process != os.getpid() or self.size < shares - 1:
            self.executor = ThreadPoolExecutor(shares - 1, thread_name_prefix="hadaptive")
            self.size, self.process = shares - 1, os.getpid()
        bounds = [items * share // shares for share in range(shares + 1)]
        others = [self.executor.submit(work, bounds[i], bounds[i + 1]) for i in range(1, shares)]
        work(bounds[0], bounds[1])
        for other in others:
            other.result()


_POOL = _Pool()


def _threads(products: int) -> int:
    return max(1, min(torch.get_num_threads(), products // WORK_PER_THREAD))


def _flat(x: Tensor, cols: bool) -> np.ndarray:
    """x as an array (B, C, N), or (B, N, C) for `cols`, without a copy if it has that layout; float32."""
    x = x.detach().float()
    batch, channels = x.shape[0], x.shape[1]
    positions = math.prod(x.shape[2:])
    if cols:
        return x.movedim(1, -1).contiguous().view(batch, positions, channels).numpy()
    return x.contiguous().view(batch, channels, positions).numpy()


def _gates(index: Tensor, gate: Tensor | None) -> np.ndarray:
    if gate is None:
        return np.ones(index.shape, np.float32)
    return gate.detach().float().contiguous().numpy()


def _vector(x: Tensor) -> np.ndarray:
    return x.detach().float().contiguous().numpy()


def _tile(pairs: int, positions: int) -> int:
    tile = max(16, TILE_FLOATS // max(pairs, 1) // 16 * 16)
    return max(1, min(positions, tile))


def check_index(index: Tensor, channels: int) -> None:
    """Refuse what would read beyond the input.

    Raises:
        IndexError: an entry is negative or not below `channels`.
    """
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < channels:
        raise IndexError(f"index holds channels outside 0 to {channels - 1}")


def expand_forward(
    x: Tensor, index: Tensor, gate: Tensor | None, alpha: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """Forward of :func:`hadaptive.ops.expand` for CPU tensors in float32, bfloat16 or float16.

    Raises:
        IndexError: an entry of `index` is no channel of x.
    """
    check_index(index, x.shape[1])
    cols, pairs = channels_contiguous(x), len(weight)
    wide = empty_map(x if x.dtype == torch.float32 else x.float(), x.shape[1] + pairs)
    if wide.numel():
        source, target = _flat(x, cols), _flat(wide, cols)
        arguments = (
            source,
            index.contiguous().numpy(),
            _gates(index, gate),
            np.float32(alpha.item()),
            _vector(weight),
            _vector(bias),
            target,
        )
        positions = source.shape[1] if cols else source.shape[2]

        def work(first: int, last: int) -> None:
            if cols:
                expand_cols_fwd_kernel(*arguments, _tile(pairs, positions), first, last)
            else:
                expand_rows_fwd_kernel(*arguments, first, last)

        _POOL.run(work, len(source), _threads(len(source) * pairs * positions))
    return wide.to(x.dtype)


def expand_backward(
    grad: Tensor, x: Tensor, index: Tensor, gate: Tensor | None, alpha: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (B, C, S...), gate (B, k), alpha (1,), weight (P,) and bias (P,), each in its tensor's dtype.

    The gate's gradient is float32 where gate is None.
    """
    cols, pairs, batch = channels_contiguous(x), len(weight), x.shape[0]
    chunks = max(1, min(batch, MAX_CHUNKS))
    grad_x = empty_map(x if x.dtype == torch.float32 else x.float(), x.shape[1])
    grad_gate = np.zeros(index.shape, np.float32)
    sums_alpha = np.zeros(chunks, np.float32)
    sums_weight, sums_bias = np.zeros((chunks, pairs), np.float32), np.zeros((chunks, pairs), np.float32)
    if x.numel():
        source = _flat(x, cols)
        positions = source.shape[1] if cols else source.shape[2]
        tile = (_tile(pairs, positions),) if cols else ()
        arguments = (
            _flat(grad, cols),
            source,
            index.contiguous().numpy(),
            _gates(index, gate),
            np.float32(alpha.item()),
            _vector(weight),
            _flat(grad_x, cols),
            grad_gate,
            sums_alpha,
            sums_weight,
            sums_bias,
            *tile,
        )
        kernel = expand_cols_bwd_kernel if cols else expand_rows_bwd_kernel

        def work(first: int, last: int) -> None:
            kernel(*arguments, first, last)

        _POOL.run(work, chunks, _threads(batch * pairs * positions))
    of_gate = torch.from_numpy(grad_gate)
    return (
        grad_x.to(x.dtype),
        of_gate if gate is None else of_gate.to(gate.dtype),
        torch.from_numpy(sums_alpha.sum(dtype=np.float32, keepdims=True)).to(alpha.dtype).view(alpha.shape),
        torch.from_numpy(sums_weight.sum(0)).to(weight.dtype),
        torch.from_numpy(sums_bias.sum(0)).to(weight.dtype),
    )
