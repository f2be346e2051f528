"""A learning rate that suits: it is found by training images alone, the same each time, and is of use."""

import json
import math
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny import tiny_config, tiny_spec, trainer_of

from hadaptive import cli
from hadaptive.data.sources import ArraySource
from hadaptive.engine import rate_finder
from hadaptive.engine.rate_finder import RangeTest, range_test
from hadaptive.errors import UserError
from hadaptive.files import read_csv
from hadaptive.train import train
from hadaptive.train.find_rate import find_rate

LINE = shlex.split("train --image-size 8 --train-size 200 --batch-size 32 --cpu --epochs 3 --model tiny.json")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command leaves in a folder that had a network's spec."""
    folder = tmp_path_factory.mktemp("rates")
    tiny_spec(folder)
    with pytest.MonkeyPatch.context() as there:
        there.chdir(folder)
        read: list[str] = []
        whole = ArraySource.read
        there.setattr(ArraySource, "read", lambda self, i: read.append(self.name(i)) or whole(self, i))
        assert cli.main([*LINE, "--find-lr", "rates.png", "--workers", "0"]) == 0
    trainer = trainer_of(tiny_config(folder, epochs=3))
    part = trainer.batches.parts["train"]
    # Of the others one image each tells that they can be read at all.
    assert len(set(read) - {part.name(i) for i in range(len(part))}) <= 2
    return folder


def test_a_curve_its_figures_and_nothing_else(found: Path) -> None:
    assert {path.name for path in found.iterdir()} == {"tiny.json", "rates.png", "rates.csv"}
    rows = [{name: float(value) for name, value in row.items()} for row in read_csv(found / "rates.csv")]
    assert 20 < len(rows) <= rate_finder.STEPS
    rates = [row["lr"] for row in rows]
    assert rates == sorted(rates)
    assert all(math.isfinite(row["loss"]) for row in rows)
    with Image.open(found / "rates.png") as picture:
        assert min(picture.size) > 100


def test_it_is_the_same_each_time_and_better_than_rates_far_from_it(found: Path, tmp_path: Path) -> None:
    rate, again = find_rate(tiny_config(tmp_path, epochs=3), tmp_path / "again.png", quiet=True)
    assert [f"{float(row['loss'])}" for row in read_csv(found / "rates.csv")] == [str(x) for x in again.losses]
    losses: dict[float, Any] = {}
    for factor in (0.01, 1):
        output = tmp_path / f"run{factor}"
        train(tiny_config(tmp_path, epochs=3, lr=rate * factor, warmup=0.0).changed(output=output), quiet=True)
        losses[factor] = json.loads((output / "summary.json").read_text())["validation"]["loss"]
    assert losses[1] < losses[0.01]


def test_where_the_loss_does_not_fall_or_is_no_number_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(tiny_config(tmp_path, accumulate=2))
    monkeypatch.setattr(trainer, "micro_step", lambda images, targets, number: 1.0 + number)
    with pytest.raises(UserError, match="did not fall with any"):
        assert range_test(trainer).suggestion

    def breaks(images: object, targets: object, number: int) -> float:
        if number > 30:
            raise rate_finder.NonFiniteLossError("nan")
        return 5.0 - number / 10

    monkeypatch.setattr(trainer, "micro_step", breaks)
    found = range_test(trainer)
    assert len(found.rates) == 15
    assert found.suggestion == float(f"{found.rates[-1] / 10:.1e}")
    assert RangeTest([1.0] * 9, [0.0] * 9, [9, 8, 7, 6, 5, 4, 3, 4, 5]).lowest == 6


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--find-lr rates.jpg", "ends in .png"),
        ("--find-lr there.png", "there.csv exists already and is not overwritten"),
        ("--find-lr no/rates.png", "there is no folder"),
        ("--find-lr new.png --dry-run", "--find-lr has no effect here, for --dry-run only looks"),
        ("--find-lr new.png --lr 1", "--lr has no effect here, for --find-lr tries all rates"),
        ("--find-lr new.png --output run", "--output has no effect here, for --find-lr leaves no run"),
        ("--find-lr new.png --resume run", "leave out --"),
        ("--find-lr new.png --batch-size 999", "fewer than batch_size 999"),
    ],
)
def test_mistakes_are_one_sentence(
    flags: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_spec(tmp_path)
    Path("there.csv").touch()
    assert cli.main([*LINE, *flags.split()]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert words in said
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.json", "there.csv"}
