"""``python -m benchmarks NAME FLAGS``, from a checkout: each takes its own flags, as --help shows.

The commands of ``hadaptive bench`` are here, too, with the published networks to compare with: they are known as
hadaptive_net_s_published and its like.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from hadaptive.errors import UserError


def _gpu(arguments: list[str]) -> None:
    from benchmarks.gpu import bench_gpu

    # No flags: a GPU machine may have no command-line library.
    bench_gpu(Path(arguments[0] if arguments else "benchmarks/results"), tuple(arguments[1:]))


def _kernels(arguments: list[str]) -> None:
    from benchmarks.kernels import KernelsConfig, bench_kernels
    from hadaptive.parsing import parsed

    bench_kernels(parsed(KernelsConfig, "python -m benchmarks kernels", arguments))


def _cache(arguments: list[str]) -> None:
    from benchmarks.cache import CacheConfig, bench_cache
    from hadaptive.parsing import parsed

    bench_cache(parsed(CacheConfig, "python -m benchmarks cache", arguments))


def _compiled(arguments: list[str]) -> None:
    import benchmarks.textbook  # noqa: F401 (registers the published S)
    from benchmarks.compiled import CompiledConfig, bench_compiled
    from hadaptive.parsing import parsed

    bench_compiled(parsed(CompiledConfig, "python -m benchmarks compiled", arguments))


def _ops(arguments: list[str]) -> None:
    from benchmarks.operators import OpsConfig, bench_ops
    from hadaptive.parsing import parsed

    bench_ops(parsed(OpsConfig, "python -m benchmarks ops", arguments))


def _norms(arguments: list[str]) -> None:
    from benchmarks.norms import NormsConfig, bench_norms
    from hadaptive.parsing import parsed

    bench_norms(parsed(NormsConfig, "python -m benchmarks norms", arguments))


def _depthwise(arguments: list[str]) -> None:
    from benchmarks.depthwise import DepthwiseConfig, bench_depthwise
    from hadaptive.parsing import parsed

    bench_depthwise(parsed(DepthwiseConfig, "python -m benchmarks depthwise", arguments))


def _products(arguments: list[str]) -> None:
    from benchmarks.products import ProductsConfig, bench_products
    from hadaptive.parsing import parsed

    bench_products(parsed(ProductsConfig, "python -m benchmarks products", arguments))


def _search(arguments: list[str]) -> None:
    from benchmarks.search import SearchBenchConfig, bench_search
    from hadaptive.parsing import parsed

    bench_search(parsed(SearchBenchConfig, "python -m benchmarks search", arguments))


def _ship(arguments: list[str]) -> None:
    from benchmarks.ship import ShipConfig, ship
    from hadaptive.parsing import parsed

    ship(parsed(ShipConfig, "python -m benchmarks ship", arguments))


def _starts(arguments: list[str]) -> None:
    from benchmarks.starts import StartsConfig, bench_starts
    from hadaptive.parsing import parsed

    bench_starts(parsed(StartsConfig, "python -m benchmarks starts", arguments))


def _startup(arguments: list[str]) -> None:
    from benchmarks.startup import StartupConfig, bench_startup
    from hadaptive.parsing import parsed

    bench_startup(parsed(StartupConfig, "python -m benchmarks startup", arguments))


def _deployment(arguments: list[str]) -> None:
    from benchmarks.deployment import DeploymentConfig, bench_deployment
    from hadaptive.parsing import parsed

    bench_deployment(parsed(DeploymentConfig, "python -m benchmarks deployment", arguments))


def _survey(arguments: list[str]) -> None:
    from benchmarks.survey import SurveyBenchConfig, bench_survey
    from hadaptive.parsing import parsed

    bench_survey(parsed(SurveyBenchConfig, "python -m benchmarks survey", arguments))


def _parity(arguments: list[str]) -> None:
    from benchmarks.deployment import ParityConfig, bench_parity
    from hadaptive.parsing import parsed

    bench_parity(parsed(ParityConfig, "python -m benchmarks parity", arguments))


def _ranking(arguments: list[str]) -> None:
    from benchmarks.ranking import RankingConfig, ranking
    from hadaptive.bench.commands import FLAT
    from hadaptive.parsing import parsed

    ranking(parsed(RankingConfig, "python -m benchmarks ranking", arguments, config=FLAT))


def _report(arguments: list[str]) -> None:
    from benchmarks.report import report

    for page in map(Path, arguments or ["README.md"]):
        print(f"{report(page)} tables written in {page}")


def _with(models: tuple[str, ...], *, before: str) -> tuple[str, ...]:
    """A command's default networks with the published S before one of them."""
    import benchmarks.textbook  # noqa: F401 (registers it)

    place = models.index(before)
    return (*models[:place], "hadaptive_net_s_published", *models[place:])


def _accuracy(arguments: list[str]) -> None:
    from hadaptive.bench.accuracy import bench_accuracy, print_accuracy
    from hadaptive.bench.commands import FLAT
    from hadaptive.bench.config import RIVALS, AccuracyConfig
    from hadaptive.parsing import parsed

    default = AccuracyConfig(models=_with(RIVALS, before="mobilenetv4_conv_small"))
    config = parsed(AccuracyConfig, "python -m benchmarks accuracy", arguments, config=FLAT, default=default)
    print_accuracy(bench_accuracy(config))


def _latency(arguments: list[str]) -> None:
    from hadaptive.bench.config import LatencyBenchConfig
    from hadaptive.bench.latency import bench_latency
    from hadaptive.parsing import parsed

    default = LatencyBenchConfig(models=_with(LatencyBenchConfig.models, before="hadaptive_net_s"))
    bench_latency(parsed(LatencyBenchConfig, "python -m benchmarks latency", arguments, default=default))


def _networks(arguments: list[str]) -> None:
    from hadaptive.bench.config import NetworksConfig
    from hadaptive.bench.networks import bench_networks
    from hadaptive.parsing import parsed

    default = NetworksConfig(models=_with(NetworksConfig.models, before="mobilenetv4_conv_small"))
    bench_networks(parsed(NetworksConfig, "python -m benchmarks networks", arguments, default=default))


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "accuracy": _accuracy,
    "cache": _cache,
    "compiled": _compiled,
    "deployment": _deployment,
    "depthwise": _depthwise,
    "norms": _norms,
    "gpu": _gpu,
    "kernels": _kernels,
    "latency": _latency,
    "networks": _networks,
    "ops": _ops,
    "parity": _parity,
    "products": _products,
    "ranking": _ranking,
    "report": _report,
    "search": _search,
    "ship": _ship,
    "starts": _starts,
    "startup": _startup,
    "survey": _survey,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark; the exit status is 0, or 1 for bad input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] not in COMMANDS:
        print(f"say which: python -m benchmarks {' | '.join(COMMANDS)}", file=sys.stderr)
        return 1
    try:
        COMMANDS[arguments[0]](arguments[1:])
    except UserError as error:
        print(f"benchmarks {arguments[0]}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
