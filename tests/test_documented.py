"""What README, docs and the Makefile tell a person to type runs as typed, but for the budget in one table."""

import dataclasses
import json
import re
import runpy
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from documented import DOCUMENTS, ROOT, Shown, sections, targets
from folders import picture
from hub import standing_in
from processes import torchrun
from tiny import TINY, WIDE_CHOICE, WIDE_SPACE

from benchmarks import cache as bench_cache
from benchmarks import deployment, kernels, operators, products
from benchmarks import depthwise as bench_depthwise
from benchmarks import search as bench_search
from benchmarks.__main__ import COMMANDS as BENCHMARKS
from benchmarks.__main__ import main as benchmarks
from hadaptive import cli
from hadaptive.engine.recipes import RECIPES
from hadaptive.engine.stopping import StopRequest
from hadaptive.search import latency

# Libraries' own, while they export.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.rendered,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

# All that a test may shorten: flags added to commands that begin so, the longest beginning counts.
SHORTER = {
    "hadaptive train": "--epochs 1 --image-size 32 --batch-size 16",
    "hadaptive train --resume runs/mine --epochs": "--epochs 2",
    "hadaptive train --data path/to/labels.csv": "--epochs 1 --image-size 32 --batch-size 16 --model tiny.json",
    "hadaptive train --data path/to/folder --recipe folder --group-by": (
        "--epochs 1 --image-size 32 --batch-size 16 --model tiny.json"
    ),
    "hadaptive train --data path/to/folder --recipe folder --find-lr": (
        "--epochs 1 --image-size 32 --batch-size 16 --model tiny.json"
    ),
    "hadaptive train --data path/to/folder --recipe folder --dry-run": (
        "--epochs 1 --image-size 32 --batch-size 16 --model tiny.json"
    ),
    "torchrun": "--data path/to/folder --output runs/two --epochs 1 --image-size 32 --batch-size 16",
    "hadaptive search": "--epochs 2 --image-size 32 --batch-size 16 --space tiny-space.json",
    "hadaptive search --data path/to/folder --recipe folder --space star": (
        "--epochs 1 --image-size 32 --batch-size 16 --space tiny-space.json --population 4 --generations 4"
    ),
    "hadaptive search --data path/to/folder --recipe folder --latency-target 0.8xS --seeds": (
        "--epochs 1 --image-size 32 --batch-size 16 --space tiny-space.json --seeds 2 --baseline random 2 "
        "--retrain-seeds 1"
    ),
    "hadaptive search --recipe fmnist-small": (
        "--space tiny-space.json --seeds 2 --baseline random 2 --retrain-seeds 1"
    ),
    "hadaptive latency": "--image-size 32 --rounds 5 --networks 3",
    "hadaptive export runs/mine": "--images 40 --calibration 16 --sensitivity 16",
    "hadaptive export hadaptive_net_s": "--image-size 32 --num-classes 3 --images 4",
    "hadaptive demo": "--epochs 1",
    "hadaptive bench accuracy": "--models tiny.json --seeds 0 --rates 3e-3",
    "hadaptive bench accuracy --recipe cooccurrence": "--models tiny.json --seeds 0 --rates 3e-3 --rate-epochs 1",
    "hadaptive bench accuracy --recipe fmnist-long": "--models tiny.json --seeds 0 --rates 3e-3 --rate-epochs 1",
    "hadaptive bench accuracy --recipe few-50 --executor ray": (
        "--models tiny.json --seeds 0 --train-size 80 --epochs 1 --threads 1"
    ),
    "hadaptive bench stability": "--model tiny.json --norms dysoft --epochs 1",
    "hadaptive bench ablation": "--model tiny.json --groups k --seeds 0 --rates 3e-3 --no-measure",
    "hadaptive bench plugin": "--models mobilenetv3_small_050 --seeds 0 --rates 3e-3 --no-measure",
    "hadaptive bench networks": "--models tiny.json --image-size 32 --batch 2 --rounds 2",
    "hadaptive bench latency": "--models tiny.json --image-size 32 --runtimes onnxruntime --rounds 1 --calls 2",
    "hadaptive bench latency --models": "--image-size 32 --runtimes onnxruntime --rounds 1 --calls 2",
    "python -m benchmarks accuracy": "--models tiny.json --seeds 0",
    "python -m benchmarks search": (
        "--space tiny-space.json --table-space tiny-space.json --image-size 32 --batch 2 --rounds 2 --networks 3 "
        "--network-rounds 2 --parts table price"
    ),
    "python -m benchmarks ops": "--rounds 2 --warmup 0 --no-compiled",
    "python -m benchmarks networks": "--image-size 64 --batch 2 --rounds 2",
    "python -m benchmarks depthwise": "--input-size 32 --batch 2 --rounds 2 --warmup 0",
    "python -m benchmarks norms": "--input-size 32 --batch 2 --rounds 2 --warmup 0 --steps 2",
    "python -m benchmarks products": "--rounds 2 --warmup 0",
    "python -m benchmarks compiled": "--models tiny.json --image-sizes 32 --rounds 2 --backend aot_eager",
    "python -m benchmarks latency": (
        "--models tiny.json --image-size 32 --runtimes onnxruntime --rounds 1 --calls 2"
    ),
    "python -m benchmarks startup": "--rounds 2",
    "python -m benchmarks deployment": "runs/mine",
    "python -m benchmarks ranking": "--networks 6 --results ranking.csv --jobs 1",
    "python -m benchmarks cache": "--images 100 --model tiny.json --image-size 32 --epochs 2 --results cache.csv",
    "python -m benchmarks survey": "--pictures 100 --hashes 600 --rounds 1 --results survey.csv",
    "python -m benchmarks starts": (
        "--seeds 0 --rates 2e-3 --rate-epochs 1 --teacher hadaptive_net2_s --results starts.csv"
    ),
    "python -m benchmarks ship": "--results shipped.csv",
    "python -m benchmarks parity": "runs/mine --formats torch safetensors --images 20",
}
BRIEF = {"epochs": 1, "data": "digits", "image_size": 32, "train_size": 200}  # on top of the recipe of benchmarks
ALONE = ("python -m benchmarks", "hadaptive bench")  # what needs nothing that other commands leave behind
# What no test of this suite can run, and why.
ELSEWHERE = {
    "make": "what a target runs is in test_the_makefile_types_commands_that_run",
    "pip": "installs; the extras are compared with pyproject.toml",
    "python -m benchmarks report": "rewrites README and docs: test_report runs it on a page of its own",
    "python -m benchmarks gpu": "needs a GPU: test_bench_operators runs what can be without",
}


def budget(command: str) -> list[str]:
    """The words of a command and what shortens it."""
    begins = [s for s in SHORTER if command.startswith(s) and ("--resume" in s or "--resume" not in command)]
    return shlex.split(command) + shlex.split(SHORTER[max(begins, key=len)] if begins else "")


def run(words: list[str]) -> int:
    """One command, in this process where it can be; Make's python3 is ours."""
    if words[0] == "torchrun":
        assert words[:5] == ["torchrun", "--nproc-per-node", "2", "-m", "hadaptive"]
        done = torchrun(2, words[5:])
        assert "Traceback" not in done.stderr, done.stderr[-3000:]
        if "--output" in words:
            run = Path(words[words.index("--output") + 1])
            assert json.loads((run / "summary.json").read_text(encoding="utf-8"))["processes"] == 2
        return done.returncode
    if words[:3] == ["python", "-m", "benchmarks"]:
        return benchmarks(words[3:])
    assert words[0] == "hadaptive"
    return cli.main(words[1:])


def elsewhere(command: str) -> bool:
    return any(command.startswith(start) for start in ELSEWHERE)


def type_all(commands: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Type one after the other; what a later line resumes is stopped by Ctrl-C in its first epoch."""
    for i, command in enumerate(commands):
        if elsewhere(command):
            continue
        words = budget(command.replace(" …", ""))
        output = words[words.index("--output") + 1] if "--output" in words else None
        resumed = any(f"--resume {output}" in later for later in commands[i + 1 :])
        with monkeypatch.context() as patched:
            if resumed:
                patched.setattr(StopRequest, "agreed", lambda self: True)
            assert run(words) == (130 if resumed else 0), shlex.join(words)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A person's folder, with the images that README speaks of, and small networks and spaces."""
    monkeypatch.chdir(tmp_path)
    for target, name in enumerate(("cat", "dog", "fox")):
        (tmp_path / "path/to/folder" / name).mkdir(parents=True)
        for number in range(24):
            picture(target, number).resize((40, 36)).save(f"path/to/folder/{name}/{number}.png")
    rows = [
        f"{path.relative_to('path/to')},{path.parent.name},{path.stem}" for path in Path("path/to").rglob("*.png")
    ]
    Path("path/to/labels.csv").write_text("\n".join(["file,label,patient", *rows]), encoding="utf-8")
    (tmp_path / "more").mkdir()
    for path in ("picture.jpg", "more/1.png"):
        picture(1, 99).resize((40, 36)).save(path)
    TINY.save("tiny.json")
    WIDE_SPACE.save(Path("tiny-space.json"))
    # The network that a target names is small, too.
    monkeypatch.setattr(latency, "REFERENCES", {"S": WIDE_SPACE.build(WIDE_CHOICE, "slow")})
    for name, recipe in list(RECIPES.items()):
        if not name.startswith(("fmnist-small", "fmnist-long", "few", "cooccurrence")):
            continue
        brief = dataclasses.replace(recipe, settings={**recipe.settings, **BRIEF})
        monkeypatch.setitem(RECIPES, name, brief)
    monkeypatch.setattr(bench_search, "VARIANTS", bench_search.VARIANTS[:2])
    ways = {name: deployment.VARIANTS[name] for name in ("dynamic", "frozen")}
    monkeypatch.setattr(deployment, "VARIANTS", ways)
    monkeypatch.setattr(bench_cache, "KINDS", ((1.0, 96, "jpg"),))
    monkeypatch.setattr(operators, "SHAPES", ((8, 4, 5, 3),))
    monkeypatch.setattr(bench_depthwise, "NETWORKS", ("hadaptive_net_s",))
    monkeypatch.setattr(bench_depthwise, "SWEEP", bench_depthwise.SWEEP[:1])
    monkeypatch.setattr(products, "SHAPES", ((8, 4, 5, 2),))
    monkeypatch.setattr(kernels, "SHAPES", ((8, 4, 5, 2),))
    monkeypatch.setattr(kernels, "PROCESSORS", {90: 132})
    monkeypatch.setattr(kernels, "DTYPES", {"bfloat16": kernels.DTYPES["bfloat16"]})
    for name, values in {"BATCHES": (1, 2), "K": (2, 3), "SIDES": (3, 5), "CHANNELS": 6}.items():
        monkeypatch.setattr(operators, f"SWEEP_{name}", values)
    with standing_in(monkeypatch, tmp_path / "hub"):
        yield tmp_path


@pytest.fixture
def trained(home: Path) -> Path:
    """The run that README calls runs/mine: a tiny network, for what is exported is not to take minutes."""
    command = "hadaptive train --data path/to/folder --recipe folder --output runs/mine --model tiny.json"
    assert run([*budget(command), "--quiet"]) == 0
    return home / "runs/mine"


def sections_that_run() -> list[Shown]:
    """Those with something that is not shown before, with all of their commands but benchmarks shown before."""
    found, before = [], set(ELSEWHERE)
    for section in sections():
        if section.heading.startswith("recipes.md, "):  # test_recipes runs them, and looks at what comes out
            continue
        new = {c for c in section.commands if not elsewhere(c)} - before
        if new or section.scripts:
            again = before.intersection(c for c in section.commands if c.startswith(ALONE) and "runs/" not in c)
            found.append(
                dataclasses.replace(section, commands=tuple(c for c in section.commands if c not in again))
            )
        before |= new
    return found


@pytest.mark.parametrize("section", sections_that_run(), ids=lambda section: section.heading)
def test_what_is_shown_runs(
    section: Shown, home: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = " ".join((*map(shlex.join, map(budget, section.commands)), *section.scripts))
    if "runs/mine" in typed and "--output runs/mine" not in typed:
        request.getfixturevalue("trained")
    type_all(section.commands, monkeypatch)
    for number, script in enumerate(section.scripts):
        (home / f"script{number}.py").write_text(script, encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["script.py", "runs/mine/network.onnx", "picture.jpg"])
        runpy.run_path(str(home / f"script{number}.py"), run_name="__main__")


def of_targets() -> list[str]:
    """What only the Makefile types: what begins first, then what resumes it."""
    shown = {command for section in sections() for command in section.commands}
    typed = {c.replace("python3 ", "python ") for commands in targets().values() for c in commands} - shown
    return sorted(typed, key=lambda command: "--resume" in command)


def test_the_makefile_types_commands_that_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    type_all(of_targets(), monkeypatch)


def test_targets_and_extras_that_are_shown_are_there() -> None:
    shown = [command for section in sections() for command in section.commands]
    assert {command.split()[1] for command in shown if command.startswith("make")} <= set(targets())
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    optional = pyproject.partition("optional-dependencies]")[2].partition("\n[")[0]
    extras = re.findall(r"^(\w+) = \[", optional, re.MULTILINE)
    installed = {extra for c in shown if c.startswith("pip") for extra in re.findall(r"\[(\w+)\]", c)}
    assert installed == set(extras) - {"dev", "docs"}


def test_the_budget_shortens_what_is_shown_and_nothing_else() -> None:
    typed = [command for section in sections() for command in section.commands] + of_targets()
    assert [start for start in SHORTER if not any(c.startswith(start) for c in typed)] == []
    assert [
        start for start in ELSEWHERE if not any(re.sub("^python3", "python", c).startswith(start) for c in typed)
    ] == []


def test_every_command_is_shown_and_every_name_that_is_shown_exists() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    named = set(re.findall(r"\bhadaptive ([a-z]+)\b", " ".join(re.findall(r"`(hadaptive [^`]+)`", text))))
    typed = {c.split()[1] for section in sections() for c in section.commands if c.startswith("hadaptive ")}
    assert named | typed == set(cli.COMMANDS) - {"demo"}
    benchmarked = set(re.findall(r"python -m benchmarks ([a-z]+)", text))
    assert benchmarked == set(BENCHMARKS) - {"gpu"}
