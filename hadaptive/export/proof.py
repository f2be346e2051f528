"""Proof that an exported file does what the network did: loaded again, compared on real images, timed."""

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hadaptive.bench.timing import quartiles
from hadaptive.export.formats import Run, load

TOLERANCE = 1e-4  # of the largest logit


@dataclass(frozen=True)
class Agreement:
    """How far two networks agree on images.

    Attributes:
        images: compared.
        relative_error: largest difference of two logits over the largest logit.
        top1: share of the images whose class is the same.
        first: number of the first image whose class or logits differ, None where none does.
    """

    images: int
    relative_error: float
    top1: float
    first: int | None

    @property
    def holds(self) -> bool:
        """Whether this is the same network up to rounding."""
        return self.first is None


@torch.no_grad()
def compare(network: nn.Module, run: Run, batches: Iterable[Tensor]) -> Agreement:
    """Compare a PyTorch network in eval mode with what runs an exported file.

    Raises:
        ValueError: there are no images.
    """
    expected, found = [], []
    for batch in batches:
        expected.append(network(batch).float().numpy())
        found.append(run(batch.numpy()))
    if not expected:
        raise ValueError("there are no images to compare the export on")
    a, b = np.concatenate(expected), np.concatenate(found)
    errors = np.abs(a - b).max(1) / max(float(np.abs(a).max()), 1e-12)
    same = a.argmax(1) == b.argmax(1)
    # A class may change where two logits are equal up to rounding: that is no difference of networks.
    wrong = np.flatnonzero(~(errors <= TOLERANCE))
    return Agreement(len(a), float(errors.max()), float(same.mean()), int(wrong[0]) if len(wrong) else None)


def latency(run: Run, image: np.ndarray, rounds: int = 60) -> dict[str, float]:
    """Milliseconds for one image, warm: median and 95th percentile."""
    times = []
    for turn in range(rounds + 10):
        start = time.perf_counter()
        run(image)
        if turn >= 10:
            times.append(1e3 * (time.perf_counter() - start))
    return {"p50_ms": quartiles(times)["median_ms"], "p95_ms": round(float(np.percentile(times, 95)), 4)}


def prove(network: nn.Module, path: Path, batches: Iterable[Tensor]) -> tuple[Agreement, dict[str, Any]]:
    """Load a file again, compare and time it; the agreement, and all figures ready for JSON."""
    run, card = load(path)
    agreement = compare(network, run, batches)
    image = np.zeros((1, *card.preprocessing.input_size), np.float32)
    files = [path, *([path.with_suffix(".bin")] if path.suffix == ".xml" else [])]
    figures: dict[str, Any] = {
        **asdict(agreement),
        "tolerance": TOLERANCE,
        "holds": agreement.holds,
        "bytes": sum(file.stat().st_size for file in files),
        "latency": {f"{threads} threads": latency(load(path, threads)[0], image) for threads in (1, 2)},
    }
    return agreement, figures
