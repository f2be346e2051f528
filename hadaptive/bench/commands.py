"""The commands of ``hadaptive bench``: each takes its own flags."""

from collections.abc import Callable

import tyro

from hadaptive.bench.config import (
    AblationConfig,
    AccuracyConfig,
    LatencyBenchConfig,
    NetworksConfig,
    PluginConfig,
    StabilityConfig,
)
from hadaptive.parsing import parsed

FLAT = (tyro.conf.OmitArgPrefixes,)  # a part's settings are flags like any other


def _accuracy(arguments: list[str]) -> None:
    config = parsed(AccuracyConfig, "hadaptive bench accuracy", arguments, config=FLAT)
    from hadaptive.bench.accuracy import bench_accuracy, print_accuracy

    print_accuracy(bench_accuracy(config))


def _latency(arguments: list[str]) -> None:
    config = parsed(LatencyBenchConfig, "hadaptive bench latency", arguments)
    from hadaptive.bench.latency import bench_latency

    bench_latency(config)


def _networks(arguments: list[str]) -> None:
    config = parsed(NetworksConfig, "hadaptive bench networks", arguments)
    from hadaptive.bench.networks import bench_networks

    bench_networks(config)


def _ablation(arguments: list[str]) -> None:
    config = parsed(AblationConfig, "hadaptive bench ablation", arguments, config=FLAT)
    from hadaptive.bench.trial import bench_ablation

    bench_ablation(config)


def _plugin(arguments: list[str]) -> None:
    config = parsed(PluginConfig, "hadaptive bench plugin", arguments, config=FLAT)
    from hadaptive.bench.trial import bench_plugin

    bench_plugin(config)


def _stability(arguments: list[str]) -> None:
    config = parsed(StabilityConfig, "hadaptive bench stability", arguments, config=FLAT)
    from hadaptive.bench.stability import bench_stability

    bench_stability(config)


BENCHMARKS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "accuracy": (_accuracy, "trained under one recipe with several seeds"),
    "latency": (_latency, "timed where they are deployed: PyTorch, ONNX Runtime, OpenVINO, ExecuTorch"),
    "ablation": (_ablation, "a network with each part of its ACH blocks changed: accuracy beside its cost"),
    "plugin": (_plugin, "networks with and without ACH in place of their last two expansions"),
    "stability": (_stability, "products and gradients over a training, under each norm"),
    "networks": (_networks, "a training step and the latency of one image, in PyTorch"),
}
