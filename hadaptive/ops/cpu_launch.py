"""Runs the compiled CPU kernels on tensors: layouts, chunks, threads.

Numba's own parallel loops abort the process when two Python threads enter them, and a second set of threads
beside PyTorch's fights it for the cores: OpenMP's wait for work by spinning. So the kernels run on PyTorch's own
OpenMP threads where its library can be called (Linux), and otherwise, and in a forked process, where OpenMP may
hang, on a small thread pool.
"""

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from hadaptive.ops.cpu_kernels import Task, worker
from hadaptive.ops.layout import channels_contiguous, dense, empty_map

MAX_CHUNKS = 32  # of the batch in a backward pass; fixed, so that sums are the same for any number of threads
WORK_PER_THREAD = 16_384  # multiplications below which a second thread costs more than it brings

_HOME = os.getpid()


@cache
def _openmp() -> Callable[..., None] | None:
    """GOMP_parallel(function, argument, threads, flags) of the library that PyTorch itself runs on."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        parallel = ctypes.CDLL(str(library)).GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel


@cache
def _executor(process: int, threads: int) -> ThreadPoolExecutor:
    """One for each process: a forked one inherits no threads."""
    return ThreadPoolExecutor(threads, thread_name_prefix="hadaptive")


def _run(name: str, task: Task, work: int) -> None:
    """Do all chunks of a task on as many threads as PyTorch may use and the work is worth."""
    threads = max(1, min(torch.get_num_threads(), task.chunks, work // WORK_PER_THREAD))
    address, argument = worker(name).address, ctypes.addressof(task)
    parallel = _openmp() if os.getpid() == _HOME else None
    if parallel is not None and threads > 1:
        parallel(address, argument, threads, 0)
        return
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)
    pool = _executor(os.getpid(), threads - 1) if threads > 1 else None
    others = [pool.submit(call, argument) for _ in range(threads - 1)] if pool else []
    call(argument)
    for other in others:
        other.result()


def thread_library() -> str:
    """What the kernels' threads come from."""
    return "PyTorch's OpenMP" if _openmp() is not None and os.getpid() == _HOME else "a thread pool"


def _filled(x: Tensor, value: float, *shape: int) -> Tensor:
    """What a kernel reads or adds to: float32 beside x, whatever PyTorch's default dtype and device are."""
    return x.new_full(shape, value, dtype=torch.float32)


def _vector(x: Tensor) -> Tensor:
    return x.detach().float().contiguous()


def _launch(kernel: str, x: Tensor, index: Tensor, gate: Tensor | None, chunks: int, **arrays: Tensor) -> None:
    """Fill in the task that all kernels share, run it, and refuse an index out of range."""
    cols = channels_contiguous(x)
    batch, channels = x.shape[:2]
    k, positions = index.shape[1], x.numel() // (batch * channels)
    pairs = k * (k - 1) // 2
    arrays |= {
        "x": dense(x.float(), cols),
        "index": index.contiguous(),
        "gate": _filled(x, 1, *index.shape) if gate is None else _vector(gate),
    }
    task = Task(
        chunks=chunks,
        batch=batch,
        channels=channels,
        positions=positions,
        k=k,
        **{name: array.data_ptr() for name, array in arrays.items()},
    )
    _run(f"expand_{'cols' if cols else 'rows'}_{kernel}", task, batch * pairs * positions)
    if task.bad:
        raise IndexError(f"index holds channels outside 0 to {channels - 1}")


def expand_forward(
    x: Tensor, index: Tensor, gate: Tensor | None, alpha: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """Forward of :func:`hadaptive.ops.expand` for CPU tensors in float32, bfloat16 or float16.

    Raises:
        IndexError: an entry of `index` is no channel of x.
    """
    wide = empty_map(x, x.shape[1] + len(weight), torch.float32)
    if wide.numel():
        chunks = x.shape[0] * max(1, 2 * torch.get_num_threads() // x.shape[0])
        affine = {"alpha": _vector(alpha), "weight": _vector(weight), "bias": _vector(bias)}
        _launch("fwd", x, index, gate, chunks, y=wide, **affine)
    return wide.to(x.dtype)


def expand_backward(
    grad: Tensor, x: Tensor, index: Tensor, gate: Tensor | None, alpha: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (B, C, S...), gate (B, k), alpha (1,), weight (P,) and bias (P,), each in its tensor's dtype.

    The gate's gradient is float32 where gate is None.
    """
    batch, pairs = x.shape[0], len(weight)
    chunks = max(1, min(batch, MAX_CHUNKS))
    grad_x, grad_gate = empty_map(x, x.shape[1], torch.float32), _filled(x, 0, *index.shape)
    sums = {"sums_alpha": _filled(x, 0, chunks, 1)}
    sums |= {name: _filled(x, 0, chunks, pairs) for name in ("sums_weight", "sums_bias")}
    if x.numel():
        arrays = {"grad": dense(grad.float(), channels_contiguous(x)), "grad_x": grad_x, "grad_gate": grad_gate}
        affine = {"alpha": _vector(alpha), "weight": _vector(weight), "bias": _vector(weight)}
        _launch("bwd", x, index, gate, chunks, **arrays, **sums, **affine)
    of_alpha, of_weight, of_bias = (total.sum(0) for total in sums.values())
    return (
        grad_x.to(x.dtype),
        grad_gate if gate is None else grad_gate.to(gate.dtype),
        of_alpha.to(alpha.dtype).view(alpha.shape),
        of_weight.to(weight.dtype),
        of_bias.to(weight.dtype),
    )
