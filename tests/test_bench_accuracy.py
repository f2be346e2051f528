"""The accuracy comparison: a row per run, none twice, none lost."""

import dataclasses
from pathlib import Path

import pytest
from tiny import TINY, tiny_config, tiny_spec

from hadaptive.bench import accuracy
from hadaptive.bench.accuracy import bench_accuracy, name_of, print_accuracy
from hadaptive.bench.config import AccuracyConfig
from hadaptive.engine.recipes import Recipe
from hadaptive.files import read_csv
from hadaptive.train import RECIPES, Trainer, TrainingInterruptedError


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AccuracyConfig:
    keep = ("epochs", "batch_size", "image_size", "train_size", "shift", "cpu")
    settings = {name: tiny_config(tmp_path, epochs=1).flat()[name] for name in keep}
    monkeypatch.setitem(RECIPES, "tiny", Recipe("for tests", settings))
    models = (tiny_spec(tmp_path), "mobilenetv3_small_050")
    return AccuracyConfig("tiny", models, (0, 1), tmp_path / "results" / "rows.csv", tmp_path / "runs")


def test_a_row_per_run_and_none_twice(
    config: AccuracyConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    count = [0]
    evaluate = Trainer._end_epoch

    def stop_in_the_third_run(self, run, stop) -> None:
        count[0] += 1
        evaluate(self, run, stop)
        if count[0] == 3:
            raise TrainingInterruptedError(str(run.path))

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_end_epoch", stop_in_the_third_run)
        with pytest.raises(TrainingInterruptedError):
            bench_accuracy(config)
    assert config.results is not None
    first = read_csv(config.results)
    assert len(first) == 2
    rows = bench_accuracy(config)
    assert rows[:2] == first
    assert [(row["model"], row["seed"]) for row in rows] == [(name_of(m), s) for s in "01" for m in config.models]
    assert len({row["test_images"] for row in rows}) == 1
    assert all(0 <= float(row["test_accuracy"]) <= 1 and row["commit"] and row["torch"] for row in rows)

    monkeypatch.setattr(accuracy, "train_or_resume", None)  # nothing is left to train
    assert bench_accuracy(config) == rows
    capsys.readouterr()
    print_accuracy(rows)
    assert "mobilenetv3_small_050" in capsys.readouterr().out


def test_two_files_of_one_name_are_two_networks(config: AccuracyConfig, tmp_path: Path) -> None:
    """Both were recorded as one, and the second was never trained."""
    files = []
    for folder, channels in (("a", 24), ("b", 32)):
        (tmp_path / folder).mkdir()
        files.append(str(tmp_path / folder / "net.json"))
        dataclasses.replace(TINY, last_channels=channels).save(files[-1])
    rows = bench_accuracy(dataclasses.replace(config, models=tuple(files), seeds=(0,)))
    assert len({row["model"] for row in rows}) == 2
    assert len({row["parameters"] for row in rows}) == 2
    assert all(row["model"].startswith("tiny@") for row in rows)
