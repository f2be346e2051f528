"""Evaluating a finished run gives what the run itself reported."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest
from tiny import tiny_config

from hadaptive.evaluate import evaluate_run, print_evaluation
from hadaptive.metrics import Evaluation, wilson_interval
from hadaptive.runs import RunFolder
from hadaptive.train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    train(tiny_config(folder, ema=0.9), quiet=True)
    return folder / "run"


@pytest.mark.parametrize(("correct", "total"), [(0, 5), (5, 5), (3, 7), (8496, 10_000)])
def test_wilson_interval(correct: int, total: int) -> None:
    expected = binomtest(correct, total).proportion_ci(method="wilson")
    assert wilson_interval(correct, total) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_figures_are_those_of_the_runs_own_test(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation, classes, files = evaluate_run(run, cpu=True)
    summary = json.loads((run / "summary.json").read_text())
    assert evaluation.summary() == summary["test"]
    written = json.loads(files["figures"].read_text())
    assert written["accuracy"] == summary["test"]["accuracy"]
    confusion = evaluation.confusion()
    assert int(confusion.sum()) == 360
    assert int(confusion.diagonal().sum()) == evaluation.correct
    with open(files["per class"], newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["class"] for row in rows) == sorted(classes)
    assert sum(int(row["images"]) for row in rows) == 360
    print_evaluation(evaluation, classes, files)
    assert f"{evaluation.accuracy:.2%}" in capsys.readouterr().out


def test_validation_part(run: Path) -> None:
    evaluation, _, files = evaluate_run(run, split="validation", cpu=True)
    summary = json.loads((run / "summary.json").read_text())
    assert evaluation.accuracy == pytest.approx(summary["validation_accuracy"])
    assert files["figures"].name == "evaluation-validation.json"


def test_run_made_in_half_precision_is_evaluated_without_a_gpu(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(
        json.dumps({**config, "execution": {**config["execution"], "mixed_precision": "fp16"}})
    )
    assert evaluate_run(copy, cpu=True)[0].total == 360


def test_other_classes_are_refused(run: Path, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(30):
            pixels = np.random.default_rng(i).integers(0, 255, (9, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{i}.png")
    with pytest.raises(ValueError, match="none of the 360 images of the test part is here"):
        evaluate_run(run, data=str(tmp_path / "pets"), cpu=True)


def test_unfinished_run_is_one_sentence(run: Path, tmp_path: Path) -> None:
    new = RunFolder.create(tmp_path / "new")
    for name in ("config.json", "model.json"):
        shutil.copy(run / name, new.path / name)
    with pytest.raises(ValueError, match="not finished an epoch"):
        evaluate_run(new.path, cpu=True)


def test_unreadable_images_do_not_count() -> None:
    targets, predictions = torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0])
    evaluation = Evaluation(targets, predictions, torch.ones(3, dtype=torch.bool), torch.zeros(3), 3, [7])
    assert evaluation.accuracy == pytest.approx(2 / 3)
    assert evaluation.unreadable == [7]
    assert evaluation.confusion().tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]


def test_a_class_without_images_is_said_to_have_none(capsys: pytest.CaptureFixture[str]) -> None:
    targets = torch.tensor([0, 1, 1, 0, 0])
    evaluation = Evaluation(targets, torch.zeros(5, dtype=torch.int64), targets > 9, targets.float(), 4, [])
    print_evaluation(evaluation, ["ant", "bee", "cat", "dog"], {})
    out = capsys.readouterr().out
    assert "accuracy 3 of 5 (60%, 95% interval 23% to 88%), loss 0.4000" in out
    assert "nan" not in out
    assert out.count("no images") == 2
    assert out.count("never predicted") == 3
