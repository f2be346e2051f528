"""The commands of ``hadaptive bench``: each takes its own flags."""

from collections.abc import Callable

import tyro

from hadaptive.bench.config import AccuracyConfig, LatencyBenchConfig, NetworksConfig


def _accuracy(arguments: list[str]) -> None:
    config = tyro.cli(AccuracyConfig, prog="hadaptive bench accuracy", args=arguments)
    from hadaptive.bench.accuracy import bench_accuracy, print_accuracy

    print_accuracy(bench_accuracy(config))


def _latency(arguments: list[str]) -> None:
    config = tyro.cli(LatencyBenchConfig, prog="hadaptive bench latency", args=arguments)
    from hadaptive.bench.latency import bench_latency

    bench_latency(config)


def _networks(arguments: list[str]) -> None:
    config = tyro.cli(NetworksConfig, prog="hadaptive bench networks", args=arguments)
    from hadaptive.bench.networks import bench_networks

    bench_networks(config)


BENCHMARKS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "accuracy": (_accuracy, "trained under one recipe with several seeds"),
    "latency": (_latency, "timed where they are deployed: PyTorch, ONNX Runtime, OpenVINO"),
    "networks": (_networks, "a training step and the latency of one image, in PyTorch"),
}
