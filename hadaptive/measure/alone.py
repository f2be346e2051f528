"""One network in one runtime, in a process of its own: idle threads of other sessions spin and would be timed too.

:func:`alone` starts it with its task as JSON; it answers with JSON on its last line. PyTorch is imported where the
runtime is PyTorch's: it took ten times as long as all else that a session does.
"""

import importlib
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hadaptive.files import json_text
from hadaptive.measure.runtimes import WITHOUT_PYTORCH, Run
from hadaptive.measure.timing import interleaved


@dataclass(frozen=True)
class Task:
    """What a session does.

    Attributes:
        threads: of the runtime.
        calls: that are timed.
        file: what it runs; None runs `model` in PyTorch.
        model: name, as :func:`hadaptive.measure.untrained.untrained` has it.
        compiled: by torch.compile.
        image_size: of the noise that gives the model its statistics, and of the black image.
        in_chans: of that.
        data: NumPy file of "images" and the "expected" logits; none checks nothing, and times one black image.
        warm_seconds, warm_calls: of calls before it is timed, one after the other.
    """

    threads: int
    calls: int
    file: str | None = None
    model: str = ""
    compiled: bool = False
    image_size: int = 224
    in_chans: int = 3
    data: str = ""
    warm_calls: int = 0
    warm_seconds: float = 0.0


def alone(task: Task, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a :func:`session` in a process of its own.

    Args:
        task: what it does.
        environment: variables to set for it, beside the number of threads.

    Raises:
        RuntimeError: it failed; the last line that it said.
    """
    given = {
        "task": asdict(task),
        "modules": [*filter(None, [registered_by(task.model)])] if task.file is None else [],
        "path": sys.path,
    }
    done = subprocess.run(
        [sys.executable, "-m", "hadaptive.measure.alone", json_text(given)],
        env={**os.environ, **(environment or {}), "OMP_NUM_THREADS": str(task.threads)},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        raise RuntimeError((done.stderr.splitlines() or ["it ended without a word"])[-1])
    answer = json.loads(done.stdout.splitlines()[-1])
    return {**answer, "error": math.nan if answer["error"] is None else answer["error"]}  # as JSON has it


def registered_by(model: str) -> str | None:
    """The module that another process must import before timm knows a network; None where that is timm or we."""
    import timm
    from timm.models import model_entrypoint

    name = model.partition(":")[0]
    module = model_entrypoint(name).__module__ if timm.is_model(name) else "hadaptive"
    return None if module.split(".")[0] in ("timm", "hadaptive") else module


def session(task: Task) -> dict[str, Any]:
    """Check what a network computes, warm it, and time it.

    Returns:
        "error", the median image's largest difference over its largest expected logit (selections of random
        networks may hang on rounding in single images), and "times", milliseconds of each call.
    """
    run = _run(task)
    images, error = np.zeros((1, task.in_chans, task.image_size, task.image_size), np.float32), 0.0
    if task.data:
        with np.load(task.data) as data:
            images, expected = data["images"], data["expected"]
        error = float(np.median(np.abs(run(images) - expected).max(1) / np.abs(expected).max(1)))
    start = time.perf_counter()
    while time.perf_counter() - start < task.warm_seconds:
        run(images)
    times = interleaved({"run": lambda: run(images)}, warmup=task.warm_calls, rounds=task.calls)["run"]
    return {"error": error, "times": times}


def _run(task: Task) -> Run:
    if task.file is not None and Path(task.file).suffix in WITHOUT_PYTORCH:
        return WITHOUT_PYTORCH[Path(task.file).suffix](Path(task.file), task.threads)[0]

    import torch

    from hadaptive.measure.sessions import open_file
    from hadaptive.measure.untrained import untrained

    if task.file is not None:
        return open_file(Path(task.file), task.threads)[0]
    torch.set_num_threads(task.threads)
    network: Any = untrained(task.model, task.image_size)
    if task.compiled:
        network = torch.compile(network)

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(images)).numpy()

    return run


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    sys.path.extend(folder for folder in given["path"] if folder not in sys.path)
    for name in given["modules"]:
        importlib.import_module(name)
    print(json_text(session(Task(**given["task"]))))
