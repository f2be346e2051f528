"""The commands of ``hadaptive bench``: each takes its own flags."""

from collections.abc import Callable

import tyro


def _accuracy(arguments: list[str]) -> None:
    from hadaptive.bench.accuracy import AccuracyConfig, bench_accuracy, print_accuracy

    config = tyro.cli(AccuracyConfig, prog="hadaptive bench accuracy", args=arguments)
    print_accuracy(bench_accuracy(config))


def _latency(arguments: list[str]) -> None:
    from hadaptive.bench.latency import LatencyBenchConfig, bench_latency

    bench_latency(tyro.cli(LatencyBenchConfig, prog="hadaptive bench latency", args=arguments))


def _networks(arguments: list[str]) -> None:
    from hadaptive.bench.networks import NetworksConfig, bench_networks

    bench_networks(tyro.cli(NetworksConfig, prog="hadaptive bench networks", args=arguments))


BENCHMARKS: dict[str, Callable[[list[str]], None]] = {
    "accuracy": _accuracy,
    "latency": _latency,
    "networks": _networks,
}
