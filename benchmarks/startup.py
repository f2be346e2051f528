"""What the command line costs before it does anything: CPU time of a help text and of a mistake in the flags."""

import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hadaptive.console import say
from hadaptive.errors import UserError
from hadaptive.files import append_csv
from hadaptive.provenance import provenance

BASE = ("-c", "import tyro")
HADAPTIVE = ("-m", "hadaptive")
LINES = {
    "import tyro": BASE,
    "hadaptive --help": (*HADAPTIVE, "--help"),
    **{
        f"hadaptive {name} --help": (*HADAPTIVE, name, "--help")
        for name in ("train", "search", "export", "latency", "evaluate", "predict", "info")
    },
    "hadaptive train --epochs many": (*HADAPTIVE, "train", "--epochs", "many"),
    "hadaptive nonsense": (*HADAPTIVE, "nonsense"),
}


@dataclass(frozen=True)
class StartupConfig:
    """CPU time of help texts and usage errors, in turns with the bare import of the command-line library.

    Attributes:
        results: CSV file that the rows are appended to.
        rounds: processes of each; they take turns.
    """

    results: Path = Path("benchmarks/results/startup.csv")
    rounds: int = 15

    def __post_init__(self) -> None:
        if self.rounds < 2:
            raise UserError(f"rounds must be at least 2, for a spread; got {self.rounds}")


def cpu_seconds(arguments: tuple[str, ...]) -> float:
    """User and system time of a Python process and of its children that it waited for."""
    null = subprocess.DEVNULL
    process = subprocess.Popen([sys.executable, *arguments], stdin=null, stdout=null, stderr=null)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 2):
        raise UserError(f"python {' '.join(arguments)} ended with status {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def bench_startup(config: StartupConfig) -> list[dict[str, Any]]:
    """A row for each command, appended when all are measured; returns them."""
    for arguments in LINES.values():  # the first reads from the disk and writes bytecode
        cpu_seconds(arguments)
    seconds: dict[str, list[float]] = {line: [] for line in LINES}
    for _ in range(config.rounds):
        for line, arguments in LINES.items():
            seconds[line].append(cpu_seconds(arguments))
    base = statistics.median(seconds["import tyro"])
    rows = []
    for line, values in seconds.items():
        low, middle, high = statistics.quantiles(values, n=4)
        row = {"command": line, "cpu_s": middle, "cpu_s_q1": low, "cpu_s_q3": high, "ratio": middle / base}
        rows.append({**row, "rounds": config.rounds, **provenance()})
        say(f"{line:32} {middle:.3f} s of CPU ({low:.3f} to {high:.3f}), {middle / base:.1f} times import tyro")
    config.results.parent.mkdir(parents=True, exist_ok=True)
    append_csv(config.results, rows)
    return rows
