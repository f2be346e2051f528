"""Speed and memory of the expansion and of the whole ACH module, against what people would use instead.

Every variant is first checked against the reference; one that computes something else is an error, not a row.
Variants are timed in turns, so that a drift of the machine meets all of them.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hadaptive import ops
from hadaptive.bench.textbook import TextbookExpansion
from hadaptive.console import console
from hadaptive.nn import AdaptiveCrossHadamard, CrossHadamardExpansion
from hadaptive.ops import num_pairs, reference
from hadaptive.provenance import provenance
from hadaptive.runs import append_csv

SHAPES = ((96, 16, 14, 32), (128, 32, 7, 32), (192, 36, 7, 32), (128, 24, 14, 32))  # C, k, H = W, B
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class OpsConfig:
    """Time the ACH module and its expansion alone against their rivals on this machine's CPU.

    Attributes:
        results: CSV file that the rows are appended to.
        rounds: timed rounds; every variant runs once in each.
        warmup: rounds before those.
        compiled: also time the rivals under torch.compile, which takes minutes to compile.
        threads: PyTorch threads; default as PyTorch chooses.
    """

    results: Path = Path("benchmarks/results/ops-cpu.csv")
    rounds: int = 25
    warmup: int = 4
    compiled: bool = True
    threads: int | None = None


class SlicedExpansion(CrossHadamardExpansion):
    """The expansion in plain PyTorch with a slice per selected channel in place of gathers: compilers like it."""

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        index, gate = self.select(self.score(x), generator)
        z = reference.select_channels(x, index, gate)
        q = torch.cat([z[:, i : i + 1] * z[:, i + 1 :] for i in range(self.k - 1)], dim=1)
        alpha, weight, bias = self.norm.parameters()
        u = alpha * q
        return torch.cat([x, weight[:, None, None] * (u / (1 + u.abs())) + bias[:, None, None]], dim=1)


def _module(channels: int, k: int, expansion: type[CrossHadamardExpansion]) -> AdaptiveCrossHadamard:
    torch.manual_seed(0)
    module = AdaptiveCrossHadamard(channels, k)
    if expansion is not CrossHadamardExpansion:
        state = module.expansion.state_dict()
        module.expansion = expansion(channels, k)
        module.expansion.load_state_dict(state)
    return module


def saved_bytes(module: nn.Module, x: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, besides parameters; a storage counts once."""
    own = {p.untyped_storage().data_ptr() for p in [*module.parameters(), *module.buffers()]}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)  # so that no address is used twice
        return tensor

    alive: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)
    return sum(kept.values())


def interleaved(variants: dict[str, Callable[[], Any]], warmup: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every call; the variants take turns."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(warmup + rounds):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            if turn >= warmup:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def _check_same(name: str, found: Tensor, expected: Tensor) -> None:
    error = float(((found - expected).abs().max() / expected.abs().max()).detach())
    if not error < 1e-4:
        raise ValueError(
            f"{name} does not compute what the reference computes (relative error {error:.1e}): no row"
        )


def _compiled(module: nn.Module) -> Callable[[Tensor], Tensor]:
    torch.compiler.reset()
    return torch.compile(module)


def _step(module: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> Callable[[], None]:
    def run() -> None:
        module(x).backward(grad)

    return run


def bench_module(shape: tuple[int, int, int, int], layout: str, config: OpsConfig) -> list[dict[str, Any]]:
    """Training step (forward and backward) of the whole module and of its rivals, a row each."""
    channels, k, side, batch = shape
    width, memory_format = channels + num_pairs(k), LAYOUTS[layout]
    torch.manual_seed(0)
    x = torch.randn(batch, channels, side, side).to(memory_format=memory_format).requires_grad_()
    grad = torch.randn(batch, width, side, side).to(memory_format=memory_format)
    kinds = {"fused": CrossHadamardExpansion, "textbook": TextbookExpansion, "slices": SlicedExpansion}
    modules: dict[str, nn.Module] = {n: _module(channels, k, kind) for n, kind in kinds.items()}
    for module in modules.values():
        module.to(memory_format=memory_format)
    with ops.backend("reference"), torch.no_grad():
        expected = modules["fused"].eval()(x)
    modules["fused"].train()
    steps: dict[str, Callable[[], None]] = {}
    for name, module in modules.items():
        with torch.no_grad():
            _check_same(name, module.eval()(x), expected)
        module.train()
        if name != "slices":
            steps[name] = _step(module, x, grad)
        if config.compiled and name != "fused":
            steps[f"{name}, compiled"] = _step(_compiled(module), x, grad)
    mix = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
    inverted = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.Hardswish())
    modules |= {"inverted bottleneck's expansion": inverted, "Conv1x1 + BatchNorm alone": mix}
    for module in (mix, inverted):
        module.to(memory_format=memory_format)
    steps["inverted bottleneck's expansion"] = _step(inverted, x, grad)
    steps["Conv1x1 + BatchNorm alone"] = _step(mix, x, grad[:, :channels].contiguous(memory_format=memory_format))
    times = interleaved(steps, config.warmup, config.rounds)
    memory = {n: saved_bytes(modules[n], x) / 2**20 for n in modules if n in steps}
    return [_row("module step", shape, layout, name, ms, memory.get(name)) for name, ms in times.items()]


def bench_expansion(shape: tuple[int, int, int, int], layout: str, config: OpsConfig) -> list[dict[str, Any]]:
    """The expansion alone, and a copy that moves as many bytes as it must (half read, half written)."""
    channels, k, side, batch = shape
    pairs, positions, memory_format = num_pairs(k), batch * side * side, LAYOUTS[layout]
    torch.manual_seed(0)
    x = torch.randn(batch, channels, side, side).to(memory_format=memory_format).requires_grad_()
    index = torch.rand(batch, channels).topk(k).indices
    parameters = [torch.rand(batch, k), torch.tensor([0.5]), torch.randn(pairs), torch.randn(pairs)]
    arguments = (x, index, *(p.requires_grad_() for p in parameters))
    grad = torch.randn(batch, channels + pairs, side, side).to(memory_format=memory_format)
    leaves = [a for a in arguments if a.requires_grad]
    y, expected = ops.expand(*arguments, backend="fused"), ops.expand(*arguments, backend="reference")
    _check_same("fused", y, expected)
    gradients = torch.autograd.grad(y, leaves, grad, retain_graph=True)
    for name, a, b in zip(
        ("x", "gate", "alpha", "weight", "bias"),
        gradients,
        torch.autograd.grad(expected, leaves, grad),
        strict=True,
    ):
        _check_same(f"the gradient of {name}", a, b)
    forward_moves, backward_moves = 2 * channels + pairs, 2 * channels + pairs + k  # planes in and out
    sources = [torch.randn(moves * positions // 2) for moves in (forward_moves, backward_moves)]
    targets = [torch.empty_like(source) for source in sources]
    variants: dict[str, Callable[[], Any]] = {
        "forward, fused": lambda: ops.expand(*arguments, backend="fused"),
        "forward, copy": lambda: targets[0].copy_(sources[0]),
        "backward, fused": lambda: torch.autograd.grad(y, leaves, grad, retain_graph=True),
        "backward, copy": lambda: targets[1].copy_(sources[1]),
    }
    times = interleaved(variants, config.warmup, config.rounds)
    return [_row("expansion alone", shape, layout, name, ms, None) for name, ms in times.items()]


def _row(
    what: str, shape: tuple[int, int, int, int], layout: str, variant: str, times: list[float], saved: float | None
) -> dict[str, Any]:
    low, median, high = statistics.quantiles(times, n=4)
    channels, k, side, batch = shape
    return {
        "what": what,
        "channels": channels,
        "k": k,
        "side": side,
        "batch": batch,
        "layout": layout,
        "variant": variant,
        "median_ms": round(median, 4),
        "lower_quartile_ms": round(low, 4),
        "upper_quartile_ms": round(high, 4),
        "saved_mib": "" if saved is None else round(saved, 2),
        "rounds": len(times),
        **provenance(),
    }


def bench_ops(config: OpsConfig) -> list[dict[str, Any]]:
    """Check, time, print and append the rows; returns them.

    Raises:
        ValueError: a variant computes something else than the reference, or the fused kernel cannot run here.
    """
    before = torch.get_num_threads()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    rows: list[dict[str, Any]] = []
    try:
        for shape in SHAPES:
            for layout in LAYOUTS:
                new = bench_module(shape, layout, config) + bench_expansion(shape, layout, config)
                config.results.parent.mkdir(parents=True, exist_ok=True)
                append_csv(config.results, new)
                print_ops(new)
                rows += new
    finally:
        torch.set_num_threads(before)
    return rows


def print_ops(rows: list[dict[str, Any]]) -> None:
    """A table of one shape and layout: times, and how many times the first variant's each is."""
    from rich.table import Table

    first = rows[0]
    title = "C {channels}, k {k}, {side}x{side}, batch {batch}, {layout}; {threads} threads".format(**first)
    table = Table(title=title, title_justify="left")
    for column, justify in (("what", "left"), ("variant", "left"), ("ms", "right"), ("quartiles", "right")):
        table.add_column(column, justify=justify, no_wrap=True)  # pyright: ignore[reportArgumentType]
    table.add_column("x fused", justify="right")
    table.add_column("saved MiB", justify="right")
    medians = {(row["what"], row["variant"]): row["median_ms"] for row in rows}
    for row in rows:
        what = row["what"]
        own = "fused" if what == "module step" else f"{row['variant'].split(',')[0]}, fused"
        quartiles = f"{row['lower_quartile_ms']:.2f} to {row['upper_quartile_ms']:.2f}"
        ratio = f"{row['median_ms'] / medians[what, own]:.2f}"
        table.add_row(what, row["variant"], f"{row['median_ms']:.2f}", quartiles, ratio, str(row["saved_mib"]))
    console().print(table)
