"""Proof that an exported file does what the network did: loaded again, compared on real images, timed."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hadaptive.errors import UserError
from hadaptive.files import write_atomically
from hadaptive.measure.alone import Task, alone, session
from hadaptive.measure.executorch import pool_threads
from hadaptive.measure.formats import beside
from hadaptive.measure.runtimes import Run
from hadaptive.measure.sessions import load
from hadaptive.measure.timing import quartiles
from hadaptive.nn import ChannelSelection, expansions
from hadaptive.text import in_markdown


@dataclass(frozen=True)
class Limits:
    """What may differ between a network and its export.

    Attributes:
        tolerance: relative error up to which an image's logits are the same.
        near: gap of two scores, over the largest score, that runtimes round away.
        excused: share of the images that such near ties may explain.
    """

    tolerance: float
    near: float
    excused: float


TRAINED = Limits(1e-4, 2e-5, 0.01)
# Random weights amplify rounding: L differs by a third of this tolerance from itself in float64.
UNTRAINED = Limits(1e-3, 2e-4, 0.1)


@dataclass(frozen=True)
class Agreement:
    """How far two networks agree on images.

    Attributes:
        images: compared.
        relative_error: largest difference of two logits over their image's largest one, or over the median
            image's where that is larger; near ties aside.
        near_ties: images that differ where two scores are equal up to rounding, so that either selection is right;
            where there are too many of them for chance, they count as errors all the same.
        near_tie_error: largest relative error of those.
        top1: share of the images whose class is the same.
        first: number of the first image whose logits differ, None where none does.
        output: number of the logit that differs there most.
    """

    images: int
    relative_error: float
    near_ties: int
    near_tie_error: float
    top1: float
    first: int | None
    output: int | None

    @property
    def holds(self) -> bool:
        """Whether this is the same network up to rounding."""
        return self.first is None


@torch.no_grad()
def compare(network: nn.Module, run: Run, batches: Iterable[Tensor], limits: Limits = TRAINED) -> Agreement:
    """Compare a PyTorch network in eval mode with what runs an exported file.

    Args:
        network: with float32 weights, on the CPU.
        run: (B, C, H, W) float32 -> (B, classes).
        batches: of images, (B, C, H, W).
        limits: what may differ.

    Raises:
        UserError: there are no images.
    """
    expected, found, margins = [], [], []
    with _margins(network) as margin:
        for batch in batches:
            expected.append(network(batch).float().numpy())
            margins.append(margin(len(batch)))
            found.append(run(batch.numpy()))
    if not expected:
        raise UserError("there are no images to compare the export on")
    a, b = np.concatenate(expected), np.concatenate(found)
    largest = np.abs(a).max(1)
    # An image whose logits all but vanish is held to what is usual.
    errors = np.abs(a - b).max(1) / np.maximum(largest, max(float(np.median(largest)), 1e-12))
    differs = ~(errors <= limits.tolerance)  # so does what is not a number
    near = differs & np.isfinite(errors) & (np.concatenate(margins) <= limits.near)
    few = near.sum() <= min(max(limits.excused * len(a), 1), len(a) - 1)
    excused = near if few else np.zeros_like(near)
    same = a.argmax(1) == b.argmax(1)
    # A class may change where two logits are equal up to rounding: that is no difference of networks.
    wrong = np.flatnonzero(differs & ~excused)
    first = int(wrong[0]) if len(wrong) else None
    output = None if first is None else int(np.abs(a[first] - b[first]).argmax())
    error = float(np.where(excused, 0, errors).max())
    tied = float(np.where(near, errors, 0).max())
    return Agreement(len(a), error, int(near.sum()), tied, float(same.mean()), first, output)


@contextmanager
def _margins(network: nn.Module) -> Iterator[Callable[[int], np.ndarray]]:
    """Inside, tell for each image of the last batch how near its selections came to others.

    That is the smallest gap of two scores whose order matters, over the largest score; infinite where nothing is
    selected by scores.
    """
    gaps: list[Tensor] = []

    def watch(select: ChannelSelection) -> Any:
        def hook(module: nn.Module, args: Any, scores: Tensor) -> None:
            gaps.append(select.margins(scores) / scores.abs().amax(1).clamp(min=1e-30))

        return hook

    handles = [
        layer.score.register_forward_hook(watch(layer.select))
        for layer in expansions(network).values()
        if isinstance(layer.select, ChannelSelection)
    ]

    def margin(images: int) -> np.ndarray:
        smallest = torch.stack(gaps).amin(0) if gaps else torch.full((images,), float("inf"))
        gaps.clear()
        return smallest.double().numpy()

    try:
        yield margin
    finally:
        for handle in handles:
            handle.remove()


Right = Callable[[Tensor, Tensor], Tensor]  # logits (B, classes) and targets (B,) -> which images are right, bool


def one_class(logits: Tensor, targets: Tensor) -> Tensor:
    """Which images are right, bool (B,), where each has one class."""
    return logits.argmax(1) == targets


def accuracy_of(run: Run, batches: Iterable[tuple[Tensor, Tensor]], right_of: Right = one_class) -> float:
    """Share of images, in batches with their targets, that an exported file gets right."""
    right = total = 0
    for images, targets in batches:
        if len(images):
            right += int(right_of(torch.from_numpy(run(images.numpy())), targets).sum())
            total += len(images)
    return right / max(total, 1)


CALLS = 60  # that are timed, after a sixth as many


def latency(path: Path, size: tuple[int, int, int], threads: int) -> dict[str, float]:
    """Milliseconds for one image, warm: median and 95th percentile."""
    file = str(path.resolve())
    task = Task(threads, CALLS, file, image_size=size[1], in_chans=size[0], warm_calls=CALLS // 6)
    # ExecuTorch has one pool of threads for each process, whose number is set once: another needs a process.
    here = path.suffix != ".pte" or pool_threads() == threads
    times = (session if here else alone)(task)["times"]
    return {"p50_ms": quartiles(times)["median_ms"], "p95_ms": round(float(np.percentile(times, 95)), 4)}


def prove(
    network: nn.Module, path: Path, batches: Iterable[Tensor], limits: Limits = TRAINED
) -> tuple[Agreement, dict[str, Any]]:
    """Load a file again, compare and time it; the agreement, and all figures ready for JSON."""
    run, card = load(path, trust=True)
    agreement = compare(network, run, batches, limits)
    figures: dict[str, Any] = {
        **asdict(agreement),
        "tolerance": limits.tolerance,
        "holds": agreement.holds,
        "bytes": file_size(path),
        "latency": {f"{n} threads": latency(path, card.preprocessing.input_size, n) for n in (1, 2)},
    }
    return agreement, figures


def unproved(path: Path, why: str) -> dict[str, Any]:
    """The figures of a file that nothing here can run."""
    said = f"converted, and not proved: {why}"
    return {"holds": None, "not_proved": said, "bytes": file_size(path)}


def file_size(path: Path) -> int:
    """Bytes of an exported file or folder, with the weights that some formats keep beside it."""
    if path.is_dir():
        return sum(part.stat().st_size for part in path.rglob("*") if part.is_file())
    return sum(part.stat().st_size for part in (path, *beside(path)))


def write_table(path: Path, about: dict[str, Any]) -> None:
    """Write the figures of a proof as a Markdown table."""

    def rows(data: dict[str, Any], before: str = "") -> list[tuple[str, Any]]:
        found = []
        for key, value in data.items():
            name = f"{before}{key.replace('_', ' ')}"
            if isinstance(value, dict):
                found += rows(value, f"{name}, ")
            elif isinstance(value, list):
                found += [(f"{name} {number}", item) for number, item in enumerate(value, 1) if before == ""]
            else:
                found.append((name, value))
        return found

    lines = [
        "| | |",
        "|---|---|",
        *(
            f"| {in_markdown(name)} | {in_markdown('none' if value is None else str(value))} |"
            for name, value in rows(about)
        ),
    ]

    def save(temporary: Path) -> None:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")

    write_atomically(path, save)
