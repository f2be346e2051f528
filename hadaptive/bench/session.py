"""One network in one runtime, in a process of its own: idle threads of other sessions spin and would be timed too.

Started by :mod:`hadaptive.bench.latency` with its task as JSON; answers with JSON on the last line.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from hadaptive.measure.sessions import Run, load
from hadaptive.measure.timing import interleaved


def _run(task: dict[str, Any]) -> Run:
    if task["runtime"] not in ("eager", "compile"):
        return load(Path(task["file"]), task["threads"])[0]
    import torch

    from hadaptive.bench.latency import network_of

    torch.set_num_threads(task["threads"])
    network: Any = network_of(task["model"], task["image_size"])
    if task["runtime"] == "compile":
        network = torch.compile(network)

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(images)).numpy()

    return run


def session(task: dict[str, Any]) -> dict[str, Any]:
    """Check what a network computes, warm it, and time it.

    Returns:
        "error", the median image's largest difference over its largest expected logit (selections of random
        networks may hang on rounding in single images), and "times", milliseconds of each call.
    """
    run = _run(task)
    with np.load(task["data"]) as data:
        images, expected = data["images"], data["expected"]
    found = run(images)
    error = float(np.median(np.abs(found - expected).max(1) / np.abs(expected).max(1)))
    start = time.perf_counter()
    while time.perf_counter() - start < task["warm_seconds"]:
        run(images)
    times = interleaved({"run": lambda: run(images)}, warmup=0, rounds=task["calls"])["run"]
    return {"error": error, "times": times}


if __name__ == "__main__":
    print(json.dumps(session(json.loads(sys.argv[1]))))
