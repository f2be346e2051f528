"""Runs compiled CPU kernels: the one place that takes a tensor's address, and the threads.

Numba's own parallel loops abort the process when two Python threads enter them, and a second set of threads
beside PyTorch's fights it for the cores: OpenMP's wait for work by spinning. So the kernels run on PyTorch's own
OpenMP threads where its library can be called (Linux), and otherwise, and in a forked process, where OpenMP may
hang, on a small thread pool. Numba is not imported here: this file is to be imported before a process forks.
"""

import ctypes
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WORK_PER_THREAD = 16_384  # multiplications below which a second thread costs more than it brings


class _Process:
    """Whether this one was forked: OpenMP's threads stay behind, and a call that waits for them never returns."""

    # One that imports this file first cannot know; Python's own kind of process can.
    forked = type(multiprocessing.current_process()).__name__ == "ForkProcess"

    @classmethod
    def was_forked(cls) -> None:
        cls.forked = True
        _executor.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Process.was_forked)


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
def _executor(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="hadaptive")


def thread_library() -> str:
    """What the kernels' threads come from."""
    return "a thread pool" if _Process.forked or _openmp() is None else "PyTorch's OpenMP"


def threads_for(work: int) -> int:
    """How many threads so many multiplications are worth, of those that PyTorch may use."""
    return max(1, min(torch.get_num_threads(), work // WORK_PER_THREAD))


def address(name: str, tensor: Tensor, numel: int, dtype: torch.dtype = torch.float32) -> int:
    """Where a kernel finds an array, once it is one that the kernel can read.

    Raises:
        ValueError: the tensor is not on the CPU, contiguous, of this size and dtype, with memory of its own.
    """
    if not tensor.is_cpu:
        raise ValueError(f"{name} is on {tensor.device}, and x on the CPU")
    if tensor.dtype is not dtype:
        raise ValueError(f"{name} must be {dtype}, got {tensor.dtype}")
    if tensor.layout is not torch.strided or tensor.numel() != numel or not tensor.is_contiguous():
        raise ValueError(f"{name} must be a contiguous array of {numel} numbers, got {tuple(tensor.shape)}")
    if tensor.is_neg():
        raise ValueError(f"{name} is a view with its sign pending, which no kernel reads")
    place, size = tensor.data_ptr(), dtype.itemsize
    if numel and (place == 0 or tensor.untyped_storage().nbytes() < (tensor.storage_offset() + numel) * size):
        raise ValueError(f"{name} has no memory for all its numbers: its storage was resized, or never made")
    return place


def run(worker: Any, task: ctypes.Structure, arrays: dict[str, tuple], threads: int) -> None:
    """Do all chunks of a task.

    Args:
        worker: made by :func:`hadaptive.ops.cpu_compile.worker`.
        task: its argument, with its chunks and sizes.
        arrays: what :func:`address` takes, of each of the task's arrays that the kernel uses: a tensor, its size,
            and its dtype if that is not float32.
        threads: how many may work on it; see :func:`threads_for`.

    Raises:
        ValueError: a tensor is no such array.
        IndexError: a kernel met an index out of range.
        MemoryError: a kernel found no memory to work in.
    """
    for name, array in arrays.items():
        setattr(task, name, address(name, *array))
    threads = max(1, min(threads, task.chunks))
    parallel = None if threads == 1 or _Process.forked else _openmp()
    if parallel is not None:
        parallel(worker.address, ctypes.addressof(task), threads, 0)
    else:
        _run_on_pool(worker.address, task, arrays, threads)
    if task.bad:
        raise IndexError("an index is out of range")
    if task.done < task.chunks:
        raise MemoryError("a CPU kernel found no memory to work in")


def _run_on_pool(worker: int, task: ctypes.Structure, arrays: dict[str, tuple], threads: int) -> None:
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(worker)

    def work(task: ctypes.Structure, arrays: dict[str, tuple]) -> None:
        """Holds the memory of what it works on: Ctrl-C may end the wait below, and not the work."""
        call(ctypes.addressof(task))

    others: list[Future] = []
    with suppress(RuntimeError):  # no more threads, or the interpreter is ending: this one does it all
        for _ in range(threads - 1):
            others.append(_executor(threads - 1).submit(work, task, arrays))
    work(task, arrays)
    for other in others:
        other.result()
