"""Latency of whole networks where they are deployed: PyTorch and three runtimes; one image or several."""

import itertools
import re
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hadaptive.bench.config import LatencyBenchConfig
from hadaptive.bench.tradeoff import plot_tradeoff
from hadaptive.cards import card_for
from hadaptive.console import console
from hadaptive.data import Preprocessing
from hadaptive.errors import UserError
from hadaptive.export.int8 import quantise
from hadaptive.export.proof import UNTRAINED, file_size
from hadaptive.files import append_csv, read_csv
from hadaptive.info import inspect_network
from hadaptive.measure.alone import Task, alone
from hadaptive.measure.formats import SUFFIXES, check_format
from hadaptive.measure.lowering import write
from hadaptive.measure.passes import prepare
from hadaptive.measure.setting import LOWERED
from hadaptive.measure.timing import quartiles
from hadaptive.measure.untrained import untrained
from hadaptive.models import HadaptiveNet
from hadaptive.provenance import provenance

QUANTISED = ("onnxruntime", "openvino")  # runtimes that int8 networks are written for


def bench_latency(config: LatencyBenchConfig) -> list[dict[str, Any]]:
    """Time, print and append the rows; returns them.

    Raises:
        UserError: a network is unknown, a runtime's package is missing, or a runtime computes something else.
    """
    for runtime in config.runtimes:
        if runtime in LOWERED:
            int8 = runtime in QUANTISED and any(name.endswith(":int8") for name in config.models)
            check_format(LOWERED[runtime], int8=int8)
    rows: list[dict[str, Any]] = []
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")  # ratios are within one session
    networks = {name: untrained(name, config.image_size) for name in config.models}
    costs = {name: _costs(network, config) for name, network in networks.items()}
    config.results.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        data = {batch: _data(networks, batch, config, Path(folder)) for batch in config.batches}
        for runtime in config.runtimes:
            models = [n for n in networks if runtime in QUANTISED or not n.endswith(":int8")]
            files = {name: _file(name, networks[name], runtime, config, Path(folder)) for name in models}
            for count, batch in itertools.product(config.threads, config.batches):
                times: dict[str, list[float]] = {name: [] for name in models}
                for _, name in itertools.product(range(config.rounds), models):
                    answer = _session(name, files[name], data[batch][name], runtime, count, config)
                    # A quantised network is another function, whose accuracy is measured elsewhere.
                    if not name.endswith(":int8") and not answer["error"] < UNTRAINED.tolerance:
                        raise UserError(
                            f"{name} in {runtime} computes something else (relative error {answer['error']:.1e}): "
                            "its rows are not written"
                        )
                    times[name] += answer["times"]
                where = {**provenance("cpu"), "threads": count}
                new = [
                    {
                        "session": started,
                        "model": name,
                        "runtime": runtime,
                        "isa": config.isa,
                        "batch": batch,
                        "image_size": config.image_size,
                        **quartiles(times[name]),
                        **costs[name],
                        "bytes": "" if (path := files[name]) is None else file_size(path),
                        **where,
                    }
                    for name in models
                ]
                append_csv(config.results, new)
                rows += new
    print_latency(rows)
    if config.accuracy is not None:
        picture = config.results.with_suffix(".png")
        if plot_tradeoff(rows, read_csv(config.accuracy), picture):
            console().print(f"accuracy against latency: {picture}", soft_wrap=True)
        else:
            console().print(f"{config.accuracy} has rows of none of these networks: nothing is drawn")
    return rows


def _costs(network: nn.Module, config: LatencyBenchConfig) -> dict[str, Any]:
    info = inspect_network(network, (3, config.image_size, config.image_size))
    return {"parameters": info.parameters, "macs": info.macs, "products": info.products}


def _stem(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "-", name)


def _data(networks: dict[str, nn.Module], batch: int, config: LatencyBenchConfig, folder: Path) -> dict[str, Path]:
    """Files of one batch of images and what each network makes of them."""
    images = np.random.default_rng(0).standard_normal((batch, 3, *[config.image_size] * 2), np.float32)
    paths = {}
    for name, network in networks.items():
        paths[name] = folder / f"{_stem(name)}-{batch}.npz"
        with torch.no_grad():
            np.savez(paths[name], images=images, expected=network(torch.from_numpy(images)).numpy())
    return paths


def _file(name: str, network: nn.Module, runtime: str, config: LatencyBenchConfig, folder: Path) -> Path | None:
    """The network as its runtime reads it; None for PyTorch."""
    if runtime not in LOWERED:
        return None
    form = LOWERED[runtime]
    path = folder / f"{_stem(name)}{SUFFIXES[form]}"
    # The published network is exported as it is, with nothing of ours but the exporter.
    ours = type(network) is HadaptiveNet
    deployed = prepare(network, config.align)[0] if ours else network
    preprocessing = Preprocessing(image_size=config.image_size, mean=(0.5,) * 3, std=(0.5,) * 3)
    int8 = name.endswith(":int8")
    plain = path.with_stem(f"{path.stem}-float32") if int8 else path
    write(deployed, plain, form, card_for(name, network, ["?"] * 1000, preprocessing), {})
    if int8:
        images = np.random.default_rng(1).standard_normal((32, 3, *[config.image_size] * 2), np.float32)
        quantise(plain, path, form, images, keep=())
    return path


def _session(
    name: str, file: Path | None, data: Path, runtime: str, count: int, config: LatencyBenchConfig
) -> dict[str, Any]:
    limits = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"} if config.isa == "avx2" else {}
    task = Task(
        threads=count,
        calls=config.calls,
        file=None if file is None else str(file),
        model=name,
        compiled=runtime == "compile",
        image_size=config.image_size,
        data=str(data),
        warm_seconds=0.5,
    )
    try:
        return alone(task, limits)
    except RuntimeError as error:
        raise UserError(f"{name} cannot be run in {runtime}: {error}") from None


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
