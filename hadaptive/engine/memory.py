"""Memory: how much of it there is to use, and how much was used."""

import sys
from pathlib import Path

import psutil
import torch

CGROUPS = {  # Linux's limits for a container: what may be used, and what is
    "/sys/fs/cgroup/memory.max": "/sys/fs/cgroup/memory.current",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes": "/sys/fs/cgroup/memory/memory.usage_in_bytes",
}


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still use, of the device's memory or of this machine's, or its container's."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    free = psutil.virtual_memory().available
    for limit, used in CGROUPS.items():
        try:
            numbers = [int(Path(path).read_text(encoding="ascii")) for path in (limit, used)]
        except (OSError, ValueError):  # no such limit; "max"
            continue
        free = min(free, max(0, numbers[0] - numbers[1]))
    return free


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has had at once: on a GPU of its memory, elsewhere of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_of_children() -> tuple[int, int]:
    """How many processes this one has started and are there, and the bytes that only they use."""
    number = total = 0
    for child in psutil.Process().children(recursive=True):
        try:
            total += child.memory_full_info().uss
            number += 1
        except psutil.Error:  # it has ended, or may not be looked at
            continue
    return number, total


def memory_text(size: float) -> str:
    """Bytes as a person reads them."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
