"""Other processes, forked from one that has everything imported: importing takes longer than most tests."""

import gc
import multiprocessing
import multiprocessing.connection
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dying
import torch

TESTS = Path(__file__).parent
MODULES = ["accelerate", "timm.data", "torch.distributed", "sklearn.datasets", "torchvision.transforms"]
OURS = ["cli", "commands", "train.launch", "search.studies", "evaluate", "predict"]

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload([*MODULES, *(f"hadaptive.{name}" for name in OURS), "dying"])


PATIENCE = 240.0  # seconds without any end


def forked(
    work: Callable[..., object], *arguments: object, environments: tuple[dict[str, str], ...] = ({},)
) -> subprocess.CompletedProcess:
    """Call a function of a module in processes of their own, one for each environment.

    When one fails the others are killed, as torchrun does, and all are where nothing ends for long: they wait for
    each other in different places.

    Returns:
        The status (of the first that failed, a signal's number negative) and what all of them printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for rank, environment in enumerate(environments):
            place = (Path(folder), rank, environment, torch.get_num_threads())
            process = _forks.Process(target=_work, args=(*place, work, arguments))
            process.start()
            running.append(process)
        status, waiting = 0, list(running)
        while waiting:
            if not multiprocessing.connection.wait([process.sentinel for process in waiting], PATIENCE):
                for process in waiting:
                    process.kill()
            for process in [process for process in waiting if process.exitcode is not None]:
                waiting.remove(process)
                if process.exitcode and not status:
                    status = process.exitcode
                    for other in waiting:
                        other.kill()
        out, err = (
            "".join(path.read_text(encoding="utf-8") for path in sorted(Path(folder).glob(f"{n}-*")))
            for n in (1, 2)
        )
    return subprocess.CompletedProcess([], status, out, err)


def _work(
    folder: Path,
    rank: int,
    environment: dict[str, str],
    threads: int,
    work: Callable[..., object],
    arguments: tuple[Any, ...],
) -> None:
    gc.freeze()  # all that was imported would be looked through for garbage, and copied for that
    for stream in (1, 2):
        os.dup2(os.open(folder / f"{stream}-{rank}", os.O_WRONLY | os.O_CREAT), stream)
    sys.stdout, sys.stderr = (open(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))  # noqa: SIM115
    os.environ.update(environment)
    if torch.get_num_threads() != threads:  # otherwise left alone: setting it may change the last bits
        torch.set_num_threads(threads)
    sys.exit(work(*arguments) or 0)


def launch(processes: int, arguments: list[str], die_at: int = 0) -> subprocess.CompletedProcess:
    """`hadaptive` as under torchrun on the CPU (gloo); killed with SIGKILL, all of it, in its step `die_at`."""
    return launch_work(processes, dying.command, arguments, die_at)


def launch_work(processes: int, work: Callable[..., object], *arguments: object) -> subprocess.CompletedProcess:
    """A function as torchrun would call a script, in so many processes that find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    common["LOCAL_WORLD_SIZE"] = str(processes)
    ranks = tuple({**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes))
    return forked(work, *arguments, environments=ranks)


def torchrun(processes: int, arguments: list[str]) -> subprocess.CompletedProcess:
    """`hadaptive` under torchrun itself, as typed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run(
        [*command, "-m", "hadaptive", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def run_python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run code that may import from tests/ in a new interpreter."""
    code = f"import sys; sys.path.insert(0, {str(TESTS)!r})\n{code}"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        encoding="utf-8",
        errors="backslashreplace",  # under another locale
        check=False,
    )
