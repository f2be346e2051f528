"""Training that starts from another network: from a run, from a file, with fixed selections."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_config

from hadaptive.cards import open_weights
from hadaptive.cli import main
from hadaptive.export.finetune import finetune
from hadaptive.export.freeze import calibrate, freeze
from hadaptive.nn import FixedSelection, expansions
from hadaptive.runs import RunFolder
from hadaptive.train import TrainConfig, Trainer, resume, train, train_or_resume

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    train(tiny_config(folder, epochs=1), quiet=True)
    return folder / "run"


def settings(finished: Path) -> TrainConfig:
    return TrainConfig.from_dict(json.loads((finished / "config.json").read_text()))


def frozen_of(finished: Path) -> tuple[torch.nn.Module, object]:
    network, card = RunFolder.open(finished).load_model("last")
    images = torch.randn(16, 3, 8, 8)
    return freeze(network, calibrate(network, [images])), card


def tune(frozen: torch.nn.Module, card, folder: Path, epochs: int) -> torch.nn.Module:
    run = RunFolder.open(folder)
    return finetune(frozen, card, run, run.open_data(), epochs)


def test_a_run_starts_from_another(finished: Path, tmp_path: Path) -> None:
    config = settings(finished).changed(model=None, init=finished, output=tmp_path / "next")
    tiny_step = config.changed(lr=1e-9, warmup_lr=1e-10, min_lr=0.0, epochs=1, select="last")
    summary = train(tiny_step, quiet=True)
    assert summary["model"] == json.loads((finished / "summary.json").read_text())["model"]
    after = load_file(tmp_path / "next/last.safetensors")
    which = json.loads((finished / "config.json").read_text())["select"]
    before = load_file(finished / f"{which}.safetensors")
    for name in before:
        if name.endswith("weight"):
            torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-5)
    assert main(["evaluate", str(tmp_path / "next")]) == 0


def test_what_is_given_beside_a_start_is_done_and_recorded(finished: Path, tmp_path: Path) -> None:
    """Dropout beside --init was recorded and not done."""
    finished = shutil.copytree(finished, tmp_path / "first")
    config = settings(finished).changed(model=None, init=finished, output=tmp_path / "next", epochs=1)
    train(config.changed(drop_rate=0.45), quiet=True)
    network, card = RunFolder.open(tmp_path / "next").load_model()
    assert card.drop_rate == 0.45
    assert network.drop_rate == 0.45
    stored = json.loads((tmp_path / "next/config.json").read_text())["network"]
    assert stored["drop_rate"] == 0.45
    assert stored["model"] is None
    assert stored["init"] == str(finished.resolve())
    assert card.started_from is not None
    RunFolder(finished).save_weights(network, RunFolder(finished).choice())
    with pytest.raises(ValueError, match=r"other settings \(network\)"):  # other weights under the same name
        train_or_resume(config.changed(drop_rate=0.45), quiet=True)


def test_fixed_selections_are_trained_and_resumed_exactly(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen, card = frozen_of(finished)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        shutil.copytree(finished, folder)
    tune(frozen, card, whole, epochs=2)  # pyright: ignore[reportArgumentType]
    checkpoint, count = Trainer.checkpoint, []

    def stop(self: Trainer, run: RunFolder) -> None:
        checkpoint(self, run)
        count.append(1)
        if len(count) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "checkpoint", stop)
    with pytest.raises(KeyboardInterrupt):
        tune(frozen, card, broken, epochs=2)  # pyright: ignore[reportArgumentType]
    again = tune(frozen, card, broken, epochs=2)  # pyright: ignore[reportArgumentType]
    first, second = (load_file(folder / "finetuned/last.safetensors") for folder in (whole, broken))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    chosen = {name: layer.select.index for name, layer in expansions(frozen).items()}
    for name, layer in expansions(again).items():
        assert isinstance(layer.select, FixedSelection)
        assert torch.equal(layer.select.index, chosen[name])
        assert not torch.equal(layer.norm.weight, expansions(frozen)[name].norm.weight)
    # A third call trains nothing.
    summary = (broken / "finetuned/summary.json").stat().st_mtime_ns
    tune(frozen, card, broken, epochs=2)  # pyright: ignore[reportArgumentType]
    assert (broken / "finetuned/summary.json").stat().st_mtime_ns == summary
    with pytest.raises(ValueError, match="other settings"):
        tune(frozen, card, broken, epochs=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="finished"):
        resume(broken / "finetuned")
    assert json.loads((whole / "finetuned/summary.json").read_text())["test"] is None
    other, _ = frozen_of(finished)
    next(iter(other.parameters())).data.add_(1)
    with pytest.raises(ValueError, match="holds other weights or selections"):
        tune(other, card, broken, epochs=2)  # pyright: ignore[reportArgumentType]


def test_a_begun_run_needs_no_longer_what_it_started_from(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen, card = frozen_of(finished)
    shutil.copytree(finished, tmp_path / "run")
    checkpoint = Trainer.checkpoint

    def stop(self: Trainer, run: RunFolder) -> None:
        checkpoint(self, run)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            tune(frozen, card, tmp_path / "run", epochs=2)  # pyright: ignore[reportArgumentType]
    (tmp_path / "run/finetuned.safetensors").unlink()
    (tmp_path / "run/finetuned").rename(tmp_path / "moved")
    resume(tmp_path / "moved", quiet=True)
    trained, _ = RunFolder.open(tmp_path / "moved").load_model("last")
    assert all(isinstance(layer.select, FixedSelection) for layer in expansions(trained).values())


def test_exported_weights_are_a_start_and_fixed_selections_stay(finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "net.safetensors"
    flags = ["--format", "safetensors", "--output", str(output), "--freeze", "--force", "--images", "8"]
    assert main(["export", str(finished), *flags]) == 0
    network, card = open_weights(output)
    assert all(isinstance(layer.select, FixedSelection) for layer in expansions(network).values())
    config = settings(finished).changed(model=None, init=output, output=tmp_path / "run", epochs=1)
    train(config, quiet=True)
    trained, new = RunFolder.open(tmp_path / "run").load_model("last")
    assert new.classes == card.classes
    for name, layer in expansions(trained).items():
        assert torch.equal(layer.select.index, expansions(network)[name].select.index)


@pytest.mark.slow
def test_export_fine_tunes(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "a.safetensors"
    command = ["export", str(finished), "--freeze", "--finetune", "1", "--force", "--images", "8"]
    assert main([*command, "--format", "safetensors", "--output", str(output)]) == 0
    assert "after 1 epochs with the fixed selections" in capsys.readouterr().out
    proof = json.loads((tmp_path / "a.safetensors.proof.json").read_text())
    assert {"accuracy_dynamic", "accuracy_frozen", "accuracy_finetuned"} <= proof.keys()
    tuned = load_file(finished / "finetuned/last.safetensors")
    written = load_file(output)
    assert all(torch.equal(tuned[name], written[name]) for name in tuned)


@pytest.mark.slow
def test_what_a_run_began_with_is_no_part_of_its_fine_tuning(finished: Path, tmp_path: Path) -> None:
    """Its teacher may be gone, and its classifier has learned by now."""
    shutil.copytree(finished, tmp_path / "teacher")
    config = settings(finished).changed(model=None, init=finished, output=tmp_path / "run", freeze_backbone=1)
    train(config.changed(teacher=str(tmp_path / "teacher"), patience=1, epochs=2), quiet=True)
    shutil.rmtree(tmp_path / "teacher")
    flags = ["--freeze", "--finetune", "1", "--force", "--images", "8", "--format", "safetensors"]
    assert main(["export", str(tmp_path / "run"), *flags, "--output", str(tmp_path / "a.safetensors")]) == 0
    tuned = RunFolder.open(tmp_path / "run/finetuned")
    assert open_weights(tmp_path / "a.safetensors")[1].temperature == tuned.load_model("last")[1].temperature


def test_what_cannot_be_a_start(finished: Path, tmp_path: Path) -> None:
    config = settings(finished).changed(model=None, output=tmp_path / "new")
    for changes, sentence in (
        ({"init": tmp_path / "nothing"}, "no run folder or file"),
        ({"init": finished / "summary.json"}, "damaged or was not written by hadaptive export"),
        ({"init": finished, "in_chans": 1}, "takes 3 channels, not 1"),
        ({"init": finished, "model": "resnet18"}, "has its own network: leave --model out"),
    ):
        with pytest.raises(ValueError, match=sentence):
            train(config.changed(**changes), quiet=True)
    assert not (tmp_path / "new").exists()
