"""Other processes: `hadaptive` under torchrun, and Python code that may kill itself."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def launch(processes: int, arguments: list[str], die_at: int = 0) -> subprocess.CompletedProcess:
    """`hadaptive` under torchrun on the CPU (gloo); killed with SIGKILL, all of it, in its step `die_at`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    program = ["-m", "hadaptive"] if not die_at else [str(TESTS / "dying.py"), str(die_at)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *program, *arguments], env=environment, capture_output=True, text=True, check=False
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
