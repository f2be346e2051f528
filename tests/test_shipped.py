"""Networks and weights that come with the package, for timm, for commands, and where there is no network."""

import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data import resolve_model_data_config
from torch import nn

from hadaptive.cards import open_weights
from hadaptive.cli import main
from hadaptive.models import NetSpec, create_model
from hadaptive.models.shipped import FOLDER, FOUND, pretrained_cfgs, shipped_spec, shipped_weights

each_network = pytest.mark.parametrize("name", FOUND)
each_weights = pytest.mark.parametrize("name", sorted(shipped_weights()))


@each_network
def test_a_network_is_timms(name: str) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=5, in_chans=1).train()
    x = torch.randn(4, 1, 64, 64)
    network(x).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    network.eval()
    maps = timm.create_model(name, features_only=True, out_indices=(0, 2, 3))(torch.randn(1, 3, 64, 64))
    assert [m.shape[-1] for m in maps] == [16, 4, 2]
    assert network.forward_features(x).shape[1] == network.num_features
    assert network.spec == shipped_spec(name) == NetSpec.load(FOLDER / f"{name}.json")
    assert network.spec.name == name
    cfg = network.default_cfg
    keys = network.state_dict().keys()
    assert {f"{cfg['first_conv']}.weight", f"{cfg['classifier']}.weight"} <= set(keys)


@each_network
def test_every_network_has_weights_for_both_data(name: str) -> None:
    assert {f"{name}.fmnist", f"{name}.digits"} <= set(shipped_weights())
    assert timm.create_model(name, pretrained=True).pretrained_cfg["tag"] == "fmnist"  # where no tag is given


@each_weights
def test_weights_are_timms_and_say_what_they_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", None)  # nothing is asked of any network
    network = timm.create_model(name, pretrained=True).eval()
    own, card = open_weights(shipped_weights()[name])
    x = torch.randn(2, *card.preprocessing.input_size)
    torch.testing.assert_close(network(x), own(x), rtol=0, atol=0)
    known = resolve_model_data_config(network)
    assert known["input_size"] == card.preprocessing.input_size
    assert (known["mean"], known["std"]) == (card.preprocessing.mean, card.preprocessing.std)
    assert network.pretrained_cfg["label_names"] == tuple(card.classes)
    plain = {key: value for key, value in pretrained_cfgs()[name].items() if key != "file"}
    assert plain == card.pretrained_cfg
    state = load_file(shipped_weights()[name])
    assert {state[key].dtype for key, _ in network.named_parameters()} == {torch.float16}
    assert all(torch.isfinite(value.float()).all() for value in state.values())
    assert shipped_weights()[name].stat().st_size < 1_200_000


@each_weights
def test_weights_for_other_classes_and_channels(name: str) -> None:
    network = timm.create_model(name, pretrained=True, num_classes=3, in_chans=1).eval()
    whole = timm.create_model(name, pretrained=True).eval()
    # timm adds the channels up in half precision.
    torch.testing.assert_close(network.stem[0].weight, whole.stem[0].weight.sum(1, True), rtol=2e-3, atol=1e-3)
    x = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(
        network.forward_features(x), whole.forward_features(x.repeat(1, 3, 1, 1)), rtol=2e-2, atol=2e-2
    )
    assert network(x).shape == (2, 3)


@each_weights
def test_a_model_card_lies_beside_them(name: str) -> None:
    text = shipped_weights()[name].with_suffix(".md").read_text(encoding="utf-8")
    row = json.loads(_metadata(name))["about"]["row"]
    assert f"# {name}\n" in text
    assert f"{100 * row['test_accuracy']:.2f}%" in text
    assert f"{row['parameters']:,}, stored in float16" in text


def _metadata(name: str) -> str:
    from safetensors import safe_open

    with safe_open(shipped_weights()[name], "pt") as file:
        return file.metadata()["hadaptive"]


@pytest.mark.slow
def test_digits_that_were_held_out_are_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hadaptive.data import DataConfig, open_data

    test = open_data(DataConfig("digits")).test
    assert test is not None
    right = 0
    for number in range(20):
        image, target = test.read(number)
        image.save(tmp_path / f"{number}.png")
        assert main(["predict", f"{FOUND[-1]}.digits", str(tmp_path / f"{number}.png"), "--json"]) == 0
        right += json.loads(capsys.readouterr().out)["classes"][0][0] == str(target)
    assert right >= 17


@pytest.mark.slow
def test_commands_take_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"{FOUND[0]}.digits"
    for number in range(24):
        folder = tmp_path / "two" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 9), 10 * number).save(folder / f"{number}.png")
    brief = ["--data", "two", "--epochs", "1", "--batch-size", "4", "--cpu", "--output"]
    assert main(["train", "--model", name, "--pretrained", *brief, "a"]) == 0
    assert f"the classifier is new: {name} knows 10 classes" in " ".join(capsys.readouterr().out.split())
    assert main(["train", "--init", name, *brief, "b"]) == 0
    assert main(["export", name, "--images", "8"]) == 0
    assert main(["predict", f"{name.split('.')[0]}-network.onnx", "two/a/0.png"]) == 0
    assert main(["export", name, "--int8"]) == 1
    assert "leave --int8 out" in capsys.readouterr().err
    assert main(["info", name]) == 0
    assert main(["predict", f"{name}s", "two/a/0.png"]) == 1
    assert f"there is no run folder {name}s" in capsys.readouterr().err


def test_what_is_exported_of_them_is_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export of random weights settles statistics that have seen nothing; these have."""
    monkeypatch.chdir(tmp_path)
    name = f"{FOUND[1]}.digits"
    assert main(["export", name, "--format", "safetensors", "--output", "out.safetensors", "--images", "8"]) == 0
    written, shipped = load_file("out.safetensors"), load_file(shipped_weights()[name])
    for key, value in shipped.items():
        assert torch.equal(written[key], value.to(written[key].dtype)), key


def test_an_untagged_name_builds_an_untrained_network() -> None:
    torch.manual_seed(0)
    network: nn.Module = create_model(FOUND[0], num_classes=10)
    state = load_file(shipped_weights()[f"{FOUND[0]}.digits"])
    assert not torch.equal(network.state_dict()["stem.0.weight"].half(), state["stem.0.weight"])
