"""Evolution: a front that no network beats, the same after an interruption, and mistakes."""

import itertools
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from evolved import config_of, saved_space
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import launch
from safetensors.torch import load_file

from hadaptive import packages
from hadaptive.cli import main
from hadaptive.engine.stopping import StopRequest
from hadaptive.errors import TrainingInterruptedError, UserError
from hadaptive.files import read_csv
from hadaptive.models import NetSpec
from hadaptive.search import (
    Judged,
    SearchSpace,
    front_of,
    resume_search,
    search,
)
from hadaptive.search.evolution import Evolution
from hadaptive.search.front import generations


@pytest.fixture
def space(tmp_path: Path) -> SearchSpace:
    return saved_space(tmp_path)


# ---------------------------------------------------------------- the front


def judged(accuracy: float, macs: int, **changes: Any) -> Judged:
    return Judged(**{"generation": 0, "choice": (0,), "fingerprint": "x", "accuracy": accuracy, "loss": 1.0,
                     "parameters": 10, "macs": macs, "latency_ms": None, **changes})  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)), min_size=1, max_size=12))
def test_no_network_beats_one_of_the_front(found: list[tuple[int, int]]) -> None:
    every = [judged(a / 5, m) for a, m in found]
    front = front_of(every)

    def beats(one: Judged, other: Judged) -> bool:
        better = one.accuracy > other.accuracy or one.cost < other.cost
        return one.accuracy >= other.accuracy and one.cost <= other.cost and better

    assert not [1 for one in front for other in every if beats(other, one)]
    assert all(
        any(beats(one, other) or (one.accuracy, one.cost) == (other.accuracy, other.cost) for one in front)
        for other in every
    )
    assert [one.cost for one in front] == sorted({one.cost for one in front})


def test_latency_counts_where_there_is_one_and_limits_are_kept_apart() -> None:
    one = judged(0.75, 100, latency_ms=2.0)
    assert (one.cost, judged(0.5, 100).cost) == (2.0, 100)
    assert one.score({"latency_ms": 1.0, "parameters": 20}) == ((0.25, 2.0), 1.0)
    assert one.score({"latency_ms": 4.0, "parameters": 20}) == ((0.25, 2.0), 0.0)
    assert not one.within({"latency_ms": 1.0})
    assert Judged.from_row({key: str(value) for key, value in one.row().items()}) == one
    assert Judged.from_row({key: str(value) for key, value in judged(0.5, 1).row().items()}) == judged(0.5, 1)


def bred(seed: int) -> list[list[tuple[int, ...]]]:
    """A problem whose front is known: the error is the share of wrong numbers, the cost their sum."""
    counts, right = (4, 1, 5, 3, 6), (3, 0, 2, 1, 4)
    generator = torch.Generator().manual_seed(seed)
    first = [tuple(int(torch.randint(c, (), generator=generator)) for c in counts) for _ in range(16)]
    breeding, found = generations(counts, first, 25, seed), []
    choices = next(breeding)
    while choices:
        found.append(choices)
        scores = [((sum(a != b for a, b in zip(c, right, strict=True)) / 5, float(sum(c))), 0.0) for c in choices]
        choices = breeding.send(scores)
    return found


def test_evolution_finds_what_is_right_and_repeats_itself() -> None:
    once = bred(3)
    assert once == bred(3)
    assert once != bred(4)
    for seed in range(3):
        every = set(itertools.chain.from_iterable(bred(seed)))
        assert (3, 0, 2, 1, 4) in every
        assert (0, 0, 0, 0, 0) in every
        assert all(0 <= n < c for choice in every for n, c in zip(choice, (4, 1, 5, 3, 6), strict=True))


def test_limits_are_met_where_they_can_be() -> None:
    counts = (6,) * 6
    breeding = generations(counts, [(5,) * 6, (4,) * 6, (5, 4, 5, 4, 5, 4), (3, 5) * 3], 30, 0)
    choices, last = next(breeding), []
    while choices:
        last = choices
        over = [max(0.0, sum(c) / 6 - 1) for c in choices]
        choices = breeding.send([((1 - sum(c) / 30, float(c[0])), o) for c, o in zip(choices, over, strict=True)])
    assert min(sum(c) for c in last) <= 8


# ---------------------------------------------------------------- a search


@pytest.mark.rendered
def test_what_it_leaves(tmp_path: Path, space: SearchSpace, capsys: pytest.CaptureFixture[str]) -> None:
    summary = search(config_of(tmp_path))
    run = tmp_path / "run"
    rows, front = read_csv(run / "evolution.csv"), read_csv(run / "front.csv")
    assert summary["networks"] == len(rows) == len({row["fingerprint"] for row in rows})
    assert 6 <= len(rows) <= 24
    specs = [NetSpec.load(run / "front" / f"{row['network']}.json") for row in front]
    assert [spec.fingerprint for spec in specs] == [row["fingerprint"] for row in front]
    found = NetSpec.load(run / "found.json")
    assert found.fingerprint == front[-1]["fingerprint"]
    assert space.build(tuple(summary["choice"])).fingerprint == found.fingerprint
    assert float(front[-1]["accuracy"]) == max(float(row["accuracy"]) for row in rows)
    for name in ("curves.png", "front.png", "network.png", "supernet.safetensors", "split.csv", "summary.json"):
        assert (run / name).is_file()
    assert not (run / "checkpoint.pt").exists()
    assert not (run / "confidence.csv").exists()
    assert load_file(run / "supernet.safetensors")
    said = capsys.readouterr().out
    assert f"the front of {len(rows)} networks" in said
    assert "train it: hadaptive train" in said
    command = next(line for line in said.splitlines() if line.startswith("train it: hadaptive "))
    assert main([*command.removeprefix("train it: hadaptive ").split(), "--epochs", "1", "--quiet"]) == 0
    resume_search(run)  # it is only told again
    assert f"the front of {len(rows)} networks" in capsys.readouterr().out


def same_run(one: Path, other: Path) -> None:
    for name in ("evolution.csv", "front.csv", "found.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    a, b = (load_file(run / "supernet.safetensors") for run in (one, other))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_resumed_from_anywhere_it_finds_the_same(tmp_path: Path, space: SearchSpace, monkeypatch) -> None:
    search(config_of(tmp_path, output=tmp_path / "whole"), quiet=True)
    steps, looked, own = 2 * (256 // 64), [], Evolution._judge

    def count(self: Evolution, *args: Any) -> Judged:
        looked.append(args[0])
        return own(self, *args)

    for name, asked in (("weights", 3), ("networks", steps + 2 + 9)):
        calls = itertools.count(1)
        with monkeypatch.context() as patched:
            patched.setattr(StopRequest, "agreed", lambda self, calls=calls, asked=asked: next(calls) == asked)
            with pytest.raises(TrainingInterruptedError):
                search(config_of(tmp_path, output=tmp_path / name), quiet=True)
        begun = read_csv(tmp_path / name / "evolution.csv")
        assert bool(begun) is (name == "networks")
        looked.clear()
        with monkeypatch.context() as patched:
            patched.setattr(Evolution, "_judge", count)
            resume_search(tmp_path / name, quiet=True)
        same_run(tmp_path / "whole", tmp_path / name)
        assert len(looked) == len(read_csv(tmp_path / name / "evolution.csv")) - len(begun)  # none twice


def test_a_signal_while_networks_are_looked_at(tmp_path: Path, space: SearchSpace, monkeypatch) -> None:
    search(config_of(tmp_path, output=tmp_path / "whole"), quiet=True)
    own, seen = Evolution._judge, []

    def signalled(self: Evolution, *args: Any) -> Judged:
        seen.append(1)
        if len(seen) == 8:
            signal.raise_signal(signal.SIGTERM)
        return own(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(Evolution, "_judge", signalled)
        with pytest.raises(TrainingInterruptedError):
            search(config_of(tmp_path), quiet=True)
    rows = (tmp_path / "run" / "evolution.csv").read_bytes()
    assert rows.count(b"\n") == 1 + 8
    (tmp_path / "run" / "evolution.csv").write_bytes(rows[:-9])  # and the last row was cut short
    resume_search(tmp_path / "run", quiet=True)
    same_run(tmp_path / "whole", tmp_path / "run")


def test_two_processes_find_the_same(tmp_path: Path, space: SearchSpace) -> None:
    flags = ["--recipe", "quick", "--method", "evolution", "--population", "4", "--generations", "4"]
    flags += ["--epochs", "1", "--image-size", "8"]
    flags += ["--train-size", "128", "--cpu", "--quiet", "--space", str(tmp_path / "tiny.json")]
    done = launch(2, ["search", *flags, "--output", str(tmp_path / "run")])
    assert done.returncode == 0, done.stderr[-3000:]
    rows = read_csv(tmp_path / "run" / "evolution.csv")
    assert len(rows) == len({row["fingerprint"] for row in rows})
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["processes"] == 2
    assert summary["networks"] == len(rows)


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--method", "gradient"], "has networks of several widths or alternatives, which no gradient"),
        (["--paths", "3"], "--paths has no effect here, for --method evolution does not use it"),
        (["--population", "3"], "population must be at least 4, got 3"),
        (["--max-params", "many"], "max_params is written like 400k, 1.5M or 800000, got 'many'"),
        (["--max-params", "0"], "max_params is written like 400k, 1.5M or 800000, got '0'"),
        (["--max-params", "10"], "no network of tiny has 10 parameters or fewer: the smallest has "),
        (["--latency-weight", "2"], "--latency-weight has no effect here"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes(flags: list[str], sentence: str, tmp_path: Path, space: SearchSpace, capsys) -> None:
    words = ["--recipe", "quick", "--epochs", "1", "--image-size", "8"]
    if "--method" not in flags:
        words += ["--method", "evolution", "--population", "6", "--generations", "4"]
    words += ["--train-size", "128", "--cpu", "--quiet", "--space", str(tmp_path / "tiny.json")]
    assert main(["search", *words, "--output", str(tmp_path / "run"), "--strict", *flags]) != 0
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_without_pymoo(tmp_path: Path, space: SearchSpace, monkeypatch) -> None:
    monkeypatch.setattr(packages, "obstacle", lambda module, package="": "is not installed")
    with pytest.raises(
        UserError, match=r"--method evolution needs the package pymoo: pip install \"hadaptive\[evolution\]\""
    ):
        search(config_of(tmp_path), quiet=True)
    assert not (tmp_path / "run").exists()
