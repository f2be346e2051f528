"""Evaluating a finished run gives what the run itself reported."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from folders import fill, picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binomtest
from tiny import tiny_config

from hadaptive.cli import main
from hadaptive.data import DataConfig, eval_transform
from hadaptive.data.apart import open_apart
from hadaptive.errors import UserError
from hadaptive.evaluate import each_image, evaluate_run, print_evaluation
from hadaptive.files import read_csv
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


# ---------------------------------------------------------------- each image, and other images


def test_every_image_has_a_row(run: Path) -> None:
    evaluation, classes, files = evaluate_run(run, cpu=True)
    rows = read_csv(files["each image"])
    assert len(rows) == evaluation.total
    assert sum(int(row["right"]) for row in rows) == evaluation.correct
    test = RunFolder.open(run).open_data().test
    assert test is not None
    network, card = RunFolder.open(run).load_model()
    see = eval_transform(card.preprocessing)
    for number in (0, 7, len(rows) - 1):
        image, target = test.read(number)
        with torch.no_grad():
            chances = (network(see(image)[None]) / card.temperature).softmax(1)[0]
        row = rows[number]
        assert row["image"] == test.name(number)
        assert (row["class"], row["prediction"]) == (classes[target], classes[int(chances.argmax())])
        assert float(row["probability"]) == pytest.approx(float(chances.max()), abs=1e-4)


def test_rows_and_unreadable_images_keep_their_numbers() -> None:
    evaluation = Evaluation(
        torch.tensor([0, 1]),
        torch.tensor([0, 0]),
        torch.ones(2) > 0,
        torch.zeros(2),
        2,
        [1],
        torch.tensor([0.9, 0.8]),
    )
    rows = each_image(evaluation, ["x", "y"], None)
    assert [(row["image"], row["right"]) for row in rows] == [("#0", 1), ("#2", 0)]


@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=60))
def test_calibration_error(pairs: list[tuple[float, bool]]) -> None:
    confidences = torch.tensor([c for c, _ in pairs])
    targets = torch.zeros(len(pairs), dtype=torch.int64)
    predictions = torch.tensor([0 if right else 1 for _, right in pairs])
    found = Evaluation(targets, predictions, targets > 9, targets.float(), 2, [], confidences).calibration_error
    expected = 0.0
    for low in range(15):
        inside = [(float(c), right) for c, right in zip(confidences, [r for _, r in pairs], strict=True)
                  if min(14, int(15 * c)) == low]  # fmt: skip
        expected += abs(sum(c - right for c, right in inside)) / len(pairs)
    assert found == pytest.approx(expected, abs=1e-5)
    assert 0 <= found <= 1


def test_a_folder_of_ones_own_is_measured_without_what_was_learned(tmp_path: Path, capsys) -> None:
    pets = fill(tmp_path / "pets", {"cat": 30, "dog": 30})
    config = tiny_config(tmp_path, data=str(pets), train_size=None, epochs=1)
    train(config, quiet=True)
    other = tmp_path / "validation"  # a name that is one of the run's parts
    for target, name in enumerate(("Dog", "cat")):
        (other / name).mkdir(parents=True)
        for number in range(5):
            picture(target, 900 + number).save(other / name / f"{number}.png")
    trained = RunFolder.open(tmp_path / "run").read_manifest()
    assert trained is not None
    shutil.copy(pets / trained.names("train")[0], other / "cat/seen.png")
    with pytest.raises(UserError, match="classes that the network does not know"):
        evaluate_run(tmp_path / "run", on=str(other))
    (other / "Dog").rename(other / "dog")
    assert main(["evaluate", str(tmp_path / "run"), "--on", str(other)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 images are left out, for the network has learned from them" in said
    rows = read_csv(tmp_path / "run/predictions-on-validation.csv")
    assert sorted(row["class"] for row in rows) == ["cat"] * 5 + ["dog"] * 5
    assert not (tmp_path / "run/evaluation-validation.json").exists()
    figures = json.loads((tmp_path / "run/evaluation-on-validation.json").read_text())
    assert (figures["images"], figures["split"], figures["data"]) == (10, None, str(other))
    for path in other.glob("*/[0-9]*"):
        path.unlink()
    shutil.copy(pets / trained.names("train")[-1], other / "dog/seen.png")
    with pytest.raises(UserError, match="no image that the network has not learned from"):
        evaluate_run(tmp_path / "run", on=str(other))
    with pytest.raises(UserError, match="leave data and split out"):
        evaluate_run(tmp_path / "run", on=str(other), split="validation")


def test_of_data_with_parts_the_test_part_is_measured(tmp_path: Path) -> None:
    train(tiny_config(tmp_path, epochs=1), quiet=True)
    parts = {part: fill(tmp_path / "apart" / part, {"0": 4, "1": 4}) for part in ("train", "test")}
    assert parts
    evaluation, _, _ = evaluate_run(tmp_path / "run", on=str(tmp_path / "apart"))
    assert evaluation.total == 8


def test_other_places_of_one_name_do_not_overwrite_each_other(run: Path, tmp_path: Path) -> None:
    files = []
    for parent in ("a", "b"):
        fill(tmp_path / parent / "mine", {"0": 3, "1": 3})
        files.append(evaluate_run(run, on=str(tmp_path / parent / "mine"))[2])
    again = evaluate_run(run, on=str(tmp_path / "a/mine"))[2]
    assert again == files[0]
    assert set(files[0].values()).isdisjoint(files[1].values())
    assert all(path.is_file() for found in files for path in found.values())


def test_a_run_that_does_not_know_its_images_says_so(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    others = fill(tmp_path / "others", {"0": 3, "1": 3})
    (copy / "split.csv").unlink()
    with pytest.raises(UserError, match=r"has lost its split\.csv"):
        evaluate_run(copy, on=str(others))
    assert "nobody knows" in open_apart(DataConfig(str(others)), [*"0123456789"], None)[2][-1]
