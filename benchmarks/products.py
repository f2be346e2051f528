"""The products of expansions with BatchNorm, as half of M's and L's are: the kernels' and plain PyTorch's.

Every variant is first checked against the reference in float64; one that computes something else is no row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hadaptive import ops
from hadaptive.bench.networks import LAYOUTS
from hadaptive.console import console
from hadaptive.errors import UserError
from hadaptive.files import append_csv
from hadaptive.measure.timing import interleaved, quartiles, threads
from hadaptive.nn import CrossHadamardExpansion
from hadaptive.ops import reference
from hadaptive.provenance import provenance

SHAPES = ((192, 32, 14, 8), (96, 20, 14, 8), (64, 12, 28, 8), (192, 32, 7, 8), (192, 32, 14, 1))  # C, k, H = W, B
TOLERANCE = 1e-4  # relative to the largest value


@dataclass(frozen=True)
class ProductsConfig:
    """Time the products of the selected channels, and an expansion with BatchNorm, with and without kernels.

    Attributes:
        results: CSV file that the rows are appended to.
        rounds: timed rounds; every variant runs once in each.
        warmup: rounds before those.
        threads: PyTorch threads; default as PyTorch chooses.
    """

    results: Path = Path("benchmarks/results/products.csv")
    rounds: int = 50
    warmup: int = 5
    threads: int | None = None


def _check_same(name: str, found: list[Tensor], true: list[Tensor]) -> None:
    error = max(float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(found, true, strict=True))
    if not error < TOLERANCE:
        raise UserError(
            f"{name} does not compute what the reference computes (relative error {error:.1e}): no row"
        )


def bench_shape(shape: tuple[int, int, int, int], layout: str, config: ProductsConfig) -> list[dict[str, Any]]:
    """A row for the products' forward pass, their step and a whole expansion's, each by both backends."""
    channels, k, side, batch = shape
    torch.manual_seed(0)
    x = torch.randn(batch, channels, side, side).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    index = torch.rand(batch, channels).topk(k).indices
    gate = torch.rand(batch, k).requires_grad_()
    module = CrossHadamardExpansion(channels, k, norm="batchnorm", selection="sample")
    grad = torch.randn_like(ops.selected_products(x, index, gate))
    grad_module = torch.randn_like(module(x))

    def step() -> list[Tensor]:
        y = ops.selected_products(x, index, gate)
        return [y.detach(), *torch.autograd.grad(y, (x, gate), grad)]

    def forward() -> Tensor:
        with torch.no_grad():
            return ops.selected_products(x, index, gate)

    def by(backend: str, run: Callable[[], Any]) -> Callable[[], Any]:
        def call() -> Any:
            with ops.backend(backend):
                return run()

        return call

    exact = [t.detach().double().requires_grad_() for t in (x, gate)]
    y = reference.selected_products(exact[0], index, exact[1])
    true = [y.detach(), *torch.autograd.grad(y, exact, grad.double())]
    variants: dict[str, Callable[[], Any]] = {}
    for backend in ops.available_backends():
        _check_same(backend, by(backend, step)(), true)
        variants[f"forward, {backend}"] = by(backend, forward)
        variants[f"step, {backend}"] = by(backend, step)
        variants[f"expansion's step, {backend}"] = by(backend, lambda: module(x).backward(grad_module))
    times = interleaved(variants, config.warmup, config.rounds)
    place = {"channels": channels, "k": k, "side": side, "batch": batch, "layout": layout}
    return [{**place, "variant": name, **quartiles(ms), **provenance()} for name, ms in times.items()]


def bench_products(config: ProductsConfig) -> list[dict[str, Any]]:
    """Check, time, print and append the rows; returns them.

    Raises:
        UserError: a backend computes something else than the reference in float64.
    """
    rows: list[dict[str, Any]] = []
    with threads(config.threads):
        for shape in SHAPES:
            for layout in LAYOUTS:
                new = bench_shape(shape, layout, config)
                config.results.parent.mkdir(parents=True, exist_ok=True)
                append_csv(config.results, new)
                rows += new
                figures = ", ".join(f"{row['variant']} {row['median_ms']:.2f}" for row in new)
                console().print(f"C, k, side, batch {shape}, {layout}: {figures} ms", soft_wrap=True)
    return rows
