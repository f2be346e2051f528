"""A training that is only looked at: what it says is what a training does, and nothing is left behind."""

import json
import os
import shlex
from pathlib import Path

import pytest
import torch
from folders import fill
from PIL import Image
from processes import launch
from tiny import tiny_config, tiny_spec, trainer_of

from hadaptive import cli
from hadaptive.dry_run import dry_run, time_text, to_image
from hadaptive.engine import memory, rehearsal
from hadaptive.engine.memory import free_memory, memory_of_children, memory_text, peak_memory
from hadaptive.train import train

COUNTS = {"cat": 30, "dog": 20}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dry")
    fill(folder / "pets", COUNTS)
    tiny_spec(folder)
    return folder


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "SECONDS", 0.0)
    monkeypatch.setattr(rehearsal, "LEAST", 2)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


LINE = shlex.split(
    "train --data pets --model tiny.json --image-size 8 --batch-size 8 --epochs 3 --workers 0 --cpu"
)


@pytest.mark.parametrize("dry_run", [True])
def test_what_it_says_and_that_it_leaves_nothing(
    dry_run: bool, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    before = files(home)
    assert cli.main([*LINE, "--dry-run", "--output", "run", "--first-batch", "batch.png"]) == 0
    assert files(home) - before == {"batch.png"}
    said = capsys.readouterr().out
    assert "36 to learn from, 2 classes" in said
    assert "3 epochs of 4 steps of 8 images: 12 steps" in said
    assert [line.split()[1::2] for line in said.splitlines() if "dog" in line] == [["dog", "14", "2", "4"]]
    with Image.open("batch.png") as picture:
        assert min(picture.size) > 100
    assert cli.main([*LINE, "--output", "run", "--quiet"]) == 0
    summary = json.loads((home / "run/summary.json").read_text())
    assert f"{summary['parameters']:,} parameters" in said


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--first-batch", "batch.png"], "--first-batch has no effect here, for --dry-run is not there"),
        (["--dry-run", "--first-batch", "tiny.json"], "ends in .png"),
        (["--dry-run", "--first-batch", "there.png"], "is not overwritten"),
        (["--dry-run", "--first-batch", "no/where.png"], "there is no folder"),
        (["--dry-run", "--output", "pets"], "is never overwritten"),
        (["--dry-run", "--batch-size", "512"], "fewer than batch_size 512"),
        (["--dry-run", "--erase", "0.1"], "--erase has no effect here"),
        (["--dry-run", "--resume", "run"], "leave out --"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_sentence(
    flags: list[str], words: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    (home / "there.png").touch()
    before = files(home)
    assert cli.main([*LINE, *flags]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert words in said
    assert files(home) == before


def test_with_a_teacher_frozen_layers_accumulation_and_loader_processes(tmp_path: Path) -> None:
    train(tiny_config(tmp_path, "teacher", epochs=1), quiet=True)
    teacher = str(tmp_path / "teacher")
    for changes in ({"teacher_sees": "image", "workers": 1}, {"teacher_sees": "batch", "mixup": 0.2}):
        config = tiny_config(tmp_path, init=tmp_path / "teacher", model=None, teacher=teacher, accumulate=2)
        found = dry_run(config.changed(freeze_backbone=1, **changes), quiet=True)
        assert found.steps == 12
        assert 0 < found.step_s < found.total_s
        assert found.timed >= 2
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_in_two_processes(home: Path) -> None:
    line = [str(home / word) if word in ("pets", "tiny.json") else word for word in LINE]
    done = launch(2, [*line, "--dry-run"])
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("nothing was trained") == 1


def test_a_batch_is_drawn_as_the_network_sees_it(tmp_path: Path) -> None:
    trainer = trainer_of(tiny_config(tmp_path, shift=0))
    how = trainer.config.preprocessing
    images, *_ = next(iter(trainer.batches.validation))
    again = to_image(images[0], how)
    assert again.size == (8, 8)
    source = trainer.batches.parts["validation"].read(0)[0].convert("L" if how.in_chans == 1 else "RGB")
    assert again.tobytes() == source.tobytes()  # the digits are of that size


def test_memory_is_that_of_the_machine_or_its_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    limit, used = tmp_path / "max", tmp_path / "current"
    monkeypatch.setattr(memory, "CGROUPS", {str(limit): str(used), str(tmp_path / "no"): str(used)})
    alone = free_memory(cpu)
    assert alone > 0
    limit.write_text("max\n")
    used.write_text("1000\n")
    assert free_memory(cpu) > 1000
    limit.write_text("5000\n")
    assert free_memory(cpu) == 4000
    assert peak_memory(cpu) > 10_000_000
    assert memory_of_children()[0] <= len(os.listdir("/proc"))
    assert [memory_text(2e9), memory_text(3e6)] == ["2.0 GB", "3 MB"]
    assert [time_text(s) for s in (5, 90, 7200, 200_000)] == ["5.0 s", "1.5 min", "2.0 h", "2.3 days"]
