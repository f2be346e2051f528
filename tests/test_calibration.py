"""How sure a network says that it is: found on the validation part, and carried wherever the network goes."""

import json
from pathlib import Path

import pytest
import torch
from tiny import tiny_config

from hadaptive.cli import main
from hadaptive.data import DataConfig, eval_transform, open_data
from hadaptive.errors import UserError
from hadaptive.evaluate import evaluate_run
from hadaptive.measure.sessions import load
from hadaptive.metrics import fit_temperature
from hadaptive.runs import RunFolder
from hadaptive.train import train
from hadaptive.train.network import starting_network

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a network that is far less sure than it could be."""
    folder = tmp_path_factory.mktemp("calibration")
    train(tiny_config(folder, epochs=6, label_smoothing=0.4, train_size=600), quiet=True)
    return folder / "run"


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_is_found(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 5, generator=generator)
    targets = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    assert fit_temperature(temperature * logits, targets) == pytest.approx(temperature, rel=0.05)


def test_few_mistakes_tell_nothing() -> None:
    targets = torch.arange(500) % 5
    logits = torch.nn.functional.one_hot(targets, 5).float()
    assert fit_temperature(logits, targets) == 1.0
    logits[:9] = logits[:9].roll(1, 1)
    assert fit_temperature(logits, targets) == 1.0
    logits[:10] = torch.nn.functional.one_hot((targets[:10] + 1) % 5, 5).float()
    logits[20] = torch.nan  # counts for nothing
    assert fit_temperature(logits, targets) < 0.5


def test_a_run_is_as_sure_as_it_is_right(run: Path) -> None:
    folder = RunFolder.open(run)
    known = json.loads(folder.calibration.read_text())
    network, card = folder.load_model()
    assert known["weights"] == folder.choice()
    assert card.temperature == known["temperature"] < 0.9
    data = folder.open_data()
    images = torch.stack(
        [eval_transform(card.preprocessing)(data.validation.read(i)[0]) for i in range(known["images"])]
    )
    targets = torch.from_numpy(data.validation.targets)
    with torch.no_grad():
        assert fit_temperature(network(images), targets) == pytest.approx(card.temperature, rel=1e-2)
    summary = json.loads(folder.summary.read_text())
    evaluation, _, files = evaluate_run(run)
    assert summary["test"]["calibration_error"] == pytest.approx(evaluation.calibration_error, abs=1e-6)
    assert files["reliability"].is_file()
    folder.calibration.rename(run / "away")
    try:
        assert evaluate_run(run)[0].calibration_error > evaluation.calibration_error
    finally:
        (run / "away").rename(folder.calibration)


def test_other_weights_have_no_temperature(run: Path) -> None:
    folder = RunFolder.open(run)
    other = "last" if folder.choice() == "best" else "best"
    assert folder.load_model(other)[1].temperature == 1.0
    config = tiny_config(run.parent, "next", model=None, init=run)
    assert starting_network(config, folder.read_card().classes)[1].temperature == 1.0


@pytest.mark.parametrize("kind", ["safetensors", "onnx"])
def test_an_exported_file_is_as_sure_as_the_run(kind: str, run: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / f"network.{kind}"
    assert main(["export", str(run), "--format", kind, "--output", str(output), "--images", "8"]) == 0
    assert load(output)[1].temperature == RunFolder.open(run).load_model()[1].temperature
    test = open_data(DataConfig("digits")).test
    assert test is not None
    picture = tmp_path / "digit.png"
    test.read(0)[0].save(picture)
    capsys.readouterr()
    said = []
    for source in (run, output):
        assert main(["predict", str(source), str(picture), "--json"]) == 0
        said.append(json.loads(capsys.readouterr().out)["classes"])
    assert [name for name, _ in said[0]] == [name for name, _ in said[1]]
    for (_, one), (_, other) in zip(*said, strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    network, card = RunFolder.open(run).load_model()
    with torch.no_grad():
        chances = (network(eval_transform(card.preprocessing)(test.read(0)[0])[None]) / card.temperature).softmax(
            1
        )
    assert said[0][0][1] == pytest.approx(float(chances.max()), rel=1e-4)


def test_what_is_not_likely_enough_is_unknown(run: Path, tmp_path: Path, capsys) -> None:
    test = open_data(DataConfig("digits")).test
    assert test is not None
    test.read(0)[0].save(tmp_path / "digit.png")
    line = ["predict", str(run), str(tmp_path / "digit.png")]
    assert main([*line, "--json"]) == 0
    likeliest = json.loads(capsys.readouterr().out)["classes"][0][1]
    for limit, unknown in ((likeliest - 1e-3, False), (min(1.0, likeliest + 1e-3), likeliest < 1)):
        assert main([*line, "--json", "--reject-below", str(limit)]) == 0
        assert json.loads(capsys.readouterr().out)["unknown"] is unknown
    assert main([*line, "--reject-below", "1", "--sheet", str(tmp_path / "sheet.png")]) == 0
    assert "unknown" in capsys.readouterr().out
    assert main([*line, "--reject-below", "1.5"]) == 1
    assert "reject_below must lie between 0 and 1" in capsys.readouterr().err


@pytest.mark.parametrize("content", ['{"weights": "best"}', '{"temperature": -1, "weights": "best"}', "[]", "{"])
def test_a_damaged_file_is_said(content: str, run: Path, tmp_path: Path) -> None:
    folder = RunFolder.open(run)
    kept = folder.calibration.read_text()
    try:
        folder.calibration.write_text(content.replace("best", folder.choice()))
        with pytest.raises(UserError, match=r"calibration\.json is damaged"):
            folder.load_model()
    finally:
        folder.calibration.write_text(kept)
