"""Evolution: a front that no network beats, the same after an interruption, within its limits, and doubts."""

import itertools
import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from processes import launch
from safetensors.torch import load_file

from hadaptive import packages
from hadaptive.cli import main
from hadaptive.engine.stopping import StopRequest
from hadaptive.errors import TrainingInterruptedError, UserError
from hadaptive.files import read_csv
from hadaptive.models import ConvSpec, NetSpec
from hadaptive.models.layer_spec import conv, inverted, poly, products
from hadaptive.search import (
    Judged,
    LatencyTable,
    SearchConfig,
    SearchSpace,
    Skip,
    alone,
    baselines,
    front_of,
    random_within,
    resume_search,
    search,
    study,
)
from hadaptive.search.config import StudyConfig
from hadaptive.search.evolution import Evolution
from hadaptive.search.front import generations
from hadaptive.search.rivals import small_enough

POSITION = (products(3, 4, 3, 8), products(2, 16, 5, 8, after=True), poly(3, 8), inverted(2, 3, 8), Skip())


@pytest.fixture
def space(tmp_path: Path) -> SearchSpace:
    stages = (((conv(8),), POSITION, POSITION),)
    found = SearchSpace(
        "tiny", (ConvSpec(8, 3, 1),), (), stages, None, None, activation="relu6", widths=(1.0, 0.5)
    )
    found.save(tmp_path / "tiny.json")
    return found


def config_of(tmp_path: Path, **changes: Any) -> SearchConfig:
    settings: dict[str, Any] = {"space": str(tmp_path / "tiny.json"), "method": "evolution", "population": 6}
    settings |= {"generations": 4, "epochs": 2, "image_size": 8, "train_size": 256, "cpu": True}
    return SearchConfig.from_recipe("quick", **{**settings, "output": tmp_path / "run", **changes})


def table_of(space: SearchSpace, config: SearchConfig, **changes: Any) -> LatencyTable:
    """Each block takes a millisecond at full width, half of it at half."""
    times = tuple(
        tuple(0.0 if isinstance(c, Skip) else 1.0 + n / 10 for n, c in enumerate(p)) for p in space.positions
    )
    half = tuple(tuple(ms / 2 for ms in own) for own in times)
    setting = config.setting(10, "cpu")
    values = {
        "references": {},
        "where": {"device": "another"},
        "networks": {"number": 3, "median_error": 0.0},
    }
    return LatencyTable(
        space.fingerprint, setting, times, 1.0, 1.0, 0.0, **values, others=((half, 0.5),), **changes
    )


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


def test_a_target_and_a_size(tmp_path: Path, space: SearchSpace) -> None:
    config = config_of(tmp_path, latency_target="2.2ms", max_params="2k", latency_table=tmp_path / "t.json")
    config = config.changed(foreign_table=True)
    table_of(space, config).save(tmp_path / "t.json")
    summary = search(config, quiet=True)
    table, front = LatencyTable.load(tmp_path / "t.json"), read_csv(tmp_path / "run" / "front.csv")
    assert table == table_of(space, config)
    for row in front:
        choice = tuple(map(int, row["choice"].split()))
        assert float(row["latency_ms"]) == table.predict(choice) <= 2.2
        assert int(row["parameters"]) <= 2000
    assert summary["predicted_ms"] <= 2.2
    assert summary["measured_ms"] is None  # another device's
    rows = read_csv(tmp_path / "run" / "evolution.csv")
    assert any(float(row["latency_ms"]) > 2.2 or int(row["parameters"]) > 2000 for row in rows)
    assert rows[0]["parameters"] == min((row["parameters"] for row in rows), key=int)
    assert table.range()[0] in [float(row["latency_ms"]) for row in rows if row["generation"] == "0"]
    assert [float(row["latency_ms"]) for row in front] == sorted(float(row["latency_ms"]) for row in front)


def test_a_latency_table_of_several_widths(tmp_path: Path, space: SearchSpace) -> None:
    table = table_of(space, config_of(tmp_path))
    assert table.predict((0, 0, 0, 0, 0)) == pytest.approx(1 + 4)
    assert table.predict((0, 0, 0, 0, 1)) == pytest.approx((1 + 4) / 2)
    assert table.range() == (pytest.approx(0.5 + 1), pytest.approx(1 + 1 + 1 + 2 * 1.3))
    table.check(space, table.setting, foreign=True)
    with pytest.raises(UserError, match="the latency table is of another space"):
        table.check(space.of_whole(0), table.setting, foreign=True)


def test_a_measured_table_is_used_and_networks_are_measured(tmp_path: Path, space: SearchSpace, capsys) -> None:
    search(config_of(tmp_path, latency_target="1s"))
    front = read_csv(tmp_path / "run" / "front.csv")
    assert all(float(row["measured_ms"]) > 0 for row in front)
    table = LatencyTable.load(tmp_path / "run" / "latency.json")
    assert len(table.others) == 1
    assert "measured ms" in capsys.readouterr().out


def test_latency_may_be_of_larger_images_than_accuracy(tmp_path: Path, space: SearchSpace, monkeypatch) -> None:
    labels: list[str] = []
    real = Axes.set
    monkeypatch.setattr(
        Axes, "set", lambda self, **how: labels.extend(map(str, how.values())) or real(self, **how)
    )
    search(config_of(tmp_path, latency_target="1s", latency_size=16, runtime="onnxruntime", threads=1), quiet=True)
    assert LatencyTable.load(tmp_path / "run" / "latency.json").setting.image_size == 16
    assert "predicted ms\n16x16 images" in labels
    assert "validation accuracy, shared weights, %\n8x8 images" in labels
    small = config_of(tmp_path, output=tmp_path / "small", space="published", image_size=32, latency_size=8)
    with pytest.raises(UserError, match="8x8 images are too small"):
        search(small.changed(latency_target="1s"), quiet=True)
    assert not small.output.exists()


def test_a_front_that_misses_when_measured_says_so(tmp_path: Path, space: SearchSpace, monkeypatch) -> None:
    config = config_of(tmp_path, latency_target="2.2ms", latency_table=tmp_path / "t.json", foreign_table=True)
    table_of(space, config).save(tmp_path / "t.json")
    monkeypatch.setattr(Evolution, "_measure", lambda self, specs: dict.fromkeys(specs, 3.0) | {"S": 9.0})
    summary = search(config, quiet=True)
    assert any(
        "the network found is not within the target when it is measured: 3 ms for 2.2 ms" in w
        for w in summary["warnings"]
    )
    assert summary["measured_ms"] == {"found": 3.0, "S": 9.0}
    # Of those that are within it, the most accurate one.
    monkeypatch.setattr(
        Evolution, "_measure", lambda self, specs: {name: 1.0 if name == "front-0" else 3.0 for name in specs}
    )
    summary = search(config.changed(output=tmp_path / "second"), quiet=True)
    first = read_csv(tmp_path / "second" / "front.csv")[0]
    assert NetSpec.load(tmp_path / "second" / "found.json").fingerprint == first["fingerprint"]
    assert not any("when it is measured" in w for w in summary["warnings"])


def test_a_front_is_measured_until_one_is_within_the_target(tmp_path: Path) -> None:
    engine = Evolution.__new__(Evolution)
    engine.target, asked = 2.0, []
    ms = {f"front-{n}": 1.9 if n == 3 else 2.1 + n / 10 for n in range(20)}

    def measure(specs: dict[str, Any]) -> dict[str, float]:
        asked.append(list(specs))
        return {name: ms[name] for name in specs} | {"S": 9.0}

    engine._measure = measure
    number, measured = engine._found(dict.fromkeys(ms))
    assert number == 3
    assert [len(names) for names in asked] == [8, 8, 4]
    assert measured == ms | {"S": 9.0}
    ms["front-3"] = 2.5
    assert engine._found(dict.fromkeys(ms))[0] == 0  # the fastest that was measured, where none is within
    engine._measure = lambda specs: None
    assert engine._found(dict.fromkeys(ms)) == (19, {})


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


def test_seeds_beside_random_networks_as_fast_and_as_small(tmp_path: Path, space: SearchSpace, capsys) -> None:
    config = config_of(tmp_path, epochs=1, latency_target="4ms", max_params="2.5k", foreign_table=True)
    table = table_of(space, config)
    table.save(tmp_path / "t.json")
    config = config.changed(latency_table=tmp_path / "t.json")
    summary = study(StudyConfig(search=config, baseline=(("random", 6),), retrain_seeds=1, seeds=2))
    rows = read_csv(tmp_path / "run" / "comparison.csv")
    assert {row["group"] for row in rows} == {"found", "random"}
    assert "found_against_random" in summary
    for row in rows:
        assert int(row["parameters"]) <= 2500
        if row["group"] == "random":
            assert 0.9 * 4 <= float(row["predicted_ms"]) <= 4
    agreement = read_csv(tmp_path / "run" / "agreement.csv")
    assert [int(row["position"]) for row in agreement] == [3, 4]
    assert 0 <= summary["agreement"]["share"] <= 1
    assert not (tmp_path / "run" / "kinds.csv").exists()
    # The shared weights of the first seed are those that judged what it found.
    found = next(row for row in rows if row["network"] == "found-seed0")
    own = read_csv(tmp_path / "run" / "searches" / "seed0" / "evolution.csv")
    choice = json.loads((tmp_path / "run" / "searches" / "seed0" / "summary.json").read_text())["choice"]
    (judged,) = [row for row in own if list(map(int, row["choice"].split())) == choice]
    assert float(found["supernet_accuracy"]) == pytest.approx(float(judged["accuracy"]))
    assert summary["rank"]["networks"] == 6
    assert "as trainings do with Kendall's tau" in capsys.readouterr().out


@pytest.mark.slow
def test_every_kind_of_baseline_as_typed(tmp_path: Path, space: SearchSpace, monkeypatch, capsys) -> None:
    """Cut off while networks are judged it judges none of them twice, and ends with the same rivals."""
    words = ["search", "--recipe", "quick", "--epochs", "4", "--image-size", "8", "--train-size", "128", "--cpu"]
    words += [
        "--method",
        "evolution",
        "--population",
        "6",
        "--generations",
        "4",
        "--space",
        str(tmp_path / "tiny.json"),
    ]
    words += ["--max-params", "2.5k", "--retrain-seeds", "2"]
    words += ["--baseline", "random", "2", "best", "5", "evolution", "4", "--output"]
    assert main([*words, str(tmp_path / "whole")]) == 0
    rows = read_csv(tmp_path / "whole" / "comparison.csv")
    assert Counter(row["group"] for row in rows) == {
        "found": 2,
        "random": 2,
        "best": 2,
        "evolution": 2,
    }
    assert all(int(row["parameters"]) <= 2500 for row in rows)
    drawn = read_csv(tmp_path / "whole" / "baseline-best.csv")
    networks = json.loads((tmp_path / "whole" / "networks.json").read_text(encoding="utf-8"))
    best = max(drawn, key=lambda row: float(row["supernet_accuracy"]))
    assert networks["best"]["supernet_accuracy"] == float(best["supernet_accuracy"])
    judged_alone = [Judged.from_row(row) for row in read_csv(tmp_path / "whole" / "baseline-evolution.csv")]
    assert len({one.fingerprint for one in judged_alone}) == len(judged_alone) == 4
    within = [one for one in judged_alone if one.parameters <= 2500]
    best_alone = max(within, key=lambda one: (one.accuracy, -one.cost, one.choice))
    assert tuple(networks["evolution"]["choice"]) == best_alone.choice
    trained = [json.loads(path.read_text()) for path in (tmp_path / "whole" / "runs").glob("alone-*/summary.json")]
    assert [summary["epochs"] for summary in trained] == [1] * 4
    said = capsys.readouterr().out
    for text in ("the best of 5 random networks", "without shared weights: 4 networks"):
        assert text in said
    for other in ("random", "best", "evolution"):
        assert f"found against {other}: " in said

    count = itertools.count(1)
    judge = alone.append_csv

    def cut(path: Path, rows: list[dict[str, Any]]) -> None:
        judge(path, rows)
        if next(count) in (3, 8):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(alone, "append_csv", cut)
        patched.setattr(baselines, "append_csv", cut)
        assert main([*words, str(tmp_path / "cut")]) == 130
        assert main(["search", "--resume", str(tmp_path / "cut")]) == 130
        assert main(["search", "--resume", str(tmp_path / "cut"), "--jobs", "1", "--executor", "local"]) == 0
    assert main(["search", "--resume", str(tmp_path / "cut/searches/seed0"), "--jobs", "2"]) == 1
    assert "is one search, which shares nothing out: leave --jobs and --executor out" in capsys.readouterr().err
    for name in ("baseline-best.csv", "baseline-evolution.csv"):
        own = [{key: row[key] for key in row if key != "generation"} for row in read_csv(tmp_path / "cut" / name)]
        other = [
            {key: row[key] for key in row if key != "generation"} for row in read_csv(tmp_path / "whole" / name)
        ]
        assert own == other
    again = json.loads((tmp_path / "cut" / "networks.json").read_text(encoding="utf-8"))
    assert {name: own["choice"] for name, own in again.items()} == {
        n: own["choice"] for n, own in networks.items()
    }


def test_random_networks_are_of_every_width_that_reaches_the_target(tmp_path: Path, space: SearchSpace) -> None:
    table, generator = table_of(space, config_of(tmp_path)), torch.Generator().manual_seed(0)
    drawn = [random_within(space, table, 3.01, generator) for _ in range(300)]
    band = [c for c in itertools.product(*map(range, space.counts)) if 0.9 * 3.01 <= table.predict(c) <= 3.01]
    assert {c[-1] for c in band} == {0, 1}
    assert set(drawn) == set(band)
    shares = [drawn.count(choice) / len(drawn) for choice in band]
    assert max(shares) < 3 / len(band)
    # Half the width ends below the band: none of it is drawn.
    assert {random_within(space, table, 4.5, generator)[-1] for _ in range(40)} == {0}


def test_no_random_network_issmall_enough(tmp_path: Path, space: SearchSpace) -> None:
    config = config_of(tmp_path, max_params="10")
    with pytest.raises(UserError, match="none of 1000 random networks has 10 parameters or fewer"):
        small_enough(config, space, lambda: (0,) * 5, 10)


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


def test_a_size_as_it_is_written() -> None:
    assert SearchConfig.from_recipe("quick").latency.most_parameters == float("inf")
    for text, number in (("1.5M", 1.5e6), ("400k", 4e5), ("800000", 8e5)):
        config = SearchConfig.from_recipe("quick", max_params=text, method="evolution")
        assert config.latency.most_parameters == number
