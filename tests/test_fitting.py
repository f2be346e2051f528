"""A batch size that is found: what fits and no more, and the settings say it."""

import json
from pathlib import Path

import pytest
import torch
from test_train import assert_same_weights
from tiny import stopped_after, tiny_config, tiny_spec

from hadaptive import cli
from hadaptive.engine import fitting
from hadaptive.engine.fitting import Peak, largest_allowed, largest_batch
from hadaptive.train import TrainConfig, resume, train


@pytest.mark.parametrize("batch_size", ["auto"])
def test_it_is_in_the_settings_of_the_run_and_resumed(
    batch_size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["train", "--model", tiny_spec(tmp_path), "--image-size", "8", "--epochs", "1", "--train-size", "200"]
    assert cli.main([*line, "--cpu", "--batch-size", batch_size, "--output", "run"]) == 0
    assert (
        "batch size 16, of more an epoch would have few steps; the learning rate 0.002" in capsys.readouterr().out
    )
    assert json.loads((tmp_path / "run/config.json").read_text())["optimisation"]["batch_size"] == 16
    config = tiny_config(tmp_path, "same", shift=1, epochs=1, batch_size=16)
    train(config, quiet=True)
    assert_same_weights(tmp_path / "run", tmp_path / "same")  # nothing of the search for it is left
    stopped_after(3, config.changed(output=tmp_path / "cut", batch_size=batch_size), monkeypatch)
    resume(tmp_path / "cut", quiet=True)
    assert_same_weights(tmp_path / "cut", tmp_path / "same")


def test_memory_bounds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(tmp_path, epochs=1, train_size=600, batch_size="auto", mixup=0.1, accumulate=2)

    def peaks(self: Peak) -> Peak:
        self.most, self.done = next(sizes), fitting.threading.Event()
        return self

    monkeypatch.setattr(Peak, "__enter__", peaks)
    monkeypatch.setattr(Peak, "__exit__", lambda self, *_: None)
    for room, found in ((0, 8), (15 * 1000, 16), (1e9, 32)):
        sizes = iter([4000, 8000, 16000])
        monkeypatch.setattr(fitting, "free_memory", lambda device, room=room: room)
        output = tmp_path / f"run-{found}"
        train(config.changed(output=output), quiet=True, test=False)
        assert json.loads((output / "config.json").read_text())["optimisation"]["batch_size"] == found


def test_on_a_gpu_what_does_not_fit_shows() -> None:
    tried = []

    def step(images: int) -> None:
        tried.append(images)
        if images > 32:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    assert largest_batch(step, torch.device("cuda"), most=1024) == 32
    assert max(tried) == 64
    assert largest_batch(step, torch.device("cuda"), most=16) == 16

    def wrong(images: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        largest_batch(wrong, torch.device("cuda"), most=16)


def test_a_peak_is_seen() -> None:
    with Peak() as peak:
        before = peak.most
        torch.ones(30_000_000).sum()
    assert peak.most - before > 50_000_000


def test_what_an_epoch_allows() -> None:
    assert [largest_allowed(n, 1) for n in (10, 100, 7500, 10**6)] == [8, 16, 256, 1024]
    assert largest_allowed(7500, 4) == 64


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("search --space published --batch-size auto", "batch_size auto is for trainings only"),
        ("train --batch-size auto --model nope", "no model 'nope'"),
        ("train --batch-size auto --train-size 3", "fewer"),
    ],
)
def test_mistakes_are_one_sentence(
    command: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if words == "fewer":
        command += f" --model {tiny_spec(tmp_path)} --image-size 8 --accumulate 2"
    assert cli.main(command.split()) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert words in said
    with pytest.raises(ValueError, match="a number of images or auto, got 'most'"):
        TrainConfig.from_recipe("quick", batch_size="most")
