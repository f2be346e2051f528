"""All that wants a GPU, in one command: `make bench-gpu RESULTS=folder`.

Correctness first (the doctor's checks, then the Triton kernels' tests where pytest is installed), then the
operators in bfloat16 and float32 with every schedule, then whole networks. It runs from the source tree and needs
no command-line library, because GPU machines seldom have ours installed.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import torch

import benchmarks.textbook  # noqa: F401 (registers the published networks)
from benchmarks.operators import OpsConfig, bench_ops
from hadaptive.bench.config import NetworksConfig
from hadaptive.bench.networks import bench_networks
from hadaptive.doctor import diagnose, print_diagnosis
from hadaptive.errors import UserError

NETWORKS = ("hadaptive_net_s", "hadaptive_net_s_published", "mobilenetv4_conv_small")
ROOT = Path(__file__).resolve().parents[1]


def bench_gpu(results: Path) -> None:
    """Check, then time, then write rows to the folder `results`.

    Raises:
        UserError: there is no GPU, or a kernel computes something wrong.
    """
    if not torch.cuda.is_available():
        raise UserError("there is no GPU that PyTorch can use here")
    checks = diagnose()
    print_diagnosis(checks)
    if not all(check.passed for check in checks):
        raise UserError("the doctor's checks failed: nothing was timed")
    tests = ROOT / "tests" / "test_triton.py"
    if importlib.util.find_spec("pytest") and tests.is_file():
        done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", str(tests)], cwd=ROOT)
        if done.returncode:
            raise UserError("the tests of the Triton kernels failed: nothing was timed")
    for dtype in ("bfloat16", "float32"):
        bench_ops(OpsConfig(results=results / "ops-gpu.csv", device="cuda", dtype=dtype, rounds=50, sweep=True))
    bench_networks(NetworksConfig(NETWORKS, results / "networks-gpu.csv", device="cuda", batch=64))
