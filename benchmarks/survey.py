"""What ``hadaptive data`` costs on a folder of mixed pictures, some of them large: time of a core, and memory."""

import io
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hadaptive.console import say
from hadaptive.errors import UserError
from hadaptive.files import append_csv
from hadaptive.provenance import provenance

# Of a hundred pictures: how many, their sides, mode and format.
MIXED = (
    (60, (640, 480), "RGB", "JPEG"),
    (12, (1600, 1200), "RGB", "JPEG"),
    (15, (256, 256), "RGB", "PNG"),
    (5, (500, 375), "L", "JPEG"),
    (4, (300, 200), "P", "GIF"),
    (1, (400, 300), "RGBA", "PNG"),
    (2, (4000, 3000), "RGB", "JPEG"),
    (1, (2400, 1800), "RGB", "PNG"),
)
DISTINCT = 100  # scenes; others are these with a byte more, so that no file is another's copy
# A small process in between: the system counts the memory of a process from before it became another program.
MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss)
sys.exit(code)
"""


@dataclass(frozen=True)
class SurveyBenchConfig:
    """Pictures a second of one core, and the most memory, of ``hadaptive data`` in a process of its own.

    Attributes:
        results: CSV file that the row is appended to.
        pictures: how many, mixed as in a folder of photographs, drawings and scans.
        hashes: of so many different pictures near-duplicates are looked for, besides.
        rounds: processes.
    """

    results: Path = Path("benchmarks/results/survey.csv")
    pictures: int = 7500
    hashes: int = 50_000
    rounds: int = 3

    def __post_init__(self) -> None:
        if min(self.pictures, self.hashes) < 100 or self.rounds < 1:
            raise UserError("pictures and hashes must be at least 100, and rounds at least 1")


def mixed(count: int) -> Iterator[tuple[str, bytes]]:
    """Names and contents of pictures with the detail of photographs."""
    rng = np.random.default_rng(0)
    kinds = [(size, mode, kind) for number, size, mode, kind in MIXED for _ in range(number)]
    rng.shuffle(kinds)  # pyright: ignore[reportArgumentType]
    files = []
    for number in range(min(count, DISTINCT)):
        size, mode, kind = kinds[number % len(kinds)]
        coarse = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        grain = rng.normal(0, 6, (size[1], size[0], 1))
        pixels = (np.asarray(picture) + grain).clip(0, 255).astype(np.uint8)
        content = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(content, kind)
        files.append((kind.lower(), content.getvalue()))
    for number in range(count):
        kind, content = files[number % len(files)]
        yield f"{'ab'[number % 2]}/{number}.{kind}", content + number.to_bytes(4, "little")


def run_survey(folder: Path) -> tuple[float, float]:
    """CPU seconds and the most memory in GB of the command on a folder."""
    words = [sys.executable, "-c", MEASURE, sys.executable, "-m", "hadaptive", "data", str(folder), "--json"]
    done = subprocess.run(words, stdout=subprocess.PIPE, encoding="utf-8")
    if done.returncode:
        raise UserError(f"hadaptive data ended with status {done.returncode}")
    seconds, kilobytes = map(float, done.stdout.split())
    return seconds, kilobytes / 2**20


def search_seconds(count: int) -> float:
    """CPU seconds of the search for near-duplicates among so many pictures that have been looked at."""
    from hadaptive.data.alike import THUMBNAIL, Look, alike

    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 256, (count, 8), dtype=np.uint8)
    thumbnails = rng.integers(0, 256, (count, THUMBNAIL**2 * 3), dtype=np.uint8)
    looks = [
        Look(digest=str(i), hash=hashes[i - i % 2], thumbnail=thumbnails[i - i % 2]) for i in range(count)
    ]  # each is there twice
    start = time.process_time()
    found = alike(looks)
    if (found.groups != np.arange(count) // 2 * 2).any():
        raise UserError("the search does not find what is there twice")
    return time.process_time() - start


def bench_survey(config: SurveyBenchConfig) -> dict[str, Any]:
    """One row, appended to the results; returns it."""
    with tempfile.TemporaryDirectory() as place:
        size = 0
        for name, content in mixed(config.pictures):
            path = Path(place, name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            size += len(content)
        rounds = [run_survey(Path(place)) for _ in range(config.rounds)]
    seconds = statistics.median(cpu for cpu, _ in rounds)
    row = {
        "pictures": config.pictures,
        "mb": size / 1e6,
        "cpu_s": seconds,
        "pictures_per_cpu_s": config.pictures / seconds,
        "memory_gb": max(memory for _, memory in rounds),
        "hashes": config.hashes,
        "search_cpu_s": search_seconds(config.hashes),
        "rounds": config.rounds,
        **provenance(),
    }
    speed = f"{row['pictures_per_cpu_s']:.0f} pictures a second of a core, {row['memory_gb']:.2f} GB"
    search = f"near-duplicates of {config.hashes:,} in {row['search_cpu_s']:.1f} s"
    say(f"{config.pictures:,} pictures: {speed}; {search}")
    config.results.parent.mkdir(parents=True, exist_ok=True)
    append_csv(config.results, [row])
    return row
