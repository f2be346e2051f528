"""What timm's own tools say and do with trained runs, and networks of timm's that are built for one image size."""

import inspect
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config, resolve_model_data_config
from timm.layers import DropPath, LayerNorm, LayerNorm2d, Mlp
from timm.models import save_for_hf
from timm.utils.model import freeze_batch_norm_2d
from tiny import TINY, tiny_config
from torch import nn

from hadaptive.cards import ModelCard
from hadaptive.cli import main
from hadaptive.data import Preprocessing
from hadaptive.data.transforms import eval_transform
from hadaptive.models import HadaptiveNet, create_model
from hadaptive.nn import CrossHadamardMlp, bottleneck, expansions
from hadaptive.runs import RunFolder
from hadaptive.train import train
from hadaptive.train.network import starting_network


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A trained one of the tiny network."""
    folder = tmp_path_factory.mktemp("timm")
    train(tiny_config(folder, epochs=1, train_size=64), quiet=True)
    return RunFolder.open(folder / "run")


# ---------------------------------------------------------------- how to feed it


def test_timm_says_of_a_run_what_it_was_trained_with(run: RunFolder) -> None:
    network, card = run.load_model()
    how = card.preprocessing
    for found in (resolve_model_data_config(network), resolve_data_config(model=network)):
        assert found["input_size"] == (how.in_chans, 8, 8)
        assert found["mean"] == how.mean[: how.in_chans]
        assert found["std"] == how.std[: how.in_chans]
        assert found["interpolation"] == how.interpolation
        assert (found["crop_pct"], found["crop_mode"]) == (1.0, "squash")
    assert network.pretrained_cfg["label_names"] == tuple(card.classes)


@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize("model", [TINY, "test_resnet"], ids=["ours", "timm's"])
def test_timms_transform_is_ours(fit: str, model) -> None:
    how = Preprocessing(
        24, 3, fit, crop_pct=0.8, interpolation="bicubic", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)
    )
    spec, name = (model, model.name) if model is TINY else (None, model)
    network = ModelCard(name, spec, ["a", "b"], how).create_model()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    image = Image.fromarray(pixels)
    theirs = create_transform(**resolve_model_data_config(network))(image)
    torch.testing.assert_close(eval_transform(how)(image), theirs, rtol=0, atol=1e-6)


# ---------------------------------------------------------------- saved by timm, loaded by timm


@pytest.mark.parametrize("frozen", [False, True], ids=["dynamic", "frozen"])
def test_timm_saves_a_run_and_loads_it_again(run: RunFolder, frozen: bool, tmp_path: Path) -> None:
    network, card = run.load_model()
    if frozen:
        for layer in network.modules():
            if hasattr(layer, "freeze"):
                layer.freeze(torch.arange(layer.k))
    save_for_hf(network, str(tmp_path), safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(4, *card.preprocessing.input_size)
    torch.testing.assert_close(again(x), network(x), rtol=0, atol=0)
    found = resolve_model_data_config(again)
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
    assert plain == resolve_model_data_config(network)
    assert json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]["label_names"] == card.classes
    if not frozen:
        maps = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True, out_indices=(0, 2))
        expected = network.forward_intermediates(x, [0, 2], intermediates_only=True)
        torch.testing.assert_close(maps.eval()(x), expected, rtol=0, atol=0)
        other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3, in_chans=3)
        assert other(x.expand(-1, 3, -1, -1)).shape == (4, 3)


def test_timms_interface_on_a_run(run: RunFolder) -> None:
    network, card = run.load_model()
    x = torch.randn(2, *card.preprocessing.input_size)
    assert network.get_classifier().out_features == len(card.classes)
    features = network.forward_features(x)
    torch.testing.assert_close(network.forward_head(features), network(x), rtol=0, atol=0)
    assert network.forward_head(features, pre_logits=True).shape == (2, network.head_hidden_size)
    assert network.no_weight_decay() == {n for n, _ in network.named_parameters() if n.endswith("norm.alpha")}
    groups = timm.models.group_parameters(network, network.group_matcher())
    assert sum(map(len, groups.values())) == len(list(network.parameters()))
    network.set_grad_checkpointing()
    torch.testing.assert_close(network(x), network.forward_head(features), rtol=0, atol=0)
    network.reset_classifier(5, "max")
    assert network(x).shape == (2, 5)


@pytest.mark.parametrize(
    "options", [{"drop_rate": 0.1, "drop_path_rate": 0.2}, {"stem_strides": (1, 1)}, {}], ids=str
)
def test_a_spec_builds_the_same_network_as_ever(options: dict) -> None:
    torch.manual_seed(0)
    network = create_model(TINY, num_classes=3, in_chans=1, **options)
    torch.manual_seed(0)
    plain = HadaptiveNet(TINY, num_classes=3, in_chans=1, **options)
    assert network.spec == plain.spec
    assert type(network) is HadaptiveNet
    assert repr(network) == repr(plain)
    for (name, one), other in zip(network.state_dict().items(), plain.state_dict().values(), strict=True):
        assert one.equal(other), name


# ---------------------------------------------------------------- networks that are built for one size


def test_a_transformer_at_another_size_from_training_to_prediction(tmp_path: Path, capsys) -> None:
    config = tiny_config(tmp_path, model="test_vit", image_size=32, train_size=64, epochs=1, shift=0)
    train(config, quiet=True)
    folder, picture = str(tmp_path / "run"), str(tmp_path / "digit.png")
    Image.fromarray(np.full((9, 9), 200, np.uint8)).save(picture)
    network, card = RunFolder.open(folder).load_model()
    assert network.patch_embed.img_size == (32, 32)
    assert resolve_model_data_config(network)["input_size"] == card.preprocessing.input_size
    for command in (
        ["evaluate", folder],
        ["predict", folder, picture],
        ["info", folder],
        ["export", folder, "--format", "torch", "--images", "4"],
        ["predict", f"{folder}/network.pt2", picture, "--trust"],
    ):
        assert main(command) == 0, capsys.readouterr().err
    save_for_hf(network, str(tmp_path / "hub"), safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    x = torch.randn(2, *card.preprocessing.input_size)
    torch.testing.assert_close(again(x), network(x), rtol=0, atol=0)
    # Trained on at a third size: its positions are interpolated.
    later = tiny_config(tmp_path, model=None, init=tmp_path / "run", image_size=48, drop_rate=0.1)
    grown, card, _ = starting_network(later, card.classes)
    assert grown.patch_embed.img_size == card.create_model().patch_embed.img_size == (48, 48)


def test_info_of_a_transformer(capsys) -> None:
    assert main(["info", "test_vit", "--image-size", "64", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["input_size"] == [3, 64, 64]
    assert main(["info", "vit_tiny_patch16_224"]) == 0


def test_sizes_that_do_not_fit_are_one_sentence(tmp_path: Path, capsys) -> None:
    assert main(["info", "test_vit", "--image-size", "30"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_other_networks_take_any_size() -> None:
    assert create_model("test_resnet", num_classes=2, image_size=40)(torch.zeros(1, 3, 40, 40)).shape == (1, 2)


# ---------------------------------------------------------------- modules that bear the name of one of timm's


def test_the_mlp_takes_what_timms_takes() -> None:
    ours, theirs = (inspect.signature(kind).parameters for kind in (CrossHadamardMlp, Mlp))
    assert list(ours)[: len(theirs)] == list(theirs)  # in its order, too
    for name, parameter in theirs.items():
        assert ours[name].default == parameter.default, name


@pytest.mark.parametrize("norm_layer", [None, LayerNorm], ids=["no norm", "norm"])
@pytest.mark.parametrize("bias", [True, (False, True), (True, False)], ids=str)
@pytest.mark.parametrize("drop", [0.0, 0.3, (0.2, 0.0)], ids=str)
@pytest.mark.parametrize("use_conv", [False, True], ids=["tokens", "maps"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_the_mlp_does_what_timms_does(norm_layer, bias, drop, use_conv: bool, training: bool) -> None:
    """From the expansion on, with the same weights and the same dropout."""
    norm_layer = LayerNorm2d if norm_layer and use_conv else norm_layer
    options = {"act_layer": nn.SiLU, "norm_layer": norm_layer, "bias": bias, "drop": drop, "use_conv": use_conv}
    ours = CrossHadamardMlp(6, 12, 5, **options, selection="sample", dtype=torch.float64).train(training)
    width = ours.cross_hadamard.out_channels
    theirs = Mlp(6, width, 5, **options, dtype=torch.float64).train(training)
    theirs.load_state_dict({n: p for n, p in ours.state_dict().items() if "fc1" not in n}, strict=False)
    mixed = nn.Sequential(ours.fc1, nn.Identity() if use_conv else Swapped(), ours.cross_hadamard)
    theirs.fc1 = mixed if use_conv else mixed.append(Swapped())
    x = torch.randn(3, 6, 4, 4, dtype=torch.float64) if use_conv else torch.randn(3, 7, 6, dtype=torch.float64)
    outputs = []
    for net in (ours, theirs):
        torch.manual_seed(1)
        outputs.append(net(x))
    assert outputs[0].dtype == torch.float64
    torch.testing.assert_close(*outputs, rtol=0, atol=0)
    torch.fx.symbolic_trace(ours)


class Swapped(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2)


@pytest.mark.parametrize("scale_mlp_norm", [False, True])
def test_timms_transformer_takes_the_mlp(scale_mlp_norm: bool) -> None:
    network = timm.create_model(
        "test_vit", img_size=32, mlp_layer=CrossHadamardMlp, scale_mlp_norm=scale_mlp_norm, proj_drop_rate=0.1
    )
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    assert len(expansions(network)) == len(network.blocks)


def test_timm_freezes_the_statistics_of_every_norm() -> None:
    network = create_model(TINY, num_classes=3)
    with torch.no_grad():
        network(torch.randn(8, 3, 16, 16))
    network = freeze_batch_norm_2d(network).train()
    before = {name: value.clone() for name, value in network.state_dict().items() if "running" in name}
    network(torch.randn(8, 3, 16, 16)).sum().backward()
    for name, value in before.items():
        assert value.equal(network.state_dict()[name]), name


def test_stochastic_depth_is_timms() -> None:
    for rate, by_keep, training in itertools.product((0.0, 0.3, 1.0), (False, True), (False, True)):
        outputs = []
        for kind in (bottleneck.DropPath, DropPath):
            torch.manual_seed(1)
            outputs.append(kind(rate, by_keep).train(training)(torch.ones(64, 2)))
        assert outputs[0].equal(outputs[1])
