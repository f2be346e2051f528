"""What a search costs beside a training, and what a latency table is worth. Rows for each."""

import itertools
import multiprocessing
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.planted import solves_planted
from hadaptive.console import console
from hadaptive.files import append_csv
from hadaptive.measure.setting import Runtime, Setting
from hadaptive.measure.timing import interleaved, quartiles
from hadaptive.models import HadaptiveNet
from hadaptive.models.published import HADAPTIVE_NET_S
from hadaptive.provenance import provenance
from hadaptive.search.estimators import frozen_statistics, gdas, rloo
from hadaptive.search.latency import LatencyTable, measure_networks, measure_table
from hadaptive.search.shared import SharedSupernet
from hadaptive.search.spaces import open_space, star_space
from hadaptive.search.supernet import Supernet
from hadaptive.search.turns import fair_choice

ARCHITECTURE = {"architecture step, rloo of 4 paths": "rloo", "architecture step, gdas": "gdas"}
SHARED = "networks in turn, with shared weights"
ALONE = "the same networks, each with its own"
VARIANTS = ("S", "supernet, S's path", "supernet, random paths", *ARCHITECTURE, ALONE, SHARED)
TURNS = 8  # networks that those two take in turn


@dataclass(frozen=True)
class SearchBenchConfig:
    """Time a supernet's steps against a training step of S, and check a latency table on new networks.

    Attributes:
        space: whose supernet is timed.
        table_space: whose latency table is checked.
        results: folder of the CSV files.
        image_size: height and width.
        batch: images in a step.
        rounds: timed steps of each kind.
        networks: random networks, none of which the table was fitted to.
        network_rounds: timed runs of each of them.
        parts: what to measure: what a step costs, what a table is worth, and how often each estimator finds a
            planted answer.
        planted_seeds: trials of each estimator.
        device: cpu or cuda.
        runtime: that the table is of, and the networks it is checked on.
        frozen: they have fixed selections.
        table: of ``hadaptive latency`` for that space, in place of a fresh one; its setting counts.
    """

    space: str = "published"
    table_space: str = "rich-s"
    results: Path = Path("benchmarks/results")
    image_size: int = 224
    batch: int = 16
    rounds: int = 24
    networks: int = 30
    network_rounds: int = 150
    parts: tuple[Literal["price", "table", "planted"], ...] = ("price", "table", "planted")
    planted_seeds: int = 12
    device: str = "cpu"
    runtime: Runtime = "pytorch"
    frozen: bool = False
    table: Path | None = None


def _step(variant: str, config: SearchBenchConfig) -> Callable[[], None]:
    torch.manual_seed(0)
    if variant in (SHARED, ALONE):
        return _turns(variant, config)
    space = open_space(config.space)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(config.batch, 3, config.image_size, config.image_size, device=config.device)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, 100, (config.batch,), device=config.device)
    if variant == "S":
        model: nn.Module = HadaptiveNet(HADAPTIVE_NET_S, num_classes=100)
        parameters = list(model.parameters())
    else:
        model = Supernet(space, 100)
        parameters = model.weights()
    model.to(config.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    model.train()
    optimizer = torch.optim.AdamW(parameters, 1e-3, fused=True)
    own = space.find(HADAPTIVE_NET_S)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        if not isinstance(model, Supernet):
            F.cross_entropy(model(x), y).backward()
        elif variant in ARCHITECTURE:
            for parameter in parameters:
                parameter.requires_grad_(False)
            with frozen_statistics(model):
                if ARCHITECTURE[variant] == "gdas":
                    loss, _ = gdas(model, x, lambda logits: F.cross_entropy(logits, y), 1.0, generator)
                else:
                    loss, _ = rloo(model, x, lambda logits: F.cross_entropy(logits, y), 4, generator)
                torch.autograd.grad(loss, list(model.alpha))
            for parameter in parameters:
                parameter.requires_grad_(True)
            return
        else:
            path = own if variant.endswith("S's path") else model.sample(1.0, generator).choice
            assert path is not None
            F.cross_entropy(model(x, path), y).backward()
        optimizer.step()

    return run


def _turns(variant: str, config: SearchBenchConfig) -> Callable[[], None]:
    """Training steps of a space's networks with shared weights, one after the other, or of the same ones alone."""
    space = star_space()
    choices = [fair_choice(space, 0, step) for step in range(TURNS)]
    x = torch.randn(config.batch, 3, config.image_size, config.image_size, device=config.device)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, 100, (config.batch,), device=config.device)
    if variant == SHARED:
        supernet = SharedSupernet(space, 100)
        modules: list[nn.Module] = [supernet]
        runs: list[Callable[[Tensor], Tensor]] = [partial(supernet, choice=choice) for choice in choices]
    else:
        modules = [HadaptiveNet(space.build(choice), 100) for choice in choices]
        runs = list(modules)
    optimizers = []
    for module in modules:
        module.to(config.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        module.train()
        optimizers.append(torch.optim.AdamW(module.parameters(), 1e-3, fused=True))
    numbers = itertools.cycle(range(TURNS))

    def run() -> None:
        number = next(numbers)
        optimizer = optimizers[number % len(optimizers)]
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(runs[number](x), y).backward()
        optimizer.step()

    return run


def _peak_memory(variant: str, config: SearchBenchConfig, answer: Any) -> None:
    if config.device.startswith("cuda"):
        run = _step(variant, config)
        torch.cuda.reset_peak_memory_stats()
        for _ in range(8):
            run()
        answer.put(torch.cuda.max_memory_allocated() / 2**20)
        return
    before = _status("VmRSS")
    run = _step(variant, config)
    for _ in range(8):
        run()
    answer.put(_status("VmHWM") - before)


def _status(key: str) -> float:
    """A figure of this process in MiB, as Linux has it."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    return float("nan")


def bench_search(config: SearchBenchConfig) -> None:
    """Time, check, print and append the rows.

    Raises:
        UserError: a space is unknown or does not fit the images.
    """
    open_space(config.table_space).input_shapes(3, config.image_size)
    config.results.mkdir(parents=True, exist_ok=True)
    if "price" in config.parts:
        _price(config)
    if "table" in config.parts:
        _check_table(config)
    if "planted" in config.parts:
        _plant(config)


def _plant(config: SearchBenchConfig) -> None:
    for estimator in ("rloo", "gdas"):
        solved = 0
        for seed in range(config.planted_seeds):
            found = solves_planted(estimator, seed)
            solved += found
            row = {"estimator": estimator, "seed": seed, "solved": int(found), **provenance(config.device)}
            append_csv(config.results / "search-planted.csv", [row])
        console().print(f"{estimator}: {solved} of {config.planted_seeds} planted answers found")


def _price(config: SearchBenchConfig) -> None:
    variants = [v for v in VARIANTS if "S's path" not in v or open_space(config.space).find(HADAPTIVE_NET_S)]
    times = interleaved({v: _step(v, config) for v in variants}, 4, config.rounds, config.device)
    context, rows = multiprocessing.get_context("spawn"), []
    for variant in variants:
        answer = context.Queue()
        child = context.Process(target=_peak_memory, args=(variant, config, answer))
        child.start()
        memory = answer.get(timeout=600)
        child.join()
        rows.append(
            {
                "what": variant,
                "space": "star" if variant in (SHARED, ALONE) else config.space,
                "image_size": config.image_size,
                "batch": config.batch,
                **quartiles(times[variant]),
                "peak_mib": round(memory, 1),
                **provenance(config.device),
            }
        )
    append_csv(config.results / "search-price.csv", rows)
    for row in rows:
        console().print(
            f"{row['what']}: {row['median_ms']:.1f} ms ({row['median_ms'] / rows[0]['median_ms']:.2f} of S), "
            f"{row['peak_mib']:.0f} MiB ({row['peak_mib'] / rows[0]['peak_mib']:.2f})"
        )


def _check_table(config: SearchBenchConfig) -> None:
    from scipy.stats import spearmanr

    space = open_space(config.table_space)
    setting = Setting(config.runtime, config.device, config.image_size, frozen=config.frozen)
    setting.check()
    if config.table is None:
        table = measure_table(space, setting)
    else:
        table = LatencyTable.load(config.table)
        setting = table.setting
        table.check(space, setting)
    # The first rows know no other runtime.
    plain = setting.runtime == "pytorch" and not setting.frozen
    runtime = setting.runtime + (
        f", {setting.threads} threads".replace("1 threads", "1 thread") if setting.threads else ""
    )
    what = {} if plain else {"runtime": runtime, "selections": "fixed" if setting.frozen else "dynamic"}
    generator = torch.Generator().manual_seed(1)
    choices = [space.random(generator) for _ in range(config.networks)]
    specs = {str(i): space.build(c) for i, c in enumerate(choices)}
    measured = measure_networks(specs, setting, config.network_rounds)
    rows = [
        {
            "space": space.name,
            **what,
            "network": "-".join(map(str, choice)),
            "image_size": setting.image_size,
            "batch": 1,
            "predicted_ms": round(table.predict(choice), 4),
            "measured_ms": measured[str(i)],
            **provenance(setting.device),
        }
        for i, choice in enumerate(choices)
    ]
    append_csv(config.results / ("latency-check.csv" if plain else "latency-check-runtimes.csv"), rows)
    error = statistics.median(abs(r["predicted_ms"] / r["measured_ms"] - 1) for r in rows)
    rank = spearmanr([r["predicted_ms"] for r in rows], [r["measured_ms"] for r in rows]).statistic  # pyright: ignore
    console().print(f"latency of {len(rows)} networks: Spearman {rank:.3f}, median error {error:.1%}")
