"""Experiment trackers get what the rows say, once, also of a run that was resumed; and never end a run."""

import itertools
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_config

from hadaptive import packages
from hadaptive.cli import main
from hadaptive.engine import tracking
from hadaptive.engine.stopping import StopRequest
from hadaptive.errors import TrainingInterruptedError
from hadaptive.files import read_csv
from hadaptive.train import resume, train

FIGURES = ("train_loss", "val_accuracy", "val_loss")


def events(folder: Path) -> dict[str, dict[int, float]]:
    """TensorBoard's scalars: by name and epoch. A step that is there twice has its last value, as it shows it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with packages.quiet():
        read = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {tag: {e.step: e.value for e in read.Scalars(tag)} for tag in read.Tags()["scalars"]}


def test_tensorboard_shows_the_rows_of_a_run_that_was_resumed(tmp_path: Path, monkeypatch) -> None:
    config = tiny_config(tmp_path, track=("tensorboard",), epochs=3)
    calls = itertools.count(1)
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "agreed", lambda self: next(calls) == 8)  # in the second epoch
        with pytest.raises(TrainingInterruptedError):
            train(config, quiet=True)
    summary = resume(tmp_path / "run", quiet=True)
    shown = events(tmp_path / "run")
    for name in FIGURES:
        rows = {int(row["epoch"]): float(row[name]) for row in read_csv(tmp_path / "run/metrics.csv")}
        assert shown[name] == pytest.approx(rows)
        assert sorted(rows) == [0, 1, 2]
    assert shown["test_accuracy"] == pytest.approx({2: summary["test"]["accuracy"]})


class Recorded:
    """What a stand-in for a tracker's package was told."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.logged: dict[int, dict[str, float]] = {}
        self.began: list[dict[str, Any]] = []
        self.ended = 0


def stand_in(name: str, monkeypatch: pytest.MonkeyPatch, fails: bool = False) -> Recorded:
    """A package of that name with as much of its interface as accelerate uses."""
    told, package = Recorded(), types.ModuleType(name)

    def log(values: dict[str, float], step: int, **how: object) -> None:
        if fails:
            raise ConnectionError("the server is away\nfor long")
        told.logged.setdefault(step, {}).update(values)

    def begin(**how: Any) -> types.SimpleNamespace:
        told.began.append(how)
        return run

    def end(*args: object) -> None:
        told.ended += 1

    def keep(settings: dict[str, Any], **how: object) -> None:
        told.settings.update(settings)

    run = types.SimpleNamespace(log=log, finish=end)
    interface: dict[str, Any] = {
        "wandb": {"init": begin, "config": types.SimpleNamespace(update=keep)},
        "mlflow": {
            "search_experiments": lambda **how: [],
            "create_experiment": lambda **how: "1",
            "start_run": begin,
            "log_params": keep,
            "log_param": lambda name, value: keep({name: value}),
            "log_metrics": log,
            "end_run": end,
            "utils": types.SimpleNamespace(
                validation=types.SimpleNamespace(MAX_PARAM_VAL_LENGTH=500, MAX_PARAMS_TAGS_PER_BATCH=100)
            ),
        },
    }[name]
    for attribute, value in interface.items():
        setattr(package, attribute, value)
    monkeypatch.setitem(sys.modules, name, package)
    return told


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_other_trackers_are_told_settings_and_figures(name: str, tmp_path: Path, monkeypatch) -> None:
    told = stand_in(name, monkeypatch)
    flags = ["--epochs", "2", "--data", "digits", "--train-size", "64", "--image-size", "8", "--cpu", "--quiet"]
    tiny_config(tmp_path)  # saves the network
    network = ["--model", str(tmp_path / "tiny.json"), "--batch-size", "32"]
    assert main(["train", *flags, *network, "--track", name, "--output", str(tmp_path / "run")]) == 0
    assert (told.settings["epochs"], told.settings["lr"]) == (2, 2e-3)
    assert sorted(told.logged) == [0, 1]
    for row in read_csv(tmp_path / "run/metrics.csv"):
        assert told.logged[int(row["epoch"])]["train_loss"] == pytest.approx(float(row["train_loss"]))
    assert "test_accuracy" in told.logged[1]
    assert len(told.began) == told.ended == 1
    assert "run" in (told.began[0].get("name"), told.began[0].get("run_name"))


def test_a_tracker_that_fails_is_said_once_and_the_run_goes_on(
    tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in("wandb", monkeypatch, fails=True)
    train(tiny_config(tmp_path, track=("wandb",)), quiet=True)
    said = capsys.readouterr().err.splitlines()
    assert said == ["--track wandb stopped: ConnectionError: the server is away; the run goes on"]
    assert len(read_csv(tmp_path / "run/metrics.csv")) == 2


@pytest.mark.parametrize("name", list(tracking.TRACKERS))
def test_one_that_is_not_installed_is_a_sentence(
    name: str, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    tiny_config(tmp_path)
    flags = ["--model", str(tmp_path / "tiny.json"), "--image-size", "8", "--output", str(tmp_path / "run")]
    assert main(["train", "--data", "digits", *flags, "--track", name]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert f"--track {name} needs the package {name}" in said
    assert "pip install" in said
    assert not (tmp_path / "run").exists()
