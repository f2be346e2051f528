"""All that wants a GPU and no data, in commands of less than ten minutes: `make bench-gpu RESULTS=folder`.

Correctness first: the doctor's checks, then the Triton kernels' tests with every schedule, where pytest is
installed; if one fails nothing is timed. Then come steps, the most wanted first: one that fails is told and the
others run; one for which no time is left is named, and `make bench-gpu RESULTS=folder STEPS="latency search"` runs
those that are named, without the tests. It runs from the source tree and needs no command-line library, because
GPU machines seldom have ours installed.
"""

import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

import benchmarks.textbook  # noqa: F401 (registers the published networks)
from benchmarks.operators import GPU_SHAPES, OpsConfig, bench_ops
from hadaptive.bench.config import NetworksConfig
from hadaptive.bench.networks import bench_networks
from hadaptive.console import say
from hadaptive.doctor import diagnose, print_diagnosis
from hadaptive.errors import UserError, first_line
from hadaptive.files import append_csv
from hadaptive.provenance import provenance

SECONDS = 540  # of one command; GPU machines are lent for ten minutes at a time
TEST_SECONDS = 240
NETWORKS = ("hadaptive_net_s", "hadaptive_net_s_published", "mobilenetv4_conv_small")
ROOT = Path(__file__).resolve().parents[1]
SINGLE = tuple((channels, k, side, 1) for channels, k, side, _ in GPU_SHAPES)


@dataclass(frozen=True)
class Step:
    """Something to time.

    Attributes:
        seconds: that it is expected to take, compilation included.
        run: does it and writes rows into a folder.
    """

    seconds: int
    run: Callable[[Path], object]


def _operators(shapes: tuple, dtype: str, results: Path, compiled: bool = False) -> None:
    config = OpsConfig(results / "ops-gpu.csv", device="cuda", dtype=dtype, rounds=50, compiled=compiled)
    bench_ops(config, shapes)


def _networks(results: Path) -> None:
    bench_networks(NetworksConfig(NETWORKS, results / "networks-gpu.csv", device="cuda", batch=64))


def _search(part: Literal["price", "table"], results: Path) -> None:
    from benchmarks.search import SearchBenchConfig, bench_search

    bench_search(SearchBenchConfig(results=results, device="cuda", parts=(part,)))


def _latency(results: Path) -> None:
    from hadaptive.measure.setting import Setting
    from hadaptive.search.latency import latency_command

    latency_command("published", Setting("pytorch", "cuda"), results / "latency-gpu.json", 60, None)


STEPS = {
    "kernels": Step(40, partial(_operators, GPU_SHAPES[:1], "bfloat16")),
    "networks": Step(80, _networks),
    "single": Step(60, partial(_operators, SINGLE, "bfloat16")),
    "float32": Step(40, partial(_operators, GPU_SHAPES[:1], "float32")),
    "shapes": Step(60, partial(_operators, GPU_SHAPES[1:], "bfloat16")),
    "compiled": Step(150, partial(_operators, GPU_SHAPES[:1], "bfloat16", compiled=True)),
    "latency": Step(150, _latency),
    "search": Step(90, partial(_search, "price")),
    "table": Step(150, partial(_search, "table")),
}


def _check() -> None:
    if not torch.cuda.is_available():
        raise UserError("there is no GPU that PyTorch can use here")
    checks = diagnose()
    print_diagnosis(checks)
    if not all(check.passed for check in checks):
        raise UserError("the doctor's checks failed: nothing was timed")


def _test() -> None:
    """The kernels' own tests, all of them even if one fails: a GPU's time is dear."""
    tests = ROOT / "tests" / "test_triton.py"
    if not importlib.util.find_spec("pytest") or not tests.is_file():
        say("the tests of the Triton kernels did not run: they need pytest and a checkout")
        return
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    try:
        done = subprocess.run(command, cwd=ROOT, timeout=TEST_SECONDS)
    except subprocess.TimeoutExpired:
        raise UserError(f"the tests of the Triton kernels took more than {TEST_SECONDS} s") from None
    if done.returncode:
        raise UserError("the tests of the Triton kernels failed: nothing was timed")


def bench_gpu(results: Path, steps: tuple[str, ...] = ()) -> None:
    """Check, then time, then write rows to the folder `results`.

    Args:
        results: folder of the CSV files; gpu-steps.csv says what became of each step.
        steps: names of ``STEPS``; without any, the tests run and then all steps for which there is time.

    Raises:
        UserError: a step is unknown, there is no GPU, a kernel computes something wrong, or a step failed.
    """
    if unknown := [name for name in steps if name not in STEPS]:
        raise UserError(f"unknown step {unknown[0]!r}; choose from {', '.join(STEPS)}")
    started = time.monotonic()
    _check()
    if not steps:
        _test()
    results.mkdir(parents=True, exist_ok=True)
    failed, left = [], []
    for name in steps or tuple(STEPS):
        begun = time.monotonic()
        if begun - started + STEPS[name].seconds > SECONDS:
            left.append(name)
            continue
        outcome = "done"
        try:
            STEPS[name].run(results)
        except Exception as error:  # whatever it is, the other steps are worth their time
            outcome = f"{type(error).__name__}: {first_line(error)}"
            failed.append(name)
        seconds = round(time.monotonic() - begun, 1)
        say(f"step {name}: {outcome}, {seconds} s")
        row = {"step": name, "seconds": seconds, "outcome": outcome}
        append_csv(results / "gpu-steps.csv", [row | provenance("cuda")])
    if left:
        say(f'no time was left: make bench-gpu RESULTS={results} STEPS="{" ".join(left)}"')
    if failed:
        raise UserError(f"steps failed: {', '.join(failed)}")
