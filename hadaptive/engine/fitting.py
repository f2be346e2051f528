"""The largest batch that memory has room for."""

import threading
import time
from collections.abc import Callable

import psutil
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from hadaptive.engine.memory import free_memory

MOST = 1024  # images: of larger batches an image teaches too little
STEPS = 16  # that an epoch has at least, where there are images for that
FEWEST = 16  # images, however few there are: of smaller batches BatchNorm learns little
SPARE = 0.7  # of the machine's free memory, what is used: other programs want some, and loaders
PROBED = (4, 8, 16)  # images, on a CPU: what more take follows from these


def largest_batch(step: Callable[[int], None], device: torch.device, most: int) -> int:
    """The largest power of two of images in one pass that memory has room for, at least 2.

    On a GPU larger and larger passes are tried until one does not fit. A CPU's memory is shared with all else that
    runs, and who takes too much of it is killed: small passes are measured, and the others follow from these.

    Args:
        step: learn from so many images.
        device: where.
        most: images, whatever there is room for.
    """
    if device.type == "cpu":
        return _by_slope(step, device, most)
    found, images = 2, 2
    while images <= most:
        try:
            step(images)
            step(images)  # optimisers have a state from the first on
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            break
        finally:
            clear_device_cache(garbage_collection=True)
        found, images = images, 2 * images
    return found


def _by_slope(step: Callable[[int], None], device: torch.device, most: int) -> int:
    step(2)
    peaks: list[tuple[int, int]] = []
    for images in [images for images in PROBED if images <= most] or [2]:
        with Peak() as peak:
            step(images)
        peaks.append((images, peak.most))
    (few, low), (many, high) = min(peaks), max(peaks)
    slope = max(0.0, (high - low) / max(1, many - few))
    room, found = SPARE * free_memory(device), 2
    while 2 * found <= most and slope * (2 * found - few) <= room:
        found *= 2
    return found


class Peak:
    """Within it, the most bytes that this process has at once, looked at every few milliseconds."""

    def __init__(self) -> None:
        self.most, self.done = 0, threading.Event()

    def _look(self) -> None:
        process = psutil.Process()
        while not self.done.wait(0.002):
            self.most = max(self.most, process.memory_info().rss)

    def __enter__(self) -> "Peak":
        self.most = psutil.Process().memory_info().rss
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()
        time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()


def largest_allowed(images: int, passes: int) -> int:
    """Images in one pass of which an epoch still has enough steps, a power of two.

    Args:
        images: of an epoch.
        passes: in a step.
    """
    most = max(2, min(MOST, images, max(FEWEST, images // STEPS)) // passes)
    return 2 ** (most.bit_length() - 1)
