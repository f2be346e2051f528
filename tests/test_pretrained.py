"""Training that starts from weights that have learned something else."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from folders import fill
from processes import launch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from tiny import stopped_after, tiny_config, tiny_spec
from torch import Tensor

from hadaptive.cli import main
from hadaptive.engine.accelerator import create_accelerator
from hadaptive.engine.config import Optimisation
from hadaptive.engine.optimiser import create_optimiser
from hadaptive.errors import UserError
from hadaptive.measure.lowering import write
from hadaptive.models import create_model
from hadaptive.runs import RunFolder
from hadaptive.train import TrainConfig, resume, train, train_or_resume
from hadaptive.train.launch import new_trainer

NAME = "test_efficientnet"
HEAD = ("classifier.weight", "classifier.bias")
TINY = {"epochs": 1, "batch_size": 16, "image_size": 32, "train_size": 64, "cpu": True, "workers": 0}
STILL = {"lr": 1e-12, "warmup_lr": 1e-13, "weight_decay": 0.0, "select": "last"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as timm writes it, of a network of seven classes."""
    folder = tmp_path_factory.mktemp("weights") / "network"
    torch.manual_seed(5)
    save_for_hf(timm.create_model(NAME, num_classes=7), str(folder), safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    train(tiny_config(folder, epochs=1), quiet=True)
    return folder / "run"


def config_of(folder: Path, **changes: Any) -> TrainConfig:
    return TrainConfig.from_recipe("quick", **{**TINY, "output": folder / "run", **changes})


def changed_between(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


# ---------------------------------------------------------------- whose weights


def test_timms_weights_with_a_new_classifier(weights: Path, tmp_path: Path, capsys) -> None:
    name = f"local-dir:{weights}"
    settings = {**TINY, **STILL, "model": name, "output": tmp_path / "run", "cpu": None, "pretrained": None}
    flags = [part for key, value in settings.items() for part in (f"--{key.replace('_', '-')}", value)]
    assert main(["train", *(str(part) for part in flags if part is not None)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"the classifier is new: {name} knows 7 classes" in said.replace("- ", "-")
    assert "--mean 0.485 0.456 0.406 --std 0.229 0.224 0.225 would give it the same" in said
    before, after = load_file(weights / "model.safetensors"), load_file(tmp_path / "run/last.safetensors")
    for key, value in before.items():
        if key not in HEAD and "running" not in key and "num_batches" not in key:
            torch.testing.assert_close(after[key], value, rtol=0, atol=1e-6)
    assert after[HEAD[0]].shape[0] == 10
    card = RunFolder(tmp_path / "run").read_card()
    assert card.model == NAME  # built again without the folder
    assert main(["evaluate", str(tmp_path / "run")]) == 0


def test_grey_images_and_the_same_classes_keep_what_was_learned(weights: Path, tmp_path: Path) -> None:
    images = fill(tmp_path / "seven", dict.fromkeys("abcdefg", 12))
    config = config_of(tmp_path, data=str(images), in_chans=1, model=f"local-dir:{weights}", pretrained=True)
    train(config.changed(**STILL, train_size=None), quiet=True)
    before, after = load_file(weights / "model.safetensors"), load_file(tmp_path / "run/last.safetensors")
    torch.testing.assert_close(after["conv_stem.weight"], before["conv_stem.weight"].sum(1, True))
    torch.testing.assert_close(after[HEAD[0]], before[HEAD[0]], rtol=0, atol=1e-6)


def test_a_run_for_other_classes(finished: Path, tmp_path: Path) -> None:
    images = fill(tmp_path / "two", {"x": 40, "y": 40})
    config = tiny_config(tmp_path, model=None, init=finished, data=str(images), train_size=None)
    train(config.changed(**STILL, epochs=1, min_lr=0.0), quiet=True)
    before, after = load_file(finished / "best.safetensors"), load_file(tmp_path / "run/last.safetensors")
    torch.testing.assert_close(after["stem.0.weight"], before["stem.0.weight"], rtol=0, atol=1e-6)
    assert after["classifier.weight"].shape[0] == 2
    card = RunFolder(tmp_path / "run").read_card()
    assert card.classes == ["x", "y"]
    assert main(["predict", str(tmp_path / "run"), str(images / "x/0.png")]) == 0


def test_the_weights_of_any_file(weights: Path, tmp_path: Path) -> None:
    path = weights / "model.safetensors"
    config = config_of(tmp_path, init=path, model=NAME, **STILL)
    train(config, quiet=True)
    before, after = load_file(path), load_file(tmp_path / "run/last.safetensors")
    torch.testing.assert_close(after["conv_stem.weight"], before["conv_stem.weight"], rtol=0, atol=1e-6)
    assert train_or_resume(config, quiet=True)["run"] == str(
        tmp_path / "run"
    )  # the same weights, by what they hold
    other = {**before, "conv_stem.weight": before["conv_stem.weight"] + 1}
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"other settings \(network\)"):
        train_or_resume(config.changed(init=tmp_path / "other.safetensors"), quiet=True)


class Trap:
    """What runs where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.path),)


def test_a_folder_of_others_runs_no_code(weights: Path, tmp_path: Path) -> None:
    folder, sprung = tmp_path / "folder", tmp_path / "sprung"
    folder.mkdir()
    (folder / "config.json").write_bytes((weights / "config.json").read_bytes())
    torch.save({"weights": Trap(sprung)}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be had"):
        train(config_of(tmp_path, model=f"local-dir:{folder}", pretrained=True), quiet=True)
    assert not sprung.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert sprung.exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": "resnet18.none", "pretrained": True}, "timm has no weights called resnet18.none; there are"),
        ({"model": "resnet81", "pretrained": True}, "there is no model 'resnet81'"),
        ({"model": "hadaptive_net_s", "pretrained": True}, "timm has no weights called hadaptive_net_s"),
        ({"model": "hadaptive_net_s:static", "pretrained": True}, "has no pretrained weights"),
        ({"model": "local-dir:nowhere", "pretrained": True}, "the weights of local-dir:nowhere cannot be had"),
        ({"model": "hf-hub:timm/nowhere", "pretrained": True}, "the weights of hf-hub:timm/nowhere cannot be had"),
        ({"model": "resnet18.a1_in1k", "pretrained": True}, "the weights of resnet18.a1_in1k cannot be had"),
        ({"model": NAME, "pretrained": True, "init": "x.safetensors"}, "leave the other out"),
        ({"model": NAME, "freeze_backbone": 1}, "freeze_backbone keeps weights that have learned something"),
        ({"init": "FILE"}, "does not say which network its weights are of: name it with --model"),
        ({"init": "FILE", "model": "resnet18"}, r"does not hold the weights of resnet18: \d+ tensors differ"),
        ({"model": NAME, "layer_decay": 0.0}, "layer_decay must be above 0"),
        ({"model": NAME, "balanced": True, "class_weights": True}, "leave one of them out"),
    ],
    ids=str,
)  # fmt: skip
def test_mistakes(
    changes: dict[str, Any], sentence: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if changes.get("init") == "FILE":
        changes = {**changes, "init": weights / "model.safetensors"}
    with pytest.raises(UserError, match=sentence) as caught:
        train(config_of(tmp_path, **changes), quiet=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- how they learn


@pytest.mark.parametrize("how", ["timm", "hadaptive"])
def test_the_classifier_learns_alone_at_first(
    how: str, weights: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = {"model": f"local-dir:{weights}", "pretrained": True} if how == "timm" else {"init": finished}
    size = {} if how == "timm" else {"image_size": 8}
    config = config_of(tmp_path, **start, **size, epochs=3, freeze_backbone=2, ema=0.9, label_smoothing=0.1)
    stopped_after(0, config.changed(output=tmp_path / "begun"), monkeypatch)
    steps = 64 // 16
    stopped_after(2 * (steps + 1) - 1, config.changed(output=tmp_path / "two"), monkeypatch)
    begun, two = (RunFolder(tmp_path / name).load_checkpoint() for name in ("begun", "two"))
    assert (begun["epoch"], begun["step"], two["epoch"], two["step"]) == (0, 1, 2, 0)
    assert changed_between(begun["model"], two["model"]) == set(HEAD)
    train(config, quiet=True)
    resume(tmp_path / "two", quiet=True)
    resume(tmp_path / "begun", quiet=True)
    whole = load_file(tmp_path / "run/last.safetensors")
    for name in ("two", "begun"):
        assert not changed_between(whole, load_file(tmp_path / name / "last.safetensors"))
    moved = changed_between(two["model"], whole)
    assert {name for name in whole if name.endswith(("running_mean", "weight"))} <= moved


@pytest.mark.slow
def test_two_processes_freeze_alike(tmp_path: Path) -> None:
    # A network without BatchNorm and noise: two halves of each batch must add up to the whole.
    save_for_hf(timm.create_model("test_vit", num_classes=7), str(tmp_path / "vit"), safe_serialization=True)
    common = {"model": f"local-dir:{tmp_path / 'vit'}", "pretrained": True, "opt": "sgd", "lr": 0.05}
    config = config_of(tmp_path, **common, image_size=32, epochs=2, freeze_backbone=1, layer_decay=0.9)
    train(config, quiet=True)
    settings = {**config.given(), "output": tmp_path / "both", "cpu": None, "pretrained": None}
    flags = [part for key, value in settings.items() for part in (f"--{key.replace('_', '-')}", value)]
    done = launch(2, ["train", *(str(part) for part in flags if part is not None)])
    assert done.returncode == 0, done.stderr[-2000:]
    alone, both = (load_file(tmp_path / name / "last.safetensors") for name in ("run", "both"))
    for name in alone:
        torch.testing.assert_close(alone[name], both[name], rtol=1e-3, atol=1e-5)


def test_each_layer_learns_more_slowly_than_the_next(tmp_path: Path) -> None:
    network = create_model(tiny_spec(tmp_path), num_classes=3)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    for sched in ("cosine", "none"):
        how = Optimisation(epochs=2, lr=0.1, sched=sched, warmup=0.0)
        optimizer, schedule = create_optimiser(network, how, 10, layer_decay=0.5)
        schedule.after_step(0)
        rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert rates.keys() == set(names.values())
        assert rates["classifier.weight"] == pytest.approx(0.1)
        first, *_, last = (name for name in rates if name.startswith("stages."))
        assert rates["stem.0.weight"] < rates[first] < rates[last] < 0.1
        assert all(rate == pytest.approx(0.1 * 0.5 ** round(-torch.tensor(rate / 0.1).log2().item()))
                   for rate in rates.values())  # fmt: skip
        assert len(Counter(rates.values())) >= 4


def test_the_rate_that_is_written_down_is_the_classifiers(weights: Path, tmp_path: Path) -> None:
    config = config_of(
        tmp_path, model=f"local-dir:{weights}", pretrained=True, layer_decay=0.5, sched="none", lr=0.01
    )
    train(config, quiet=True)
    assert float(RunFolder(tmp_path / "run").metrics.read_text().splitlines()[1].split(",")[2]) == 0.01
    assert json.loads((tmp_path / "run/config.json").read_text())["layer_decay"] == 0.5


def test_as_many_other_classes_get_a_new_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = ["pretrained", "init"]
    for way in known:
        start = {"model": "hadaptive_net2_xs.fmnist", "pretrained": True}
        start = start if way == "pretrained" else {"init": Path("hadaptive_net2_xs.fmnist")}
        config = config_of(tmp_path, **start, output=tmp_path / way, image_size=64, train_size=32, **STILL)
        train(config)
        assert "the classifier is new: " in " ".join(capsys.readouterr().out.split())
        train_or_resume(config, quiet=True)  # known again by its name
    folders = [RunFolder(tmp_path / way).load_model("last")[0].state_dict() for way in known]
    for name in ("stem.0.weight", "conv_head.weight"):
        torch.testing.assert_close(folders[0][name], folders[1][name], rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_transformer_that_cannot_be_described_at_another_size_is_refused(tmp_path: Path) -> None:
    first = config_of(
        tmp_path, model="swin_tiny_patch4_window7_224", image_size=64, train_size=16, output=tmp_path / "a"
    )
    accelerator = create_accelerator(first.execution)
    trainer, _ = new_trainer(first, accelerator, quiet=True)
    write(trainer.network.eval(), tmp_path / "swin.safetensors", "safetensors", trainer.card, {})
    with pytest.raises(UserError, match="a run folder could not describe it"):
        train(config_of(tmp_path, init=tmp_path / "swin.safetensors", image_size=96, train_size=16), quiet=True)
    assert not (tmp_path / "run").exists()


def test_patience_begins_when_everything_learns(weights: Path, tmp_path: Path) -> None:
    start = {"model": f"local-dir:{weights}", "pretrained": True}
    summary = train(config_of(tmp_path, **start, **STILL, epochs=6, freeze_backbone=4, patience=1), quiet=True)
    assert summary["epochs"] >= 5
