"""Ablation and plug-in tables: every network trained and timed once, compared with what it is based on."""

import dataclasses
import math
from pathlib import Path

import pytest
from tiny import tiny_spec

from hadaptive.bench import trial as trials
from hadaptive.bench.accuracy import name_of
from hadaptive.bench.config import AblationConfig, Group, PluginConfig, TrialConfig
from hadaptive.bench.floor import FLOORS
from hadaptive.bench.trial import bench_ablation, bench_plugin, last_session, table
from hadaptive.cli import main
from hadaptive.errors import UserError
from hadaptive.files import append_csv, read_csv
from hadaptive.models.variants import GROUPS

# Libraries' own, while they export.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


@pytest.fixture
def trial(tiny_recipe: str, tmp_path: Path) -> TrialConfig:
    return TrialConfig(tiny_recipe, (0,), None, (), tmp_path / "results", tmp_path / "runs")


def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timings of a few calls."""
    for name, changes in (
        ("LatencyBenchConfig", {"rounds": 1, "calls": 2}),
        ("NetworksConfig", {"rounds": 2, "batch": 2}),
    ):
        kind = getattr(trials, name)
        monkeypatch.setattr(
            trials, name, lambda *a, _kind=kind, _changes=changes, **k: _kind(*a, **{**k, **_changes})
        )


def rows_of(trial: TrialConfig, *names: str) -> None:
    """What trainings would have left, with the floor."""
    trial.results.mkdir(parents=True)
    rows = [
        {"model": name, "test_accuracy": 0.5 + i / 10, "parameters": 9} for i, name in enumerate([*names, *FLOORS])
    ]
    append_csv(trial.results / "accuracy-tiny.csv", rows)


@pytest.mark.parametrize("group", GROUPS)
def test_every_variant_of_a_group_is_trained(group: Group, trial: TrialConfig, tmp_path: Path) -> None:
    config = AblationConfig(tiny_spec(tmp_path), (group,), dataclasses.replace(trial, measure=False))
    lines = [line["name"].partition("@")[0] for line in bench_ablation(config)]
    assert sorted(lines) == sorted(["tiny", *(f"tiny:{name}" for name in GROUPS[group]), *FLOORS])


@pytest.mark.rendered
@pytest.mark.parametrize("measure", [True, False])
@pytest.mark.parametrize("train", [True, False])
def test_trained_and_timed_once_as_asked(
    train: bool,
    measure: bool,
    trial: TrialConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    brief(monkeypatch)
    model = tiny_spec(tmp_path)
    groups: tuple[Group, ...] = ("k",) if train or not measure else ()  # exports take long: one, or all
    config = AblationConfig(model, groups, dataclasses.replace(trial, train=train, measure=measure))
    if not train:  # another time somebody did
        rows_of(trial, *(name_of(f"{model}{end}") for end in ("", ":k-half", ":k-more")))
        monkeypatch.setattr(trials, "bench_accuracy", None)
    if not measure:
        for name in ("bench_latency", "bench_networks"):
            monkeypatch.setattr(trials, name, None)
    lines = bench_ablation(config)
    assert [line["accuracy"] for line in lines] == sorted((line["accuracy"] for line in lines), reverse=True)
    by_name = {line["name"].partition("@")[0]: line for line in lines}
    assert set(by_name) == {"tiny", *(f"tiny:{name}" for group in groups for name in GROUPS[group]), *FLOORS}
    line = by_name["tiny:k-half" if groups else "tiny"]
    if groups:
        assert line["difference"] == pytest.approx(line["accuracy"] - by_name["tiny"]["accuracy"])
    assert math.isnan(line["latency_ms"]) is math.isnan(line["step_ms"]) is not measure
    if measure:
        assert by_name["tiny"]["step_ratio"] == by_name["tiny"]["latency_ratio"] == 1
        assert not groups or line["products"] < by_name["tiny"]["products"]
        assert all(math.isnan(by_name[name]["step_ratio"]) for name in FLOORS)
        assert (trial.results / "ablation-tiny.png").stat().st_size > 1000
        # Everything is there: nothing is timed again.
        for name in ("bench_latency", "bench_networks"):
            monkeypatch.setattr(trials, name, None)
        again = {one["name"]: one for one in bench_ablation(config)}
        assert again[line["name"]]["step_ms"] == line["step_ms"]
    shown = capsys.readouterr().out
    assert all(name in shown for name in by_name)


def test_plugged_networks_are_compared_with_what_they_are_of(
    trial: TrialConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    brief(monkeypatch)
    config = PluginConfig(("mobilenetv3_small_050",), dataclasses.replace(trial, measure=False))
    lines = {line["name"]: line for line in bench_plugin(config)}
    assert {name for name in lines if name not in FLOORS} == {
        "mobilenetv3_small_050",
        "mobilenetv3_small_050:plug",
        "mobilenetv3_small_050:plug-static",
    }
    plugged = lines["mobilenetv3_small_050:plug"]
    assert plugged["parameters"] < lines["mobilenetv3_small_050"]["parameters"]
    assert plugged["base"] == "mobilenetv3_small_050"
    assert not math.isnan(plugged["difference"])


def test_nothing_to_show_is_said(trial: TrialConfig) -> None:
    with pytest.raises(UserError, match="has no rows of these networks: train them first"):
        bench_plugin(PluginConfig(trial=dataclasses.replace(trial, train=False, measure=False)))


def test_as_typed(trial: TrialConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--recipe", "tiny", "--seeds", "0", "--rates", "3e-3", "--rate-epochs", "2", "--no-measure"]
    flags += f"--results {trial.results} --runs {trial.runs}".split()
    assert main(["bench", "ablation", "--model", tiny_spec(tmp_path), "--groups", "k", *flags]) == 0
    assert main(["bench", "plugin", "--models", "mobilenetv3_small_050", *flags]) == 0
    assert "mobilenetv3_small_050:plug-static" in capsys.readouterr().out
    assert {row["model"] for row in read_csv(trial.results / "accuracy-tiny.csv")} >= {
        "mobilenetv3_small_050:plug"
    }
    assert {row["epochs"] for row in read_csv(trial.results / "accuracy-tiny-rates.csv")} == {"2"}
    assert main(["bench", "plugin", "--models", "resnet10t", *flags]) == 1
    assert "resnet10t:plug cannot be built" in capsys.readouterr().err


def test_differences_have_intervals() -> None:
    accuracies = [
        {"model": name, "test_accuracy": str(score), "parameters": "10"}
        for name, scores in (("a", (0.8, 0.82)), ("b", (0.9, 0.91)))
        for score in scores
    ]
    latencies = [
        {"model": name, "median_ms": str(ms), "macs": "5", "products": "2"}
        for name, ms in (("a", 2.0), ("b", 1.0))
    ]
    steps = [{"model": "a", "what": "training step", "layout": "channels_last", "median_ms": "4"}]
    first, second = table({"a": "a", "b": "a"}, accuracies, latencies, steps)
    assert (first["name"], second["name"]) == ("b", "a")
    assert first["difference"] == pytest.approx(9.5)
    assert first["difference_half"] > 0
    assert first["latency_ratio"] == 0.5
    assert math.isnan(first["step_ms"])
    assert math.isnan(second["difference"])


def test_ratios_are_of_one_session() -> None:
    def rows(models: str, threads: int, ms: float) -> list[dict[str, str]]:
        return [
            {"model": m, "image_size": "64", "threads": str(threads), "runtime": "o", "median_ms": str(ms)}
            for m in models
        ]

    mixed = [*rows("abc", 1, 1.0), *rows("ad", 1, 2.0), *rows("abc", 2, 3.0)]
    assert {row["median_ms"] for row in last_session(mixed, 64, ["a", "b"], 1)} == {"1.0"}
    assert {row["median_ms"] for row in last_session(mixed, 64, ["a", "d"], 1)} == {"2.0"}
    assert {row["median_ms"] for row in last_session(mixed, 64, ["a", "b"], 2)} == {"3.0"}
    assert last_session(mixed, 64, ["b", "d"], 1) == []
    assert last_session(mixed, 32, ["a"], 1) == []
