"""Latency of whole networks where they are deployed: PyTorch, ONNX Runtime, OpenVINO, one image or several."""

import itertools
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from hadaptive.bench import textbook  # noqa: F401 (registers the published network)
from hadaptive.bench.timing import quartiles, threads
from hadaptive.console import console
from hadaptive.data import Preprocessing
from hadaptive.export.deploy import fold
from hadaptive.export.formats import SUFFIXES, Run, check_format, load, write
from hadaptive.export.passes import prepare
from hadaptive.info import inspect_network
from hadaptive.models import HadaptiveNet, create_model
from hadaptive.nn import expansions
from hadaptive.provenance import provenance
from hadaptive.runs import append_csv, card_for

TOLERANCE = 1e-3  # of the largest logit, of random weights


@dataclass(frozen=True)
class LatencyBenchConfig:
    """Time networks with seeded random weights in several runtimes, in turns, after a check of their outputs.

    A name followed by ":frozen" has fixed selections; ":plain" has nothing but BatchNorm folded.

    Attributes:
        models: timm names or NetSpec files; ratios are to the last.
        runtimes: eager, compile (torch.compile), onnxruntime, openvino.
        threads: numbers of threads to time with.
        batches: images at a time.
        results: CSV file that the rows are appended to.
        image_size: height and width.
        align: multiple that expanded widths are filled up to.
        rounds: blocks of five timed calls for each network.
    """

    models: tuple[str, ...] = (
        "hadaptive_net_s:plain",
        "hadaptive_net_s",
        "hadaptive_net_s:frozen",
        "hadaptive_net_m",
        "hadaptive_net_m:frozen",
        "hadaptive_net_l",
        "hadaptive_net_l:frozen",
        "mobilenetv3_small_100",
        "mobilenetv4_conv_medium",
        "mobilenetv4_conv_small",
    )
    runtimes: tuple[Literal["eager", "compile", "onnxruntime", "openvino"], ...] = ("onnxruntime", "openvino")
    threads: tuple[int, ...] = (2,)
    batches: tuple[int, ...] = (1,)
    results: Path = Path("benchmarks/results/latency.csv")
    image_size: int = 224
    align: int = 16
    rounds: int = 20


def bench_latency(config: LatencyBenchConfig) -> list[dict[str, Any]]:
    """Time, print and append the rows; returns them.

    Raises:
        ValueError: a network is unknown, a runtime's package is missing, or a runtime computes something else.
    """
    for runtime in config.runtimes:
        if runtime in ("onnxruntime", "openvino"):
            check_format("onnx" if runtime == "onnxruntime" else runtime)
    rows: list[dict[str, Any]] = []
    networks = {name: _network(name, config) for name in config.models}
    costs = {name: _costs(network, config) for name, network in networks.items()}
    with tempfile.TemporaryDirectory() as folder:
        for runtime, count, batch in itertools.product(config.runtimes, config.threads, config.batches):
            with threads(count):
                runs = {n: _runner(n, m, runtime, count, config, Path(folder)) for n, m in networks.items()}
                images = np.random.default_rng(0).standard_normal((batch, 3, *[config.image_size] * 2), np.float32)
                for name, run in runs.items():
                    _check(name, runtime, networks[name], run, images)
                times = _blocks(runs, images, config.rounds)
                where = provenance("cpu")
            rows += [
                {
                    "model": name,
                    "runtime": runtime,
                    "batch": batch,
                    "image_size": config.image_size,
                    **quartiles(times[name]),
                    **costs[name],
                    **where,
                }
                for name in networks
            ]
    config.results.parent.mkdir(parents=True, exist_ok=True)
    append_csv(config.results, rows)
    print_latency(rows)
    return rows


def _network(name: str, config: LatencyBenchConfig) -> nn.Module:
    source, _, variant = name.partition(":")
    if variant not in ("", "frozen", "plain"):
        raise ValueError(f"a network's name may end in :frozen or :plain, got {name!r}")
    torch.manual_seed(0)
    network = create_model(source, num_classes=1000)
    # Statistics of one batch: without them an untrained network's outputs vanish, and a check says nothing.
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.randn(4, 3, config.image_size, config.image_size))
    if variant == "frozen":
        for layer in expansions(network).values():
            layer.freeze(torch.randperm(layer.channels)[: layer.k])
    return network.eval()


def _costs(network: nn.Module, config: LatencyBenchConfig) -> dict[str, Any]:
    info = inspect_network(network, (3, config.image_size, config.image_size))
    return {"parameters": info.parameters, "macs": info.macs, "products": info.products}


def _runner(
    name: str, network: nn.Module, runtime: str, count: int, config: LatencyBenchConfig, folder: Path
) -> Run:
    if runtime in ("eager", "compile"):
        model: Any = network if runtime == "eager" else torch.compile(network)

        def run(images: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return model(torch.from_numpy(images)).numpy()

        return run
    form = "onnx" if runtime == "onnxruntime" else runtime
    path = folder / f"{re.sub(r'[^A-Za-z0-9]', '-', name)}{SUFFIXES[form]}"
    if not path.exists():
        deployed = network
        if isinstance(network, HadaptiveNet):
            plain = name.endswith(":plain")
            deployed = fold(network) if plain else prepare(network, config.align)[0]
        preprocessing = Preprocessing(image_size=config.image_size, mean=(0.5,) * 3, std=(0.5,) * 3)
        write(deployed, path, form, card_for(name, network, ["?"] * 1000, preprocessing), {})
    return load(path, count)[0]


def _check(name: str, runtime: str, network: nn.Module, run: Run, images: np.ndarray) -> None:
    with torch.no_grad():
        expected = network(torch.from_numpy(images)).numpy()
    error = float(np.abs(run(images) - expected).max() / np.abs(expected).max())
    if not error < TOLERANCE:
        raise ValueError(
            f"{name} in {runtime} computes something else (relative error {error:.1e}): nothing is timed"
        )


def _blocks(runs: dict[str, Run], images: np.ndarray, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of calls; networks take turns in blocks, each warm, as where it is the only one."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            for turn in range(8):
                start = time.perf_counter()
                run(images)
                if turn >= 3:
                    times[name].append(1e3 * (time.perf_counter() - start))
    return times


def print_latency(rows: list[dict[str, Any]]) -> None:
    """Print a table of medians and of ratios to the last network of each runtime."""
    from rich.table import Table

    table = Table()
    for column in ("runtime", "model"):
        table.add_column(column)
    for column in ("threads", "batch", "ms", "quartiles", "ratio"):
        table.add_column(column, justify="right")
    base = {(row["runtime"], row["threads"], row["batch"]): row["median_ms"] for row in rows}
    for row in rows:
        ratio = row["median_ms"] / base[row["runtime"], row["threads"], row["batch"]]
        spread = f"{row['lower_quartile_ms']:.2f} to {row['upper_quartile_ms']:.2f}"
        table.add_row(
            row["runtime"],
            row["model"],
            str(row["threads"]),
            str(row["batch"]),
            f"{row['median_ms']:.2f}",
            spread,
            f"{ratio:.2f}",
        )
    console().print(table)
