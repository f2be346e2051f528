"""Latency of whole networks in eager PyTorch and under torch.compile, in turns."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hadaptive.console import console
from hadaptive.errors import UserError
from hadaptive.files import append_csv
from hadaptive.measure.timing import interleaved, quartiles, threads
from hadaptive.models import create_model
from hadaptive.provenance import provenance

TOLERANCE = 1e-3  # of the spread of the logits: the compiler sums in another order


@dataclass(frozen=True)
class CompiledConfig:
    """Time networks at batch 1 without gradients, each eager and compiled.

    Attributes:
        models: timm names; the ratios are to the first, compiled.
        image_sizes: sides of the square images, pixels.
        results: CSV file that the rows are appended to.
        rounds: timed rounds; every variant runs once in each.
        threads: PyTorch threads; default as PyTorch chooses.
        backend: torch.compile's.
    """

    models: tuple[str, ...] = ("hadaptive_net_s_published", "hadaptive_net_s", "mobilenetv4_conv_small")
    image_sizes: tuple[int, ...] = (64, 224)
    results: Path = Path("benchmarks/results/compiled.csv")
    rounds: int = 100
    threads: int | None = None
    backend: str = "inductor"

    def __post_init__(self) -> None:
        if self.rounds < 2:
            raise UserError(f"rounds must be at least 2, for a spread; got {self.rounds}")


def _lively(name: str, size: int) -> nn.Module:
    """A network with the statistics of its own maps: with those of a fresh BatchNorm its logits hardly vary."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=1000, image_size=size).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(4, 3, size, size))
    return model.eval()


def _call(model: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            return model(x)

    return run


def _variants(config: CompiledConfig, size: int) -> dict[str, Callable[[], Tensor]]:
    variants: dict[str, Callable[[], Tensor]] = {}
    x = torch.randn(1, 3, size, size)
    torch.compiler.reset()
    for name in config.models:
        model = _lively(name, size)
        eager = _call(model, x)
        compiled = _call(torch.compile(model, backend=config.backend), x)
        error = float((compiled() - eager()).abs().max() / eager().std())
        if not error < TOLERANCE:
            raise UserError(f"{name} computes something else when compiled: {error:.1e} of its logits' spread")
        variants |= {name: eager, f"{name}, compiled": compiled}
    return variants


def bench_compiled(config: CompiledConfig) -> list[dict[str, Any]]:
    """Time, print and append the rows; returns them.

    Raises:
        UserError: a compiled network computes something else.
    """
    from rich.table import Table

    table = Table("pixels", "network", "ms", "quartiles", "ratio")
    rows: list[dict[str, Any]] = []
    with threads(config.threads):
        for size in config.image_sizes:
            times = interleaved(_variants(config, size), max(3, config.rounds // 5), config.rounds)
            base = quartiles(times[f"{config.models[0]}, compiled"])["median_ms"]
            for name, ms in times.items():
                row = {"variant": name, "image_size": size, "batch": 1, **quartiles(ms), **provenance("cpu")}
                spread = f"{row['lower_quartile_ms']:.2f} to {row['upper_quartile_ms']:.2f}"
                table.add_row(str(size), name, f"{row['median_ms']:.2f}", spread, f"{row['median_ms'] / base:.2f}")
                rows.append(row)
    config.results.parent.mkdir(parents=True, exist_ok=True)
    append_csv(config.results, rows)
    console().print(table)
    return rows
