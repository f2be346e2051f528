"""Speed and memory of the expansion and of the whole ACH module, against what people would use instead.

Every variant is first checked against the reference; one that computes something else is an error, not a row.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.textbook import TextbookExpansion
from hadaptive import ops
from hadaptive.bench.networks import LAYOUTS
from hadaptive.console import console
from hadaptive.errors import UserError
from hadaptive.files import append_csv
from hadaptive.measure.timing import interleaved, quartiles, threads
from hadaptive.nn import AdaptiveCrossHadamard, CrossHadamardExpansion
from hadaptive.ops import num_pairs, reference
from hadaptive.pictures import save_png
from hadaptive.provenance import provenance

SHAPES = ((96, 16, 14, 32), (128, 32, 7, 32), (192, 36, 7, 32), (128, 24, 14, 32))  # C, k, H = W, B
SWEEP_BATCHES = (1, 8, 128)  # at the last of SHAPES
SWEEP_K, SWEEP_SIDES, SWEEP_CHANNELS, SWEEP_BATCH = (8, 16, 32, 48), (7, 14, 28, 56), 96, 4
GPU_SHAPES = ((128, 32, 14, 256), (96, 16, 14, 256), (192, 36, 7, 256))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 5e-3}  # relative to the largest value


@dataclass(frozen=True)
class OpsConfig:
    """Time the ACH module and its expansion alone against their rivals.

    Attributes:
        results: CSV file that the rows are appended to; a picture of the sweep lies beside it.
        device: "cpu" or "cuda"; on a GPU every schedule is timed, and batch 1 under CUDA graphs.
        dtype: of the maps: float32, bfloat16 or float16.
        rounds: timed rounds; every variant runs once in each.
        warmup: rounds before those.
        compiled: also time the rivals under torch.compile, which takes minutes to compile.
        sweep: also time other batches, and k over H x W, against the textbook.
        threads: PyTorch threads; default as PyTorch chooses.
    """

    results: Path = Path("benchmarks/results/ops-cpu.csv")
    device: str = "cpu"
    dtype: str = "float32"
    rounds: int = 25
    warmup: int = 4
    compiled: bool = True
    sweep: bool = False
    threads: int | None = None


class SlicedExpansion(CrossHadamardExpansion):
    """The expansion in plain PyTorch with a slice per selected channel in place of gathers: compilers like it."""

    def __init__(self, channels: int, k: int) -> None:
        super().__init__(channels, k, selection="sample")

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        index, gate = self.select(self.score(x), generator)
        z = reference.select_channels(x, index, gate)
        q = torch.cat([z[:, i : i + 1] * z[:, i + 1 :] for i in range(self.k - 1)], dim=1)
        alpha, weight, bias = self.norm.parameters()
        u = alpha * q
        return torch.cat([x, weight[:, None, None] * (u / (1 + u.abs())) + bias[:, None, None]], dim=1)


def _module(channels: int, k: int, expansion: type[CrossHadamardExpansion]) -> AdaptiveCrossHadamard:
    torch.manual_seed(0)
    module = AdaptiveCrossHadamard(channels, k, selection="sample")
    if expansion is not CrossHadamardExpansion:
        state = module.cross_hadamard.state_dict()
        module.cross_hadamard = expansion(channels, k)
        module.cross_hadamard.load_state_dict(state)
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


def _check_same(name: str, found: Tensor, expected: Tensor) -> None:
    error = float(((found.float() - expected.float()).abs().max() / expected.float().abs().max()).detach())
    if not error < TOLERANCES[found.dtype]:
        raise UserError(
            f"{name} does not compute what the reference computes (relative error {error:.1e}): no row"
        )


def _compiled(module: nn.Module) -> Callable[[Tensor], Tensor]:
    torch.compiler.reset()
    return torch.compile(module)


def _step(module: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> Callable[[], None]:
    def run() -> None:
        module(x).backward(grad)

    return run


def _peak_mib(run: Callable[[], None], device: str) -> float | None:
    """Peak of the GPU's allocated memory during one call, beyond what was allocated before; None on a CPU."""
    if not device.startswith("cuda"):
        return None
    run()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def bench_module(
    shape: tuple[int, int, int, int], layout: str, config: OpsConfig, rivals: bool = True
) -> list[dict[str, Any]]:
    """Training step (forward and backward) of the whole module and of its rivals, a row each."""
    channels, k, side, batch = shape
    width, memory_format, dtype = channels + num_pairs(k), LAYOUTS[layout], DTYPES[config.dtype]
    place: dict[str, Any] = {"device": config.device, "dtype": dtype, "memory_format": memory_format}
    torch.manual_seed(0)
    x = torch.randn(batch, channels, side, side).to(**place).requires_grad_()
    grad = torch.randn(batch, width, side, side).to(**place)
    kinds = {"fused": CrossHadamardExpansion, "textbook": TextbookExpansion, "slices": SlicedExpansion}
    modules: dict[str, nn.Module] = {n: _module(channels, k, kind) for n, kind in kinds.items()}
    for module in modules.values():
        module.to(**place)
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
        if config.compiled and rivals and name != "fused":
            steps[f"{name}, compiled"] = _step(_compiled(module), x, grad)
    if rivals:
        mix = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        inverted = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.Hardswish())
        modules |= {"inverted bottleneck's expansion": inverted, "Conv1x1 + BatchNorm alone": mix}
        for module in (mix, inverted):
            module.to(**place)
        steps["inverted bottleneck's expansion"] = _step(inverted, x, grad)
        narrow = grad[:, :channels].contiguous(memory_format=memory_format)
        steps["Conv1x1 + BatchNorm alone"] = _step(mix, x, narrow)
    times = interleaved(steps, config.warmup, config.rounds, config.device)
    memory = {n: saved_bytes(modules[n], x) / 2**20 for n in modules if n in steps}
    return [
        _row(
            "module step", shape, layout, name, ms, config, memory.get(name), _peak_mib(steps[name], config.device)
        )
        for name, ms in times.items()
    ]


def _schedules(arguments: tuple, grad: Tensor) -> dict[str, Callable[[], Any]]:
    """Each of the GPU's forward schedules, and the kernels of the backward pass without autograd."""
    from hadaptive.ops import triton_launch as kernels

    detached = tuple(a.detach() for a in arguments)
    variants: dict[str, Callable[[], Any]] = {}
    for name in kernels.SCHEDULES:

        def forward(name: str = name) -> Any:
            return kernels.expand_forward(*detached, schedule=name)

        variants[f"forward, {name}"] = forward
    variants["backward, kernels"] = lambda: kernels.expand_backward(grad, *detached[:5])
    return variants


def _graph(run: Callable[[], Any]) -> Callable[[], None]:
    """The same launches, recorded once and replayed."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def bench_expansion(shape: tuple[int, int, int, int], layout: str, config: OpsConfig) -> list[dict[str, Any]]:
    """The expansion alone, and a copy that moves as many bytes as it must (half read, half written)."""
    channels, k, side, batch = shape
    pairs, positions = num_pairs(k), batch * side * side
    dtype, gpu = DTYPES[config.dtype], config.device.startswith("cuda")
    place: dict[str, Any] = {"device": config.device, "dtype": dtype, "memory_format": LAYOUTS[layout]}
    torch.manual_seed(0)
    x = torch.randn(batch, channels, side, side).to(**place).requires_grad_()
    index = torch.rand(batch, channels).topk(k).indices.to(config.device)
    parameters = [torch.rand(batch, k), torch.tensor([0.5]), torch.randn(pairs), torch.randn(pairs)]
    arguments: Any = (x, index, *(p.to(config.device).requires_grad_() for p in parameters))
    grad = torch.randn(batch, channels + pairs, side, side).to(**place)
    leaves = [a for a in arguments if a.requires_grad]
    y, expected = (
        ops.cross_hadamard_expand(*arguments, backend="fused"),
        ops.cross_hadamard_expand(*arguments, backend="reference"),
    )
    _check_same("fused", y, expected)
    gradients = torch.autograd.grad(y, leaves, grad, retain_graph=True)
    truth = torch.autograd.grad(expected, leaves, grad)
    names = ("x", "gate", "alpha", "weight", "bias")
    for name, a, b in zip(names, gradients, truth, strict=True):
        _check_same(f"the gradient of {name}", a, b)
    forward_moves, backward_moves = 2 * channels + pairs, 2 * channels + pairs + k  # planes in and out
    sources = [
        torch.randn(moves * positions // 2).to(config.device, dtype) for moves in (forward_moves, backward_moves)
    ]
    targets = [torch.empty_like(source) for source in sources]
    variants: dict[str, Callable[[], Any]] = {
        "forward, fused": lambda: ops.cross_hadamard_expand(*arguments, backend="fused"),
        "forward, copy": lambda: targets[0].copy_(sources[0]),
        "backward, fused": lambda: torch.autograd.grad(y, leaves, grad, retain_graph=True),
        "backward, copy": lambda: targets[1].copy_(sources[1]),
    }
    if gpu:
        schedules = _schedules(arguments, grad)
        for name, run in schedules.items():
            if name.startswith("forward"):
                _check_same(name, run(), expected)
            else:
                for which, a, b in zip(names, run(), truth, strict=True):
                    _check_same(f"{name}: the gradient of {which}", a, b)
        variants |= schedules
        if batch == 1:
            variants |= {f"{name}, CUDA graph": _graph(run) for name, run in schedules.items()}
    times = interleaved(variants, config.warmup, config.rounds, config.device)
    return [_row("expansion alone", shape, layout, name, ms, config) for name, ms in times.items()]


def _row(
    what: str,
    shape: tuple[int, int, int, int],
    layout: str,
    variant: str,
    times: list[float],
    config: OpsConfig,
    saved: float | None = None,
    peak: float | None = None,
) -> dict[str, Any]:
    channels, k, side, batch = shape
    return {
        "what": what,
        "channels": channels,
        "k": k,
        "side": side,
        "batch": batch,
        "dtype": config.dtype,
        "layout": layout,
        "variant": variant,
        **quartiles(times),
        "saved_mib": "" if saved is None else round(saved, 2),
        "peak_mib": "" if peak is None else round(peak, 2),
        **provenance(config.device),
    }


def _sweep(config: OpsConfig) -> Iterator[list[dict[str, Any]]]:
    """Rows of the module against the textbook: other batches, then k over H x W."""
    channels, k, side, _ = SHAPES[-1]
    shapes = [(channels, k, side, batch) for batch in SWEEP_BATCHES]
    shapes += [(SWEEP_CHANNELS, k, side, SWEEP_BATCH) for k in SWEEP_K for side in SWEEP_SIDES]
    for shape in shapes:
        yield [{**row, "what": "sweep"} for row in bench_module(shape, "nchw", config, rivals=False)]


def plot_sweep(rows: list[dict[str, Any]], path: Path) -> None:
    """Heat map of how many times faster than the textbook a training step of the module is, over k and H x W."""
    from matplotlib.figure import Figure

    times = {(row["k"], row["side"], row["variant"]): row["median_ms"] for row in rows}
    ratios = [[times[k, n, "textbook"] / times[k, n, "fused"] for n in SWEEP_SIDES] for k in SWEEP_K]
    figure = Figure(figsize=(5.5, 4.5), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(ratios, cmap="viridis", vmin=1)
    first = rows[0]
    title = f"training step of ACH: textbook / fused\nC {SWEEP_CHANNELS}, batch {SWEEP_BATCH}, {first['dtype']}"
    axes.set(title=title, xlabel="H = W", ylabel="k")
    axes.set_xticks(range(len(SWEEP_SIDES)), [str(side) for side in SWEEP_SIDES])
    axes.set_yticks(range(len(SWEEP_K)), [str(k) for k in SWEEP_K])
    for i, line in enumerate(ratios):
        for j, ratio in enumerate(line):
            axes.text(j, i, f"{ratio:.1f}", ha="center", va="center", color="white")
    figure.colorbar(image)
    save_png(figure, path)


def bench_ops(
    config: OpsConfig, shapes: tuple[tuple[int, int, int, int], ...] | None = None
) -> list[dict[str, Any]]:
    """Check, time, print and append the rows; returns them.

    Args:
        shapes: C, k, H = W and B of each problem; default those of the device.

    Raises:
        UserError: a variant computes something else than the reference, or the fused kernel cannot run here.
    """
    if config.dtype not in DTYPES:
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}; got {config.dtype!r}")
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("there is no GPU that PyTorch can use; leave --device out to time the CPU")
    rows: list[dict[str, Any]] = []

    def keep(new: list[dict[str, Any]]) -> None:
        config.results.parent.mkdir(parents=True, exist_ok=True)
        append_csv(config.results, new)
        print_ops(new)
        rows.extend(new)

    if shapes is None:
        single = tuple((c, k, n, 1) for c, k, n, _ in GPU_SHAPES)
        shapes = (*GPU_SHAPES, *single) if "cuda" in config.device else SHAPES
    with threads(config.threads):
        for shape in shapes:
            for layout in LAYOUTS:
                keep(bench_module(shape, layout, config) + bench_expansion(shape, layout, config))
        if config.sweep:
            for new in _sweep(config):
                keep(new)
            grid = [row for row in rows if row["what"] == "sweep" and row["channels"] == SWEEP_CHANNELS]
            plot_sweep(grid, config.results.with_name(f"{config.results.stem}-sweep.png"))
    return rows


def print_ops(rows: list[dict[str, Any]]) -> None:
    """A table of one shape and layout: times, and how many times the fused variant's each is."""
    from rich.table import Table

    first = rows[0]
    title = "C {channels}, k {k}, {side}x{side}, batch {batch}, {dtype}, {layout}; {threads} threads".format(
        **first
    )
    table = Table(title=title, title_justify="left")
    for column, justify in (("what", "left"), ("variant", "left"), ("ms", "right"), ("quartiles", "right")):
        table.add_column(column, justify=justify, no_wrap=True)  # pyright: ignore[reportArgumentType]
    table.add_column("x fused", justify="right")
    table.add_column("saved MiB", justify="right")
    medians = {(row["what"], row["variant"]): row["median_ms"] for row in rows}
    for row in rows:
        what = row["what"]
        own = f"{row['variant'].split(',')[0]}, fused" if what == "expansion alone" else "fused"
        spread = f"{row['lower_quartile_ms']:.2f} to {row['upper_quartile_ms']:.2f}"
        ratio = f"{row['median_ms'] / medians[what, own]:.2f}"
        table.add_row(what, row["variant"], f"{row['median_ms']:.2f}", spread, ratio, str(row["saved_mib"]))
    console().print(table)
