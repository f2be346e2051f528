"""ExecuTorch programs with the XNNPACK backend: what phones run. Written, and run again from Python.

A file ends with the SHA-256 of what comes before, which ExecuTorch ignores and we check: the runtime does not
notice damage, and some of it ends the process.
"""

import copy
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hadaptive.errors import UserError
from hadaptive.files import write_atomically
from hadaptive.measure.deploy import DeployProducts
from hadaptive.models.shipped import METADATA_KEY
from hadaptive.packages import silent

MAX_BATCH = 64  # memory is planned for the largest batch: 13 MB more for S than for one image
DIGEST = 32
MAGIC = b"ET12"


def write_executorch(net: nn.Module, path: Path, size: tuple[int, int, int], metadata: str) -> None:
    """Write a deployed network with contiguous weights for batches of up to 64 images (batch, C, H, W)."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, DeployProducts):
            module.ties = "key"  # its top-k promises nothing about equal scores, and it has no sort
    with silent(), torch.backends.mkldnn.flags(enabled=False), torch.backends.nnpack.flags(enabled=False):
        # Without the two flags, choosing between PyTorch's own kernels limits the batch to 15.
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
        program = torch.export.export(net, (torch.zeros(2, *size),), dynamic_shapes=({0: batch},))
        edge = to_edge_transform_and_lower(
            program, partitioner=[XnnpackPartitioner()], constant_methods={METADATA_KEY: metadata}
        )
        data = bytes(edge.to_executorch().buffer)

    def save(temporary: Path) -> None:
        temporary.write_bytes(data + hashlib.sha256(data).digest())

    write_atomically(path, save)


def pool_threads() -> int:
    """How many threads the one pool of this process has."""
    with silent():
        import executorch.extension.pybindings.portable_lib as library

        return library._threadpool_get_thread_count()  # pyright: ignore[reportAttributeAccessIssue]


def set_threads(threads: int) -> None:
    """Give the one pool of this process so many threads; 0 leaves it as it is.

    Raises:
        UserError: a program has been loaded, and the pool has another number.
    """
    now = pool_threads()
    with silent():
        import executorch.extension.pybindings.portable_lib as library

        pool: Any = library
        if threads in (0, now):
            return
        if ExecutorchRun.in_use:
            raise UserError(
                f"ExecuTorch has {now} threads in this process since it ran its first program, and cannot have "
                f"{threads}: measure in another process"
            )
        pool._unsafe_reset_threadpool(threads)


class ExecutorchRun:
    """What runs a file, in batches of any size. (B, C, H, W) float32 -> (B, classes).

    ExecuTorch has one pool of threads for the whole process; changing it under a loaded program ends the process.

    Args:
        path: of the file.
        threads: of the pool; it is set by the first program of a process only. 0 leaves it as it is.

    Raises:
        UserError: the file is damaged.
    """

    in_use = False  # whether this process has loaded a program

    def __init__(self, path: Path, threads: int) -> None:
        content = path.read_bytes()
        data, digest = content[:-DIGEST], content[-DIGEST:]
        if data[4:8] != MAGIC or hashlib.sha256(data).digest() != digest:
            raise UserError("its checksum does not fit its content")
        if not ExecutorchRun.in_use:
            set_threads(threads)
        with silent():
            from executorch.runtime import Runtime

            ExecutorchRun.in_use = True
            self.program = Runtime.get().load_program(data)
            self.metadata = str(self.program.load_method(METADATA_KEY).execute([])[0])  # pyright: ignore[reportOptionalMemberAccess]
            self.method: Any = self.program.load_method("forward")

    def __call__(self, images: np.ndarray) -> np.ndarray:
        shape = tuple(self.method.metadata.input_tensor_meta(0).sizes())
        if images.shape[1:] != shape[1:]:
            raise UserError(f"expected images of shape {list(shape[1:])}, got {list(images.shape[1:])}")
        batches = torch.from_numpy(np.ascontiguousarray(images)).split(shape[0])
        return np.concatenate([self.method.execute([batch])[0].numpy() for batch in batches])
