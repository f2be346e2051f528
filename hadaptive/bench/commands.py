"""The commands of ``hadaptive bench``: each takes its own flags."""

from collections.abc import Callable

from hadaptive.bench.config import AccuracyConfig, LatencyBenchConfig, NetworksConfig
from hadaptive.parsing import parsed


def _accuracy(arguments: list[str]) -> None:
    config = parsed(AccuracyConfig, "hadaptive bench accuracy", arguments)
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


BENCHMARKS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "accuracy": (_accuracy, "trained under one recipe with several seeds"),
    "latency": (_latency, "timed where they are deployed: PyTorch, ONNX Runtime, OpenVINO"),
    "networks": (_networks, "a training step and the latency of one image, in PyTorch"),
}
