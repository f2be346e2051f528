"""Images of any number of classes each, from the labels to the exported file."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import f1_score
from tiny import tiny_config, trainer_of

from hadaptive.cli import main
from hadaptive.data import DataConfig, LabelSets, open_data
from hadaptive.errors import UserError
from hadaptive.evaluate import evaluate_run
from hadaptive.files import read_csv
from hadaptive.measure.sessions import load
from hadaptive.mistakes import Judgement
from hadaptive.multi_label import FEWEST, MultiLabelEvaluation, fit_multi_label
from hadaptive.runs import RunFolder
from hadaptive.search import SearchConfig
from hadaptive.train import TrainConfig, resume, train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

CLASSES = ["big dog", "cat", "tree"]  # each lights a corner of its own
CORNERS = ((0, 0), (0, 4), (4, 0))


def light(folder: Path, number: int = 320, chances: tuple[float, ...] = (0.5, 0.5, 0.3), seed: int = 0) -> Path:
    """Make folder/class|class/number.png: every picture has at least one class, and noise."""
    random = np.random.default_rng(seed)
    for i in range(number):
        there = random.random(3) < chances
        if not there.any():
            there[random.integers(3)] = True
        pixels = random.integers(0, 90, (8, 8))
        for one, (y, x) in enumerate(CORNERS):
            pixels[y : y + 4, x : x + 4] += 110 * there[one]
        named = [name for name, marked in zip(CLASSES, there, strict=True) if marked]
        place = folder / "|".join(named if i % 2 else named[::-1])  # the order says nothing
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i}.png")
    return folder


def several(folder: Path, name: str = "run", **changes: Any) -> TrainConfig:
    """A training of seconds on pictures of several classes each."""
    images = folder / "images"
    if not images.exists():
        light(images)
    plain: dict[str, Any] = {
        "train_size": None,
        "shift": 0,
        "epochs": 8,
        "batch_size": 16,
        "multi_label": True,
        "lr": 1e-2,
    }
    return tiny_config(folder, name, data=str(images), **{**plain, **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    train(several(folder), quiet=True)
    return folder / "run"


NAMES = st.lists(st.sampled_from(["a", "b b", "é", "c"]), max_size=4)


@settings(max_examples=50)
@given(st.lists(NAMES, min_size=1, max_size=8).filter(any), st.sampled_from(["|", ",", "; "]))
def test_sets_are_what_labels_name(sets: list[list[str]], separator: str) -> None:
    found = LabelSets.of([separator.join(names) for names in sets], separator)
    assert found.classes == sorted({name for names in sets for name in names})
    for row, names in zip(found.members, sets, strict=True):
        assert {name for name, there in zip(found.classes, row, strict=True) if there} == set(names)


def test_spellings_of_a_name_are_one_class_and_unknown_ones_are_said() -> None:
    assert LabelSets.of(["e\u0301|a", "\u00e9", ""], "|").members.tolist() == [
        [True, True],
        [False, True],
        [False, False],
    ]
    with pytest.raises(UserError, match="classes that the network does not know \\(zebra\\)"):
        LabelSets.of(["a|zebra"], "|", ["a", "b"])
    with pytest.raises(UserError, match="not one image has a class"):
        LabelSets.of(["", " "], "|")


def test_every_class_is_found_and_everything_says_so(run: Path) -> None:
    folder = RunFolder.open(run)
    network, card = folder.load_model()
    assert card.classes == CLASSES
    assert card.multi_label
    summary = folder.read_json(folder.summary)
    assert summary["test"]["mean_average_precision"] > 0.9
    assert summary["validation"]["macro_f1"] > 0.8
    rows = read_csv(folder.metrics)
    best = max(float(row["val_average_precision"]) for row in rows)
    assert float(rows[summary["best_epoch"]]["val_average_precision"]) == best
    evaluation, classes, files = evaluate_run(run, cpu=True)
    assert isinstance(evaluation, MultiLabelEvaluation)
    assert classes == CLASSES
    again = json.loads(files["figures"].read_text())
    assert again["mean_average_precision"] == pytest.approx(summary["test"]["mean_average_precision"])
    assert "confusion matrix" not in files
    files = evaluate_run(run, split="validation", cpu=True)[2]
    again = json.loads(files["figures"].read_text())
    for name in ("accuracy", "macro_f1", "calibration_error"):  # by the thresholds that predictions count from
        assert again[name] == pytest.approx(summary["validation"][name], abs=1e-6)
    assert again["thresholds"] == list(card.thresholds or ())
    files = evaluate_run(run, cpu=True)[2]
    test = folder.open_data().test
    assert test is not None
    with files["each image"].open(newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            assert set(json.loads(row["classes"])) == set(Path(row["image"]).parent.name.split("|"))
            chances = json.loads(row["probabilities"])
            counts = [
                name for name, least in zip(CLASSES, card.thresholds or (), strict=True) if chances[name] >= least
            ]
            assert json.loads(row["predictions"]) == counts
            assert row["image"] == test.name(number)
    with torch.no_grad():
        logits = network(torch.zeros(1, 3, 8, 8))
    assert torch.equal(card.probabilities(logits), (logits / card.temperature).sigmoid())


def test_figures_are_those_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(200, 4, generator=generator) < 0.4
    chances = (truth + torch.randn(200, 4, generator=generator)).sigmoid()
    evaluation = MultiLabelEvaluation(truth, chances, torch.tensor([0.5, 0.6, 0.7, 0.8]), chances.mean(1), [])
    said = evaluation.found.numpy()
    figures = evaluation.summary()
    assert figures["macro_f1"] == pytest.approx(f1_score(truth.numpy(), said, average="macro"))
    assert figures["micro_f1"] == pytest.approx(f1_score(truth.numpy(), said, average="micro"))
    assert figures["accuracy"] == (truth.numpy() == said).all(1).mean()


def test_thresholds_are_those_of_the_best_f1_and_few_images_tell_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(400, 3, generator=generator) < torch.tensor([0.5, 0.1, 0.001])
    truth[: FEWEST - 1, 2] = True
    truth[FEWEST - 1 :, 2] = False
    logits = 2.0 * truth - torch.tensor([1.0, 3.0, 1.0]) + torch.randn(400, 3, generator=generator)
    temperature, thresholds = fit_multi_label(logits, truth)
    chances = (logits / temperature).sigmoid()
    assert thresholds[2] == 0.5
    for one in (0, 1):
        best = max(f1_score(truth[:, one], chances[:, one] >= float(least)) for least in chances[:, one])
        assert f1_score(truth[:, one], chances[:, one] >= thresholds[one]) == pytest.approx(best)
    assert thresholds[1] < thresholds[0]


def test_the_loss_is_binary_cross_entropy_of_each_class(tmp_path: Path) -> None:
    criterion = trainer_of(several(tmp_path, label_smoothing=0.2)).criterion
    sets = LabelSets.of(open_data(DataConfig(str(tmp_path / "images"))).classes, "|")
    targets, logits = torch.tensor([0, 3, 1]), torch.randn(3, 3)
    _, aims = criterion.mixed(torch.zeros(3, 3, 8, 8), targets)
    smooth = torch.from_numpy(sets.members)[targets] * 0.8 + 0.1
    torch.testing.assert_close(aims, smooth.float())
    by_hand = F.binary_cross_entropy_with_logits(logits, smooth.float(), reduction="none").mean(1)
    torch.testing.assert_close(criterion.each(logits, aims), by_hand)
    torch.testing.assert_close(criterion(logits, aims), by_hand.mean())


def test_mixed_images_have_the_classes_of_both(tmp_path: Path) -> None:
    criterion = trainer_of(several(tmp_path, mixup=1.0, label_smoothing=0.0)).criterion
    members = criterion.members
    assert members is not None
    images = torch.rand(4, 3, 8, 8)
    mixed, aims = criterion.mixed(images.clone(), torch.tensor([0, 1, 2, 3]))
    share = ((mixed - images.flip(0)) / (images - images.flip(0))).median()  # of the first, as mixup has it
    torch.testing.assert_close(aims, share * members[:4] + (1 - share) * members[:4].flip(0), atol=1e-4, rtol=0)


def test_class_weights_find_what_is_rare(tmp_path: Path) -> None:
    light(tmp_path / "images", 240, (0.6, 0.6, 0.06))
    recalls = []
    for weights in (False, True):
        config = several(tmp_path, f"weights-{weights}", class_weights=weights, epochs=3, lr=3e-3)
        trainer = trainer_of(config)
        train(config, quiet=True)
        folder = RunFolder.open(config.output or "")
        network = folder.load_model("last")[0]
        source = folder.open_data().train
        images = torch.stack([torch.from_numpy(np.array(source.read(i)[0])) for i in range(len(source))])
        sets = LabelSets.of(folder.open_data().classes, "|")
        truth = sets.members[source.targets][:, 2]
        with torch.no_grad():
            logits = network((images[:, None].expand(-1, 3, -1, -1) / 255 - 0.5) / 0.5)
        recalls.append(float((logits[truth, 2] > 0).float().mean()))
        if weights:
            assert trainer.criterion.weights is not None
            assert trainer.criterion.weights[2] > 5 * trainer.criterion.weights[0]
    assert recalls[1] > recalls[0]


def test_a_resumed_run_has_the_same_weights(tmp_path: Path, run: Path, monkeypatch) -> None:
    from tiny import stopped_after

    images = str(run.parent / "images")
    config = several(tmp_path, "stopped").changed(data=images)
    stopped_after(11, config, monkeypatch)
    resume(tmp_path / "stopped", quiet=True)
    assert (tmp_path / "stopped" / "best.safetensors").read_bytes() == (run / "best.safetensors").read_bytes()


@pytest.mark.parametrize("suffix", ["onnx", "safetensors"])
def test_exports_and_predictions_carry_it_along(suffix: str, run: Path, tmp_path: Path, capsys) -> None:
    output, picture = tmp_path / f"net.{suffix}", next((run.parent / "images" / "big dog").glob("*.png"))
    assert (
        main(["export", str(run), "--format", suffix, "--output", str(output), "--reject-below", "tree=0.99"]) == 0
    )
    _, card = RunFolder.open(run).load_model()
    carried = load(output)[1]
    assert carried.multi_label
    assert carried.thresholds == (*(card.thresholds or ())[:2], 0.99)
    capsys.readouterr()
    said = []
    for source in (run, output):
        assert main(["predict", str(source), str(picture), "--json"]) == 0
        said.append(json.loads(capsys.readouterr().out))
    assert said[0]["present"] == said[1]["present"] == ["big dog"]
    assert said[0]["classes"][0][1] == pytest.approx(said[1]["classes"][0][1], abs=1e-4)
    sheet = tmp_path / "sheet.png"
    assert main(["predict", str(run), str(picture), "--reject-below", "1", "--sheet", str(sheet)]) == 0
    assert "counts" in capsys.readouterr().out
    assert sheet.is_file()


def test_int8_counts_images_of_which_every_class_is_right(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--int8", "--force", "--output", str(tmp_path / "net.onnx")]) == 0
    proof = json.loads((tmp_path / "net.onnx.proof.json").read_text())
    folder = RunFolder.open(run)
    exact = folder.read_json(folder.summary)["validation"]["accuracy"]
    assert abs(proof["int8"]["accuracy_float32"] - exact) < 0.3


def test_other_images_are_measured_by_the_same_classes(run: Path, tmp_path: Path, capsys) -> None:
    light(tmp_path / "others", 30, seed=5)
    assert main(["evaluate", str(run), "--on", str(tmp_path / "others")]) == 0
    assert "mean average precision" in capsys.readouterr().out
    (tmp_path / "others" / "cat|zebra").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "others" / "cat|zebra" / "1.png")
    assert main(["evaluate", str(run), "--on", str(tmp_path / "others")]) == 1
    assert "does not know (zebra)" in capsys.readouterr().err


def test_a_teacher_of_the_same_kind_teaches(run: Path, tmp_path: Path) -> None:
    images = str(run.parent / "images")
    for sees in ("image", "batch"):
        config = several(tmp_path, f"taught-{sees}", epochs=1, teacher=str(run), teacher_sees=sees)
        assert train(config.changed(data=images), quiet=True)["test"]["mean_average_precision"] > 0
    lone = tiny_config(tmp_path, "lone", data=str(tmp_path / "images"), train_size=None)
    with pytest.raises(UserError, match="to have any number of classes, and this training one class"):
        train(lone.changed(teacher=str(run)), quiet=True)


def test_training_on_from_it_keeps_the_classifier(run: Path, tmp_path: Path) -> None:
    config = several(tmp_path, "on", epochs=1, lr=1e-5, model=None, init=run)
    assert (
        train(config.changed(data=str(run.parent / "images")), quiet=True)["test"]["mean_average_precision"] > 0.9
    )


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--multi-label", "--balanced"], "with multi_label use class_weights"),
        (["--label-separator", ","], "--label-separator has no effect"),
        (["--multi-label", "--label-separator", ""], "label_separator must be what stands between"),
        (["--multi-label", "--data", "wds/there"], "is a stream, whose labels are numbers"),
    ],
)
def test_mistakes_are_one_sentence(typed: list[str], said: str, tmp_path: Path, capsys) -> None:
    assert main(["train", "--output", str(tmp_path / "run"), *typed]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_search_says_that_it_learns_from_one_class_an_image() -> None:
    with pytest.raises(UserError, match="a search learns from images of one class each"):
        SearchConfig.from_recipe("quick", multi_label=True)


# ---------------------------------------------------------------- label files


FORMS = ("sets", "flags", "rows")


def table(folder: Path, form: str, number: int = 80) -> Path:
    """Make a label file and its images, of which some have no class; the three forms say the same."""
    flat, rows = folder / "flat", []
    if not flat.exists():
        flat.mkdir(parents=True)
        random = np.random.default_rng(3)
        for i in range(number):
            Image.fromarray(random.integers(0, 255, (8, 8)).astype(np.uint8)).save(flat / f"{i}.png")
    for i in range(number):
        named = [name for bit, name in enumerate(CLASSES) if i >> bit & 1]
        if form == "sets":
            rows.append([f"flat/{i}.png", " | ".join(named[::-1])])
        elif form == "flags":
            rows.append([f"flat/{i}.png", *("1.0" if name in named else "" for name in CLASSES)])
        else:
            rows += [[f"flat/{i}.png", name] for name in named or [""]]
    header = ["file", *CLASSES] if form == "flags" else ["file", "label"]
    path = folder / f"{form}.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def columns(form: str) -> dict[str, Any]:
    return {"multi_label": True, **({"label_column": "|".join(CLASSES)} if form == "flags" else {})}


@pytest.mark.parametrize("form", FORMS)
def test_label_files_say_it_in_three_ways(form: str, tmp_path: Path) -> None:
    first = open_data(DataConfig(str(table(tmp_path, "sets")), **columns("sets")))
    found = open_data(DataConfig(str(table(tmp_path, form)), **columns(form)))
    assert found.manifest.dumps() == first.manifest.dumps()
    sets = found.label_sets()
    assert sets is not None
    assert sets.classes == CLASSES
    for i in range(len(found.train)):
        number = int(Path(found.train.name(i)).stem)
        _, target = found.train.read(i)
        assert sets.members[target].tolist() == [bool(number >> bit & 1) for bit in range(3)]
    again = open_data(found.location, found.manifest)
    assert again.label_sets(CLASSES).members.tolist() == sets.members.tolist()  # pyright: ignore


def test_a_training_on_a_label_file_with_images_of_no_class(tmp_path: Path, capsys) -> None:
    path = table(tmp_path, "flags", 120)
    line = ["train", "--data", str(path), "--multi-label", "--label-column", "|".join(CLASSES), "--cpu"]
    line += ["--group-by", r"flat/(\d)", "--epochs", "1", "--image-size", "8", "--batch-size", "8"]
    line += ["--model", str(tiny_config(tmp_path).network.model), "--output", str(tmp_path / "run")]
    assert main(line) == 0
    assert "mean average precision" in capsys.readouterr().out
    assert RunFolder.open(tmp_path / "run").read_card().classes == CLASSES
    assert main(["evaluate", str(tmp_path / "run"), "--split", "validation"]) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--on", str(table(tmp_path, "sets", 120))]) == 1
    assert "--label-column" in capsys.readouterr().err  # the run's columns are not there


def test_mistakes_in_label_files_are_sentences(tmp_path: Path) -> None:
    path = table(tmp_path, "flags")
    path.write_text(path.read_text().replace("1.0", "perhaps", 1))
    with pytest.raises(UserError, match=r"line 3 of .* has 'perhaps' in its column big dog: write 1 where"):
        open_data(DataConfig(str(path), **columns("flags")))
    with pytest.raises(UserError, match="has no column 'zebra'"):
        open_data(DataConfig(str(path), multi_label=True, label_column="cat|zebra"))
    with pytest.raises(UserError, match="has no label: fill it in"):
        open_data(DataConfig(str(table(tmp_path, "sets"))))


@pytest.mark.rendered
def test_its_report_and_its_surest_mistakes(run: Path, tmp_path: Path) -> None:
    own = tmp_path / "run"
    shutil.copytree(run, own, symlinks=True)
    known = json.loads((own / "calibration.json").read_text())
    (own / "calibration.json").write_text(json.dumps({**known, "thresholds": [0.0, 0.5, 1.0]}))  # many mistakes
    assert main(["evaluate", str(own), "--sheet", str(tmp_path / "wrong.png")]) == 0
    assert main(["report", str(own), "--cpu"]) == 0
    page = (own / "report.html").read_text(encoding="utf-8")
    for said in ("Mean average precision", "average precision", "threshold", *CLASSES):
        assert said in page
    assert (tmp_path / "wrong.png").is_file()
    assert "Places of an image of" in page


def test_the_surest_mistake_of_an_image_is_told() -> None:
    row = {"image": "x", "classes": '["a", "b"]', "predictions": '["b", "c"]'}
    one = Judgement.of({**row, "probabilities": '{"a": 0.4, "b": 0.9, "c": 0.7, "d": 0.1}'})
    assert (one.true, one.predicted, one.wrong, one.probability) == ("a, b", "b, c", "c", 0.7)
    assert not one.right


def test_a_survey_counts_classes_and_not_their_sets(tmp_path: Path, capsys) -> None:
    line = ["data", str(table(tmp_path, "flags")), "--multi-label", "--label-column", "|".join(CLASSES), "--json"]
    assert main(line) == 0
    counts = json.loads(capsys.readouterr().out)["classes"]
    assert {name: parts["images"] for name, parts in counts.items()} == dict.fromkeys(CLASSES, 40)
