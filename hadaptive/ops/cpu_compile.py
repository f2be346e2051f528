"""Compiles CPU kernels with Numba: once for each kind of processor, when first used, and kept on disk.

A kernel is a compiled function of a task and the number of one of its chunks. :func:`worker` makes of it the C
function that threads run (:mod:`hadaptive.ops.cpu_run`): each takes chunks until none is left. What is on disk is
found only by the sources that it was made of.
"""

import contextlib
import ctypes
import hashlib
from functools import cache
from importlib import resources
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.ccallback import CFunc

from hadaptive.ops.simd import intrinsic

if numba.config.DISABLE_JIT:  # pyright: ignore[reportAttributeAccessIssue]
    raise ImportError("NUMBA_DISABLE_JIT is set")

# A product and a sum may become one instruction. Nothing may be reordered: (w * u) / (1 + |u|) overflows where
# w * (u / (1 + |u|)) does not, and a kernel that was just compiled would add up in another order than the same one
# from the cache, so that a resumed run differed from a whole one in the last digit.
compiled: Any = numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})

_COUNTERS = ("next", "done", "bad", "chunks")


def task_fields(*names: str) -> list[tuple[str, Any]]:
    """The fields of a task, a ctypes structure of int64: four counters, then sizes and addresses by these names.

    `next` is the chunk that the next free thread takes, `done` counts those that are finished, `bad` is set where
    an index is out of range, `chunks` is how many there are.
    """
    return [(name, ctypes.c_int64) for name in (*_COUNTERS, *names)]


@intrinsic
def _count(typing: Any, task: Any, field: Any) -> Any:
    """A counter of the task, and one more than it stored, in one step that no other thread can divide."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        fields = builder.bitcast(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", builder.gep(fields, [arguments[1]]), ir.IntType(64)(1), "monotonic")

    return types.int64(task, types.int64), generate


def _pointer_to(kind: Any) -> Any:
    @intrinsic
    def pointer(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), generate

    return pointer


floats = _pointer_to(types.float32)  # of an address, for numba.carray
ints = _pointer_to(types.int64)
doubles = _pointer_to(types.float64)


@compiled
def keep(*arrays):
    """Numba frees an array after the last line that names it, and an address does not name it."""
    return  # its debug mode looks for a statement


@cache
def sources() -> str:
    """A digest of every file that a kernel is made of."""
    files = [f for f in resources.files("hadaptive.ops").iterdir() if f.name.startswith(("cpu_", "simd."))]
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        if file.name.endswith(".py"):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


class _Files(CompileResultCacheImpl):
    """Numba looks at the file of the function alone, and a kernel's steps come from others."""

    def get_filename_base(self, fullname: str, abiflags: str) -> str:
        return f"{super().get_filename_base(fullname, abiflags)}.{sources()}"


class _Cache(FunctionCache):
    """Numba's, which is no reason to fail: a kernel that cannot be read is compiled, a full disk holds none."""

    _impl_class = _Files

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        return sig, codegen.magic_tuple()  # the rest, Numba's digest of a closure, differs in every process

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # unpickling what was cut short may raise anything
            with contextlib.suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with contextlib.suppress(OSError):
            super().save_overload(sig, data)


class _Worker(CFunc):
    def enable_caching(self) -> None:
        with contextlib.suppress(RuntimeError, OSError):  # no folder that can be written, no source to be read
            self._cache = _Cache(self.__wrapped__)


@cache
def worker(kernel: Any, task: type[ctypes.Structure]) -> Any:
    """A C function (task*) -> void, compiled on the first call; its `address` is what threads are given.

    Args:
        kernel: made by :data:`compiled`, of a task and the number of a chunk.
        task: its first argument's type, with :func:`task_fields`.
    """

    def take_chunks(pointer):
        while True:
            chunk = _count(pointer, 0)
            fields = numba.carray(pointer, 1)[0]
            if chunk >= fields.chunks:
                return
            try:
                kernel(fields, chunk)
            except Exception:  # no memory: there is nobody here to tell, and the chunk is not done
                return
            _count(pointer, 1)

    take_chunks.__qualname__ = f"{kernel.__module__}.{kernel.__name__}"  # by which the cache finds it
    pointer = types.CPointer(numba.from_dtype(np.dtype(task)))
    made = _Worker(take_chunks, ((pointer,), types.void), locals={}, options={"error_model": "numpy"})
    made.enable_caching()
    made.compile()
    return made
