"""Timing that compares: variants take turns, so that a drift of the machine meets all of them."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Let PyTorch use so many threads inside the block; None leaves it as it is."""
    import torch

    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def synchronise(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


def interleaved(
    variants: dict[str, Callable[[], Any]], warmup: int, rounds: int, device: str = "cpu"
) -> dict[str, list[float]]:
    """Milliseconds of every call; each round calls every variant once."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(warmup + rounds):
        for name, run in variants.items():
            synchronise(device)
            start = time.perf_counter()
            run()
            synchronise(device)
            if turn >= warmup:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def quartiles(times: list[float]) -> dict[str, Any]:
    """Median, quartiles and number of the times, as columns of a row."""
    low, median, high = statistics.quantiles(times, n=4)
    return {
        "median_ms": round(median, 4),
        "lower_quartile_ms": round(low, 4),
        "upper_quartile_ms": round(high, 4),
        "rounds": len(times),
    }
