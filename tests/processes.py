"""Other processes: `hadaptive` under torchrun, and Python code that may kill itself."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def launch(processes: int, arguments: list[str]) -> subprocess.CompletedProcess:
    """`hadaptive` under torchrun on the CPU (gloo)."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "-m", "hadaptive", *arguments], env=environment, capture_output=True, text=True, check=False
    )


def run_python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run code that may import from tests/ in a process of its own."""
    code = f"import sys; sys.path.insert(0, {str(TESTS)!r})\n{code}"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
