"""Batch normalisation with an activation: PyTorch's two operators and ours, alone and in a network's step.

Every variant is first checked against PyTorch's in float64; what computes something else is an error, not a row.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hadaptive import ops
from hadaptive.bench.networks import LAYOUTS
from hadaptive.console import console
from hadaptive.errors import UserError
from hadaptive.files import append_csv
from hadaptive.measure.timing import interleaved, quartiles, threads
from hadaptive.ops import norm
from hadaptive.provenance import provenance

TOLERANCE = 1e-4  # relative to the largest value
Shape = tuple[int, int, str, int]  # channels, side, activation, batch
VARIANTS = {"PyTorch": "reference", "ours": "fused"}


@dataclass(frozen=True)
class NormsConfig:
    """Time the norms of a network one by one, and its training step without and with their kernels.

    Attributes:
        results: CSV file that the rows are appended to.
        network: a name that timm knows.
        batch: images.
        input_size: H = W of the images.
        rounds: timed rounds; every variant runs once in each.
        warmup: rounds before those.
        steps: rounds of the network's whole step; 0 leaves it out.
        threads: PyTorch threads; default as PyTorch chooses.
    """

    results: Path = Path("benchmarks/results/norms.csv")
    network: str = "hadaptive_net_s"
    batch: int = 16
    input_size: int = 224
    rounds: int = 25
    warmup: int = 3
    steps: int = 15
    threads: int | None = None


@torch.no_grad()
def norms(network: str, batch: int, input_size: int) -> list[Shape]:
    """Of a network's BatchNorms the shapes and what follows them, each once, in the order an image passes them."""
    found: dict[Shape, None] = {}
    model = timm.create_model(network).eval()
    following = {}
    for parent in model.modules():
        children = list(parent.children())
        following |= {
            first: "hardswish" for first, second in pairwise(children) if isinstance(second, nn.Hardswish)
        }

    def note(module: nn.Module, arguments: tuple[Tensor], y: Tensor) -> None:
        found[(y.shape[1], y.shape[2], following.get(module, "none"), batch)] = None

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(note)
    model(torch.zeros(1, 3, input_size, input_size))
    return list(found)


def _check_same(name: str, found: Tensor, true: Tensor) -> None:
    error = float((found.detach().double() - true.detach()).abs().max() / true.detach().abs().max())
    if not error < TOLERANCE:
        raise UserError(f"{name} does not compute what PyTorch computes (relative error {error:.1e}): no row")


def bench_shape(shape: Shape, layout: str, config: NormsConfig) -> list[dict[str, Any]]:
    """A row for the forward pass and for the whole step of each variant."""
    channels, side, act, batch = shape
    torch.manual_seed(0)
    x = torch.randn(batch, channels, side, side).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    grad = torch.randn_like(x)
    weight, bias = torch.full((channels,), 0.3), torch.full((channels,), 1.0)  # off hardswish's kinks
    leaves = (x, weight.requires_grad_(), bias.requires_grad_())
    state = torch.zeros(channels), torch.ones(channels)

    def forward(backend: str) -> Tensor:
        return ops.batch_norm_act(x, *state, weight, bias, True, act=act, backend=backend)

    def step(backend: str) -> tuple[Tensor, ...]:
        return torch.autograd.grad(forward(backend), leaves, grad)

    wide = [t.detach().double().requires_grad_() for t in leaves]
    z = F.batch_norm(wide[0], None, None, wide[1], wide[2], training=True)
    true = F.hardswish(z) if act == "hardswish" else z
    kernel = norm.unsupported_reason(x, weight, bias) is None
    variants: dict[str, Callable[[], Any]] = {}
    for name, backend in VARIANTS.items():
        if name == "ours" and not kernel:
            continue
        _check_same(name, forward(backend), true)
        gradients = torch.autograd.grad(true, wide, grad.double(), retain_graph=True)
        for what, a, b in zip(("x", "weight", "bias"), step(backend), gradients, strict=True):
            _check_same(f"the gradient of {what}, {name}", a, b)
        variants |= {f"forward, {name}": partial(forward, backend), f"step, {name}": partial(step, backend)}
    times = interleaved(variants, config.warmup, config.rounds)
    chosen = ops.explain("batch_norm_act", x, *state, weight, bias, True, 0.1, 1e-5, act)[0]
    return [
        {
            "channels": channels,
            "side": side,
            "act": act,
            "batch": batch,
            "layout": layout,
            "variant": name,
            "rule": "ours" if chosen == "fused" else "PyTorch",
            **quartiles(ms),
            **provenance(),
        }
        for name, ms in times.items()
    ]


@contextmanager
def _without(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def bench_step(layout: str, config: NormsConfig) -> list[dict[str, Any]]:
    """Rows of a network's training step: as it is, without kernels for norms, and with slices as gradients."""
    torch.manual_seed(0)
    model: Any = timm.create_model(config.network, num_classes=100).to(memory_format=LAYOUTS[layout])
    images = torch.randn(config.batch, 3, config.input_size, config.input_size)
    images = images.contiguous(memory_format=LAYOUTS[layout])
    targets = torch.randint(100, (config.batch,))

    def step() -> None:
        F.cross_entropy(model(images), targets).backward()

    def without_kernels() -> None:
        with _without(norm, "kernel_is_faster", lambda *arguments: False):
            step()

    def with_slices() -> None:
        with _without(ops, "append", lambda x, extra: torch.cat([x, extra], 1)):
            without_kernels()

    variants = {"as it is": step, "norms by PyTorch": without_kernels, "norms and append by PyTorch": with_slices}
    times = interleaved(variants, 1, config.steps)
    where = {"channels": "", "side": config.input_size, "act": config.network, "batch": config.batch}
    return [
        {**where, "layout": layout, "variant": name, "rule": "", **quartiles(ms), **provenance()}
        for name, ms in times.items()
    ]


def bench_norms(config: NormsConfig) -> list[dict[str, Any]]:
    """Check, time, print and append the rows; returns them.

    Raises:
        UserError: a variant computes something else than PyTorch in float64.
    """
    rows: list[dict[str, Any]] = []

    def keep(new: list[dict[str, Any]]) -> None:
        config.results.parent.mkdir(parents=True, exist_ok=True)
        append_csv(config.results, new)
        rows.extend(new)
        first = new[0]
        times = ", ".join(f"{row['variant']} {row['median_ms']:.2f}" for row in new)
        where = "{channels} x {side}, {act}, batch {batch}, {layout}".format(**first)
        console().print(f"{where}: {times} ms; rule: {first['rule'] or 'each map by its own'}", soft_wrap=True)

    with threads(config.threads):
        for shape in norms(config.network, config.batch, config.input_size):
            for layout in LAYOUTS:
                keep(bench_shape(shape, layout, config))
        if config.steps:
            for layout in LAYOUTS:
                keep(bench_step(layout, config))
    return rows
