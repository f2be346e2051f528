"""Launches the Triton kernels on tensors: schedules, block sizes and grids.

What is launched is decided by pure functions of sizes and of the number of multiprocessors, so that it can be
tested and compiled where there is no GPU. Constants are by the static report of ``python -m benchmarks kernels``.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from hadaptive.ops import triton_backward as backward
from hadaptive.ops import triton_kernels as forward
from hadaptive.ops.layout import channels_contiguous, dense, empty_map
from hadaptive.ops.pairs import num_pairs

SCHEDULES = ("native", "direct", "balanced", "tiled", "flat")
OF_BLOCKS = ("direct", "flat")  # those that multiply whole blocks of channels
PROGRAMS = 32  # of one warp on each multiprocessor: as many as it holds
WIDEST = 256  # positions of a program: eight for each lane, over which it spreads the work of finding its channels


@dataclass(frozen=True)
class Launch:
    """A kernel and all that it is given.

    Attributes:
        kernel: a function under ``triton.jit``.
        programs: how many, in one dimension.
        arguments: tensors and sizes, in the kernel's order.
        constants: compile-time arguments, by name.
        num_warps: of each program.
    """

    kernel: Any
    programs: int
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    num_warps: int = 1

    def run(self) -> None:
        self.kernel[(self.programs,)](*self.arguments, **self.constants, num_warps=self.num_warps)


@dataclass(frozen=True)
class Sizes:
    """An expansion in numbers, and the GPU's multiprocessors."""

    batch: int
    channels: int
    k: int
    positions: int
    cols: bool
    processors: int
    block: int = 1

    @property
    def pairs(self) -> int:
        return num_pairs(self.k, self.block)

    @property
    def unit(self) -> int:
        """The largest power of two, up to 8, that divides the rows of every map."""
        return math.gcd(8, self.channels, self.pairs) if self.cols else math.gcd(8, self.positions)

    @property
    def constants(self) -> dict[str, Any]:
        """Those that all kernels take."""
        far = (self.channels + self.pairs) * self.positions >= 2**31
        return {"group": self.block, "cols": self.cols, "far": far, "unit": self.unit}

    @property
    def period(self) -> int | None:
        """Samples of y that together are a whole number of vectors; None where the schedule ``flat`` cannot be."""
        size = (self.channels + self.pairs) * self.positions
        period = 8 // math.gcd(8, size)
        return None if self.cols or self.positions < 8 or period * size >= 2**31 else period

    def block_n(self, most: int) -> int:
        """Positions of a program, up to `most`."""
        return min(triton.next_power_of_2(self.positions), most)

    def rows(self, least: int, block_n: int) -> int:
        """Channels or pairs of a program: more than the least where positions are few, so that no lane idles."""
        return max(least, 256 // block_n)

    def parts(self, programs: int, most: int) -> int:
        """Into how many parts, `most` at most, the work of each program is cut, so that the GPU is full."""
        return max(1, min(most, triton.cdiv(PROGRAMS * self.processors, programs)))


def sizes(x: Tensor, index: Tensor, processors: int, block: int = 1) -> Sizes:
    """Of x (B, C, S...), not empty, and index (B, k), of which whole blocks are multiplied."""
    batch, channels = x.shape[:2]
    positions = x.numel() // (batch * channels)
    return Sizes(batch, channels, index.shape[1], positions, channels_contiguous(x), processors, block)


@cache
def _multiprocessors(number: int | None) -> int:
    return torch.cuda.get_device_properties(number).multi_processor_count


def multiprocessors(device: torch.device) -> int:
    """Of a GPU; Triton's interpreter is one."""
    return _multiprocessors(device.index) if device.type == "cuda" else 1


def default_schedule(s: Sizes) -> str:
    """The schedule of the fewest instructions, by the compiler's code; nothing has been timed.

    Where pairs that follow each other lie side by side, or positions are fewer than lanes, a block of pairs each.
    Elsewhere programs of equal work, which spread the finding of channels over all their positions. At 14 x 14 it
    takes 17 instructions a product; tiled takes 14, but computes a fifth to a half more than it stores. At 7 x 7,
    rows of odd size, it takes 33 of a lane, and a quarter of them idles; flat takes 37 and lets none idle.
    """
    if s.cols or s.positions < 32:
        return "direct"
    if s.block > 1:
        return "direct" if s.unit >= 4 or s.period is None else "flat"
    return "flat" if s.unit < 4 and s.batch >= 8 and s.period is not None else "balanced"


def _largest(s: Sizes, rows: int, blocks: list[tuple[int, int]]) -> tuple[int, int]:
    """The first of these blocks, of rows and positions, of which every multiprocessor gets one; else the last."""
    for block in blocks:
        if s.batch * triton.cdiv(rows, block[0]) * triton.cdiv(s.positions, block[1]) >= s.processors:
            return block
    return blocks[-1]


def _direct_block(s: Sizes) -> tuple[int, int]:
    rows = s.channels + s.pairs
    if s.cols:
        return _largest(s, rows, [(128, s.block_n(4)), (64, s.block_n(2))])
    return _largest(s, rows, [(s.rows(4, n), n) for n in (s.block_n(WIDEST), s.block_n(64))])


def _given(gate: Tensor | None, other: Tensor) -> Tensor:
    """What a kernel gets for a gate: any pointer will do for one that it is told not to read."""
    return other if gate is None else gate


def forward_launch(s: Sizes, schedule: str, tensors: tuple[Any, ...]) -> Launch:
    """What computes y.

    Args:
        s: the sizes.
        schedule: one of ``SCHEDULES``.
        tensors: x, index, gate, alpha, weight, bias and y, dense; gate may be None.
    """
    if s.block > 1 and schedule not in OF_BLOCKS:
        schedule = "direct"
    x, index, gate, alpha, weight, bias, y = tensors
    tensors = (x, index, _given(gate, alpha), alpha, weight, bias, y)
    common = {"gated": gate is not None}
    arguments = (*tensors, s.channels, s.k, s.positions)
    if schedule == "tiled":
        # Blocks of eight slots: of the products that a block computes for nothing, few are left.
        block_n = s.block_n(8 if s.cols else WIDEST // 2)
        constants = {**common, **s.constants, "block_s": 32 if s.cols else s.rows(8, block_n), "block_n": block_n}
        programs = s.batch * triton.cdiv(s.positions, block_n)
        return Launch(forward.expand_tiled_fwd_kernel, programs, arguments, constants)
    if schedule == "flat" and s.period is not None:
        vector = 16 // y.element_size()
        programs = triton.cdiv(min(s.batch, s.period) * (s.channels + s.pairs) * s.positions, 32 * vector)
        parts = s.parts(programs, triton.cdiv(s.batch, s.period))
        arguments = (*tensors, s.batch, s.channels, s.k, s.positions, parts)
        constants = {
            **common,
            "group": s.block,
            "period": s.period,
            "ragged": s.batch % s.period != 0,
            "vector": vector,
            "block": 32,
        }
        return Launch(forward.expand_flat_fwd_kernel, programs * parts, arguments, constants)
    if schedule in ("direct", "flat"):
        block_p, block_n = _direct_block(s)
        programs = s.batch * (triton.cdiv(s.channels, block_p) + triton.cdiv(s.pairs, block_p))
        parts = s.parts(programs, triton.cdiv(s.positions, block_n))
        constants = {**common, **s.constants, "block_p": block_p, "block_n": block_n}
        return Launch(forward.expand_direct_fwd_kernel, programs * parts, (*arguments, parts), constants)
    _, block_n = _largest(s, s.pairs, [(1, s.block_n(WIDEST)), (1, s.block_n(64))])
    programs = s.batch * s.k * triton.cdiv(s.positions, block_n)
    parts = s.parts(programs, max(1, s.k // 2))
    constants = {**common, **s.constants, "balanced": schedule == "balanced", "block_n": block_n}
    return Launch(forward.expand_channel_fwd_kernel, programs * parts, (*arguments, parts), constants)


def _slot_block(s: Sizes) -> tuple[int, int]:
    if s.cols:
        return _largest(s, s.k, [(16, s.block_n(most)) for most in (16, 8, 4, 2)])
    most = triton.next_power_of_2(s.k)
    blocks = [(min(s.rows(4, n), most), n) for n in (s.block_n(WIDEST // 2), s.block_n(64))]
    return _largest(s, s.k, [*blocks, (2, s.block_n(32)), (1, s.block_n(32))])


def _input_block(s: Sizes) -> tuple[int, int]:
    if s.cols:
        return _largest(s, s.channels, [(64, s.block_n(8)), (64, s.block_n(2)), (32, 1)])
    blocks = [(s.rows(4, n), n) for n in (s.block_n(WIDEST), s.block_n(64))]
    return _largest(s, s.channels, [*blocks, (1, s.block_n(64))])


def _pair_block(s: Sizes) -> tuple[int, int]:
    if s.cols:
        return _largest(s, s.pairs, [(64, s.block_n(8)), (32, s.block_n(4))])
    return _largest(s, s.pairs, [(s.rows(2, n), n) for n in (s.block_n(WIDEST), s.block_n(64))])


def pair_parts(s: Sizes) -> int:
    """Rows of the partial sums over pairs: parts of all positions of all samples."""
    block_p, block_n = _pair_block(s)
    return s.parts(triton.cdiv(s.pairs, block_p), s.batch * triton.cdiv(s.positions, block_n))


def gate_parts(s: Sizes) -> int:
    """Rows of a sample's partial gradients of gates."""
    return triton.cdiv(s.positions, _slot_block(s)[1])


def backward_launches(
    s: Sizes, tensors: tuple[Any, ...], results: tuple[Tensor, Tensor, Tensor, Tensor]
) -> Iterator[Launch]:
    """What computes the gradients, in order.

    Args:
        s: the sizes.
        tensors: grad, x, index, gate, alpha and weight, dense; gate may be None.
        results: grad_x, the gated channels' gradients (B, k, S...) in float32, the gates' in parts
            (B, ``gate_parts(s)``, k), and sums over pairs in parts (``pair_parts(s)``, 3, P) of weight, bias and
            alpha, that of each pair before its weight.
    """
    grad, x, index, gate, alpha, weight = tensors
    grad_x, gz, of_gate, sums = results
    common = {"gated": gate is not None}
    gate = _given(gate, alpha)
    numbers = (s.channels, s.k, s.positions)
    block_s, block_n = _slot_block(s)
    programs = s.batch * triton.cdiv(s.k, block_s) * triton.cdiv(s.positions, block_n)
    constants = {**common, **s.constants, "block_s": block_s, "block_n": block_n}
    arguments = (grad, x, index, gate, alpha, weight, gz, of_gate, *numbers)
    yield Launch(backward.expand_slots_bwd_kernel, programs, arguments, constants)
    block_p, block_n = _pair_block(s)
    parts = pair_parts(s)
    constants = {**common, **s.constants, "block_p": block_p, "block_n": block_n}
    arguments = (grad, x, index, gate, alpha, sums, s.batch, *numbers, parts)
    yield Launch(backward.expand_pairs_bwd_kernel, triton.cdiv(s.pairs, block_p) * parts, arguments, constants)
    block_c, block_n = _input_block(s)
    programs = s.batch * triton.cdiv(s.channels, block_c) * triton.cdiv(s.positions, block_n)
    constants = {**common, **s.constants, "block_c": block_c, "block_n": block_n}
    yield Launch(backward.expand_input_bwd_kernel, programs, (grad, gz, index, gate, grad_x, *numbers), constants)


def _plain(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().contiguous()


def expand_forward(
    x: Tensor,
    index: Tensor,
    gate: Tensor | None,
    alpha: Tensor,
    weight: Tensor,
    bias: Tensor,
    block: int = 1,
    schedule: str | None = None,
) -> Tensor:
    """Forward of :func:`hadaptive.ops.cross_hadamard_expand` for GPU tensors in float32, bfloat16 or float16.

    Args:
        block: channels that are multiplied as one.
        schedule: one of ``SCHEDULES``; None takes ``default_schedule``. ``flat`` is for rows of eight positions or
            more, and blocks are for OF_BLOCKS; else it is ``direct``.

    Raises:
        ValueError: there is no such schedule.
    """
    if schedule not in (None, *SCHEDULES):
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}; got {schedule!r}")
    y = empty_map(x, x.shape[1] + weight.shape[0])
    if y.numel():
        s = sizes(x, index, multiprocessors(x.device), block)
        tensors = (dense(x, s.cols), *map(_plain, (index, gate, alpha, weight, bias)), y)
        with torch.cuda.device_of(x):
            forward_launch(s, schedule or default_schedule(s), tensors).run()
    return y


def expand_backward(
    grad: Tensor, x: Tensor, index: Tensor, gate: Tensor | None, alpha: Tensor, weight: Tensor, block: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (B, C, S...), gate (B, k), alpha (1,), weight (P,) and bias (P,), each in its tensor's dtype.

    The gate's gradient is float32 where gate is None. There is one backward for all schedules.
    """
    gate_dtype = torch.float32 if gate is None else gate.dtype
    if not x.numel():
        of_gate = torch.zeros_like(index, dtype=gate_dtype)
        of_alpha, of_weight = torch.zeros_like(alpha), torch.zeros_like(weight)
        return empty_map(x, x.shape[1]), of_gate, of_alpha, of_weight, torch.zeros_like(weight)
    s = sizes(x, index, multiprocessors(x.device), block)
    grad_x, gz = empty_map(x, s.channels), empty_map(x, s.k, torch.float32)
    of_gate = gz.new_empty(s.batch, gate_parts(s), s.k)
    sums = gz.new_empty(pair_parts(s), 3, s.pairs)
    tensors = (dense(grad, s.cols), dense(x, s.cols), *map(_plain, (index, gate, alpha, weight)))
    with torch.cuda.device_of(x):
        for launch in backward_launches(s, tensors, (grad_x, gz, of_gate, sums)):
            launch.run()
    of_weight, of_bias, of_alpha = (
        part.sum(0) for part in sums.unbind(1)
    )  # an operator's results share no memory
    return (
        grad_x,
        of_gate.sum(1).to(gate_dtype),
        (of_alpha * weight.detach()).sum().to(alpha.dtype).view(alpha.shape),
        of_weight.to(weight.dtype),
        of_bias.to(weight.dtype),
    )
