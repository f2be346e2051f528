"""Runs that timm loads: as they are, exported for it, pushed to a Hub, and networks by torch.hub."""

import json
import re
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hub import TOKEN, Hub, standing_in
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from tiny import stopped_after, tiny_config, tiny_spec

from hadaptive.cli import main
from hadaptive.runs import RunFolder
from hadaptive.train import TrainConfig, resume, train

pytestmark = pytest.mark.slow

RUNS = {  # of a NetSpec file, of ours by name, and of timm
    "spec": {"ema": 0.5, "select": "last", "epochs": 2},
    "variant": {"stem_strides": (2, 1), "image_size": 16, "in_chans": 1},
    "timms": {"model": "test_resnet", "image_size": 32, "fit": "crop", "shift": 0, "crop_pct": 0.8},
    "padded": {"pad": 2},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run of each kind, and a picture."""
    folder = tmp_path_factory.mktemp("handed")
    for name, changes in RUNS.items():
        if name == "variant":
            changes = {**changes, "model": f"{tiny_spec(folder)}:static"}
        settings = {"epochs": 1, "train_size": 64, "mean": (0.4, 0.5, 0.6), "std": (0.3, 0.2, 0.4), **changes}
        train(tiny_config(folder, name=name, **settings), quiet=True)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    Image.fromarray(pixels).save(folder / "picture.jpg")
    return folder


def predicted(source: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    """Classes and probabilities as `hadaptive predict` has them."""
    capsys.readouterr()
    assert main(["predict", str(source), str(picture), "--json", "--top", "10"]) == 0
    return dict(json.loads(capsys.readouterr().out)["classes"])


def by_timm(name: str, picture: Path, temperature: float) -> dict[str, float]:
    """The same, by timm alone."""
    network = timm.create_model(name, pretrained=True).eval()
    image = Image.open(picture).convert("L" if resolve_model_data_config(network)["input_size"][0] == 1 else "RGB")
    with torch.no_grad():
        logits = network(create_transform(**resolve_model_data_config(network))(image)[None])
    shares = (logits / temperature).softmax(1)[0]
    return dict(zip(network.pretrained_cfg["label_names"], shares.tolist(), strict=True))


@pytest.mark.parametrize("name", [name for name in RUNS if name != "padded"])
def test_timm_loads_a_run_and_says_what_predict_does(name: str, runs: Path, capsys) -> None:
    run, picture = RunFolder.open(runs / name), runs / "picture.png"
    found = by_timm(f"local-dir:{run.path}", picture, run.load_model()[1].temperature)
    expected = predicted(run.path, picture, capsys)
    assert found.keys() == expected.keys()
    for label, share in expected.items():
        assert found[label] == pytest.approx(share, abs=1e-6)
    assert (run.path / "model.safetensors").readlink() == Path(f"{run.choice()}.safetensors")  # no second copy
    assert len(set(expected.values())) == 10


def test_a_backbone_and_another_classifier_of_a_run(runs: Path) -> None:
    maps = timm.create_model(f"local-dir:{runs / 'spec'}", pretrained=True, features_only=True, out_indices=(0, 1))
    assert len(maps(torch.zeros(1, 3, 16, 16))) == 2
    other = timm.create_model(f"local-dir:{runs / 'variant'}", pretrained=True, num_classes=3, in_chans=3)
    assert other(torch.zeros(2, 3, 16, 16)).shape == (2, 3)


def test_runs_from_before_and_copies_go_on(runs: Path, tmp_path: Path, capsys) -> None:
    old = tmp_path / "old"
    shutil.copytree(runs / "spec", old)  # the link is a file in the copy
    settings = json.loads((old / "config.json").read_text())
    assert TrainConfig.from_dict(settings) == TrainConfig.from_dict(
        {
            key: value
            for key, value in settings.items()
            if key not in ("architecture", "model_args", "pretrained_cfg")
        }
    )
    for key in ("architecture", "model_args", "pretrained_cfg"):
        del settings[key]
    (old / "config.json").write_text(json.dumps(settings))
    (old / "model.safetensors").unlink()
    assert main(["evaluate", str(old)]) == 0
    assert predicted(old, runs / "picture.png", capsys) == predicted(runs / "spec", runs / "picture.png", capsys)
    assert main(["export", str(old), "--format", "timm", "--images", "4"]) == 0


def test_the_chosen_weights_are_linked_from_the_first_epoch_on(tmp_path: Path, monkeypatch) -> None:
    stopped_after(4, tiny_config(tmp_path, train_size=64, epochs=3), monkeypatch)
    run = tmp_path / "run"
    assert timm.create_model(f"local-dir:{run}", pretrained=True).num_classes == 10
    link = run / "model.safetensors"
    link.unlink()
    shutil.copyfile(run / "best.safetensors", link)  # as a file system without links has it
    resume(run, quiet=True)
    assert link.read_bytes() == (run / "best.safetensors").read_bytes()


# ---------------------------------------------------------------- exported for timm


@pytest.mark.parametrize("name", RUNS)
def test_what_the_model_card_shows_does_what_predict_does(name: str, runs: Path, tmp_path, monkeypatch, capsys):
    run, folder = RunFolder.open(runs / name), tmp_path / "mine.timm"
    assert main(["export", str(run.path), "--format", "timm", "--images", "20", "--output", str(folder)]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    proof = json.loads((tmp_path / "mine.timm.proof.json").read_text())
    assert proof["holds"] is True
    card = (folder / "README.md").read_text(encoding="utf-8")
    summary = json.loads(run.summary.read_text())
    for part in ("validation", "test"):
        assert re.search(rf"\| {part} accuracy \| .*{summary[part]['accuracy']:.2%} \(95% interval", card)
    assert ("import hadaptive" in card) is (name != "timms")
    for path in folder.iterdir():  # nothing of the owner's disk, and no list of images
        assert str(runs.parent).encode() not in path.read_bytes()
        assert b"1234.png" not in path.read_bytes()
    shutil.copyfile(runs / "picture.jpg", tmp_path / "picture.jpg")
    (tmp_path / "use.py").write_text(re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0])
    expected = predicted(run.path, tmp_path / "picture.jpg", capsys)
    assert predicted(folder, tmp_path / "picture.jpg", capsys) == expected
    assert predicted(folder / "model.safetensors", tmp_path / "picture.jpg", capsys) == expected
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    runpy.run_path("use.py")
    label, share = capsys.readouterr().out.split()
    assert label == max(expected, key=lambda one: expected[one])
    assert float(share) == pytest.approx(expected[label], abs=1e-6)


@pytest.mark.parametrize("command", ["evaluate", "export", "info", "train --data digits --init"])
def test_an_exported_folder_is_no_run(command: str, runs: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "net.timm"
    words = ["export", "test_resnet", "--image-size", "32", "--num-classes", "2", "--images", "2"]
    assert main([*words, "--format", "timm", "--output", str(folder)]) == 0
    assert "| weights | random |" in (folder / "README.md").read_text()
    assert main([*command.split(), str(folder)]) == 1
    assert "is a folder that timm loads, and no run" in capsys.readouterr().err


def test_what_timm_cannot_build_is_one_sentence_and_trains_as_ever(tmp_path: Path, hub: Hub, capsys) -> None:
    settings = {"model": "mobilenetv3_small_050:plug", "image_size": 32, "train_size": 32, "epochs": 1}
    train(tiny_config(tmp_path, **settings), quiet=True)
    for words in (["export", "--format", "timm"], ["push", "mine"]):
        assert main([words[0], str(tmp_path / "run"), *words[1:]]) == 1
        assert "timm cannot build mobilenetv3_small_050:plug" in capsys.readouterr().err
    assert hub.files == {}


# ---------------------------------------------------------------- pushed


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """With somebody logged in."""
    with standing_in(monkeypatch, tmp_path / "home") as found:
        yield found


def test_a_run_is_pushed_and_loaded_from_there(runs: Path, tmp_path: Path, hub: Hub, monkeypatch, capsys) -> None:
    run, before = RunFolder.open(runs / "spec"), sorted(runs.rglob("*"))
    assert main(["push", str(run.path), "mine"]) == 0
    said = capsys.readouterr()
    assert 'timm.create_model("hf-hub:me/mine", pretrained=True)' in said.out
    assert "private" in said.out
    assert hub.private == {"me/mine": True}
    assert set(hub.files["me/mine"]) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    card = hub.files["me/mine"]["README.md"].decode()
    assert "# mine\n" in card
    assert '"hf-hub:me/mine"' in card
    assert "test accuracy" in card
    found = by_timm("hf-hub:me/mine", runs / "picture.png", run.load_model()[1].temperature)
    assert found == pytest.approx(predicted(run.path, runs / "picture.png", capsys), abs=1e-6)
    # Nothing that is there is overwritten unawares.
    asked = len(hub.asked)
    assert main(["push", str(run.path), "me/mine"]) == 1
    assert "has files on the Hub already" in capsys.readouterr().err
    assert not [request for request in hub.asked[asked:] if request.startswith("POST")]
    assert main(["push", str(run.path), "me/mine", "--overwrite", "--weights", "best"]) == 0
    assert "test accuracy" not in hub.files["me/mine"]["README.md"].decode()  # that was of the last weights
    assert main(["push", str(run.path), "mine", "--overwrite", "--public"]) == 1
    assert "private: change that on its page" in capsys.readouterr().err
    assert sorted(runs.rglob("*")) == before
    assert TOKEN not in said.out + said.err


def test_an_exported_folder_is_pushed_as_it_is(runs: Path, tmp_path: Path, hub: Hub, capsys) -> None:
    folder = tmp_path / "frozen.timm"
    words = ["export", str(runs / "spec"), "--freeze", "--force", "--format", "timm", "--images", "8"]
    assert main([*words, "--calibration", "8", "--output", str(folder)]) == 0
    card = (folder / "README.md").read_text()
    assert "validation accuracy with fixed ones" in card
    assert "test accuracy" not in card  # that was of the selections of each image
    assert main(["push", str(folder), "other/net", "--public"]) == 0
    assert "public" in capsys.readouterr().out
    assert hub.private == {"other/net": False}
    assert hub.files["other/net"]["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert '"hf-hub:other/net"' in hub.files["other/net"]["README.md"].decode()
    assert main(["push", str(folder), "again", "--weights", "best"]) == 1
    assert "was exported: leave it out" in capsys.readouterr().err
    (folder / "README.md").unlink()
    assert main(["push", str(folder), "again"]) == 1
    assert "has no README.md" in capsys.readouterr().err
    assert set(hub.files) == {"other/net"}


def test_what_the_hub_refuses_is_one_sentence(runs: Path, tmp_path: Path, hub: Hub, monkeypatch, capsys) -> None:
    def refused(sentence: str, source: str = "spec", name: str = "mine") -> None:
        assert main(["push", str(runs / source), name]) == 1
        said = capsys.readouterr()
        assert len(said.err.splitlines()) == 1
        assert sentence in said.err
        assert "hf_" not in said.out + said.err

    refused("there is no run folder", "nowhere")
    refused("cannot be the name of a repository", name="a b")
    assert hub.asked == []
    hub.forbidden.add("me/mine")
    refused("your token may not write to me/mine")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused("does not know your token: run hf auth login again")
    monkeypatch.delenv("HF_TOKEN")
    refused("nobody is logged in to the Hugging Face Hub: run hf auth login, or set HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    refused("cannot be reached")
    assert hub.files == {}


# ---------------------------------------------------------------- by torch.hub


def test_torch_hub_loads_networks_from_a_clone() -> None:
    root = str(Path(__file__).parents[1])
    network = torch.hub.load(root, "hadaptive_net_s", source="local", num_classes=5)
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 5)  # pyright: ignore[reportCallIssue]
    digits = torch.hub.load(root, "hadaptive_net2_xs", source="local", pretrained=True, pretrained_cfg="digits")
    weights = timm.create_model("hadaptive_net2_xs.digits", pretrained=True).state_dict()
    assert all(value.equal(weights[name]) for name, value in digits.state_dict().items())  # pyright: ignore
    names = runpy.run_path(f"{root}/hubconf.py")["__all__"]
    ours = [name for name in timm.list_models("hadaptive_*") if not name.endswith("_published")]  # those of tests
    assert sorted(names) == ours
