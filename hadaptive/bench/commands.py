"""The commands of ``hadaptive bench``: each takes its own flags."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro
from tyro.conf import Positional


@dataclass(frozen=True)
class ReportCommand:
    """Write the tables of a Markdown page anew from the result rows they name.

    Attributes:
        page: the Markdown file.
    """

    page: Positional[Path] = Path("README.md")


def _accuracy(arguments: list[str]) -> None:
    from hadaptive.bench.accuracy import AccuracyConfig, bench_accuracy, print_accuracy

    config = tyro.cli(AccuracyConfig, prog="hadaptive bench accuracy", args=arguments)
    print_accuracy(bench_accuracy(config))


def _report(arguments: list[str]) -> None:
    command = tyro.cli(ReportCommand, prog="hadaptive bench report", args=arguments)
    from hadaptive.bench.report import report

    print(f"{report(command.page)} tables written in {command.page}")


def _ops(arguments: list[str]) -> None:
    from hadaptive.bench.operators import OpsConfig, bench_ops

    bench_ops(tyro.cli(OpsConfig, prog="hadaptive bench ops", args=arguments))


def _networks(arguments: list[str]) -> None:
    from hadaptive.bench.networks import NetworksConfig, bench_networks

    bench_networks(tyro.cli(NetworksConfig, prog="hadaptive bench networks", args=arguments))


def _deployment(arguments: list[str]) -> None:
    from hadaptive.bench.deployment import DeploymentConfig, bench_deployment

    bench_deployment(tyro.cli(DeploymentConfig, prog="hadaptive bench deployment", args=arguments))


def _parity(arguments: list[str]) -> None:
    from hadaptive.bench.deployment import ParityConfig, bench_parity

    bench_parity(tyro.cli(ParityConfig, prog="hadaptive bench parity", args=arguments))


def _latency(arguments: list[str]) -> None:
    from hadaptive.bench.latency import LatencyBenchConfig, bench_latency

    bench_latency(tyro.cli(LatencyBenchConfig, prog="hadaptive bench latency", args=arguments))


def _search(arguments: list[str]) -> None:
    from hadaptive.bench.search import SearchBenchConfig, bench_search

    bench_search(tyro.cli(SearchBenchConfig, prog="hadaptive bench search", args=arguments))


BENCHMARKS: dict[str, Callable[[list[str]], None]] = {
    "accuracy": _accuracy,
    "deployment": _deployment,
    "latency": _latency,
    "networks": _networks,
    "ops": _ops,
    "parity": _parity,
    "report": _report,
    "search": _search,
}
