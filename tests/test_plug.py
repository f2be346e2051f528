"""ACH in place of the expansions of networks of timm's: which are found, what stays, and that all of it runs."""

import copy
from pathlib import Path

import pytest
import timm
import torch
from networks import close
from torch import Tensor, nn

from hadaptive.cli import main
from hadaptive.errors import UserError
from hadaptive.models import create_model
from hadaptive.nn import CrossHadamardExpansion, expansions, plug

FAMILIES = {
    "mobilenetv2_050": ["blocks.5.2.conv_pw", "blocks.6.0.conv_pw"],
    "mobilenetv3_small_050": ["blocks.4.1.conv_pw", "blocks.4.2.conv_pw"],
    "mobilenetv4_conv_small_050": ["blocks.3.4.pw_exp.conv", "blocks.3.5.pw_exp.conv"],
    "efficientnet_lite0": ["blocks.5.3.conv_pw", "blocks.6.0.conv_pw"],
    "mnasnet_small": ["blocks.5.2.conv_pw", "blocks.6.0.conv_pw"],
    "starnet_s050": ["stages.2.3.f1.conv", "stages.3.1.f1.conv"],
    "repvit_m0_9": ["stages.3.blocks.0.channel_mixer.conv1.c", "stages.3.blocks.1.channel_mixer.conv1.c"],
    "mobilevit_xxs": ["stages.4.1.transformer.1.mlp.fc1", "stages.4.1.transformer.2.mlp.fc1"],
    "vit_tiny_patch16_224": ["blocks.10.mlp.fc1", "blocks.11.mlp.fc1"],
    "convnext_atto": ["stages.3.blocks.0.mlp.fc1", "stages.3.blocks.1.mlp.fc1"],
    "edgenext_xx_small": ["stages.3.blocks.0.mlp.fc1", "stages.3.blocks.1.mlp.fc1"],
    "efficientvit_b0": [f"stages.3.blocks.{n}.local_module.main.inverted_conv.conv" for n in (1, 2)],
    "fasternet_t0": ["stages.3.blocks.0.mlp.0", "stages.3.blocks.1.mlp.0"],
    "levit_128s": ["stages.2.blocks.2.mlp.ln1.linear", "stages.2.blocks.3.mlp.ln1.linear"],
    "shvit_s1": ["stages.2.blocks.3.ffn.m.pw1.c", "stages.2.blocks.4.ffn.m.pw1.c"],
}


def created(name: str) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=3)


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    y = model(x)
    return y[0] if isinstance(y, tuple) else y  # distilled ones have two heads


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_each_family(name: str) -> None:
    model = created(name)
    before = copy.deepcopy(model)
    reports = plug(model, 2)
    assert [report.name for report in reports] == FAMILIES[name]
    assert len(expansions(model)) == 2
    for report in reports:
        pairs = report.k * (report.k - 1) // 2
        assert report.channels < report.after == report.channels + pairs <= report.before
        assert report.parameters > 0
        assert report.macs > 0
        assert report.products % pairs == 0
    # What was saved is what is gone.
    counts = [sum(p.numel() for p in m.parameters()) for m in (before, model)]
    assert counts[0] - counts[1] == sum(report.parameters for report in reports)
    # Weights of other blocks are those that they were.
    mine, theirs = model.state_dict(), before.state_dict()
    kept = [key for key in theirs if key in mine and mine[key].shape == theirs[key].shape]
    assert all(torch.equal(mine[key], theirs[key]) for key in kept)
    assert len(kept) > 0.8 * len(theirs)
    size = model.pretrained_cfg["input_size"][1:]
    x = torch.randn(2, 3, *size)
    outputs(model.train(), x).square().sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    model.eval()
    with torch.no_grad():
        expected = model(x)
        assert expected.shape == before.eval()(x).shape
        close(torch.export.export(model, (x,)).module()(x), expected)
    again = created(name)
    plug(again, 2)
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        close(again.eval()(x), expected)


def test_what_the_expansion_was_is_gone_with_its_norm_and_what_follows_keeps_its_first_weights() -> None:
    model = created("mobilenetv3_small_050")
    old = model.get_submodule("blocks.4.2")
    dw, reduce, project = (
        old.conv_dw.weight.clone(),
        old.se.conv_reduce.weight.clone(),
        old.conv_pwl.weight.clone(),
    )
    (report,) = plug(model, "blocks.4.2.*", selection="static")
    block = model.get_submodule("blocks.4.2")
    width = report.after
    assert isinstance(block.bn1, nn.Identity)
    assert torch.equal(block.conv_dw.weight, dw[:width])
    assert torch.equal(block.se.conv_reduce.weight, reduce[:, :width])
    assert torch.equal(block.conv_pwl.weight, project[:, :width])
    assert block.bn2.num_features == block.conv_dw.groups == width


def test_an_activation_stays_where_no_depthwise_convolution_follows() -> None:
    model = created("repvit_m0_9")
    plug(model, 1)
    mixer = model.get_submodule("stages.3.blocks.1.channel_mixer")
    assert isinstance(mixer.act, nn.GELU)
    assert not hasattr(mixer.conv1, "fuse")  # which would look for a convolution


def test_the_second_branch_of_a_star_block_is_gone() -> None:
    model = created("starnet_s050")
    block = model.get_submodule("stages.3.1")
    x = torch.randn(2, 3, 64, 64)
    plug(model, 1, selection="static")
    assert sum(p.numel() for p in block.f2.parameters()) == 0
    with torch.no_grad():
        inner = torch.randn(2, 128, 2, 2)
        expected = inner + block.dwconv2(block.g(block.act(block.f1(block.dwconv(inner)))))
        close(block.eval()(inner), inner + block.dwconv2(block.g(block.act(block.f1(block.dwconv(inner))))))
        assert expected.shape == inner.shape
        assert model.eval()(x).isfinite().all()


@pytest.mark.parametrize(
    "options", [{"selection": "grouped"}, {"norm": "dyt"}, {"k": 3, "pairing": "blocks"}], ids=str
)
def test_options_reach_the_expansion(options: dict) -> None:
    model = created("mobilenetv2_050")
    plug(model, 1, **options)
    (layer,) = expansions(model).values()
    expected = CrossHadamardExpansion(layer.channels, **{"k": layer.k, **options})
    assert repr(layer.select) == repr(expected.select)
    assert type(layer.norm) is type(expected.norm)
    assert layer.block == expected.block


def test_a_wider_one_gets_new_rows() -> None:
    """As ShuffleNetV2 needs, whose branches do not widen: k says how much."""
    shufflenet = pytest.importorskip("torchvision.models").shufflenet_v2_x0_5(num_classes=3)
    with pytest.raises(ValueError, match=r"has no expansion|was put nowhere"):
        plug(shufflenet, 2, input_size=(3, 64, 64))
    reports = plug(shufflenet, ["stage4.*.branch2.0"], k=8, input_size=(3, 64, 64))
    assert {report.after - report.channels for report in reports} == {28}
    assert all(report.parameters < 0 for report in reports)
    shufflenet(torch.randn(2, 3, 64, 64)).sum().backward()


class Branches(nn.Module):
    """Two branches of one input, C -> n, and a projection of what becomes of both."""

    def __init__(self, multiplied: bool) -> None:
        super().__init__()
        self.stem, self.multiplied = nn.Conv2d(3, 8, 3, padding=1), multiplied
        self.one, self.other = (nn.Sequential(nn.Conv2d(8, 32, 1), nn.BatchNorm2d(32)) for _ in range(2))
        self.act, self.project = nn.ReLU(), nn.Conv2d(32, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a, b = self.act(self.one(x)), self.other(x)
        return self.project(a * b if self.multiplied else a + b)


def test_branches_that_are_added_are_no_expansion_of_ours() -> None:
    model = Branches(multiplied=True)
    assert [report.name for report in plug(model, 1, input_size=(3, 9, 9))] == ["one.0"]
    assert sum(p.numel() for p in model.other.parameters()) == 0
    with pytest.raises(ValueError, match=r"ACH was put nowhere of other\.0"):
        plug(Branches(multiplied=False), 1, input_size=(3, 9, 9))


@pytest.mark.parametrize(
    ("name", "where", "options", "message"),
    [
        ("resnet10t", 2, {}, "the network has no expansion that ACH could take the place of"),
        ("mobilenetv2_050", 99, {}, "the network has only 16 expansions: blocks.1.0.conv_pw"),
        ("mobilenetv2_050", 0, {}, "where must be a positive number or names of layers, got 0"),
        ("mobilenetv2_050", "head.*", {}, "no expansion is called 'head.*'; there are blocks.1.0.conv_pw"),
        ("mobilenetv2_050", 2, {"selection": "best"}, "selection must be one of"),
        ("mobilenetv2_050", 2, {"pairing": "blocks"}, "how many blocks there are is k: pass it, such as k=4"),
        ("mobilenetv2_050", 2, {"k": 1}, "k must be at least 2"),
        ("mobilenetv2_050", 2, {"mix": False}, "plug has no option 'mix'; there are noise, norm, order"),
        ("mixnet_s", 1, {}, "ACH was put nowhere of blocks.2.1.conv_pw.1"),
        ("mixnet_s", "blocks.2.1.*", {}, "it does not fit into blocks.2.1.conv_pw.1 .split_with_sizes"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_is_changed(
    name: str, where: int | str, options: dict, message: str
) -> None:
    model = created(name)
    before, shown = {key: t.clone() for key, t in model.state_dict().items()}, repr(model)
    with pytest.raises(ValueError, match=message):
        plug(model, where, **options)
    assert repr(model) == shown
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())


@pytest.mark.parametrize("plugged", ["plug", "plug-static"])
def test_a_plugged_network_has_a_name_that_commands_take(plugged: str, tmp_path: Path) -> None:
    name = f"{'mobilenetv3_small_050' if plugged == 'plug' else 'starnet_s050'}:{plugged}"
    model = create_model(name, num_classes=4, in_chans=1)
    assert len(expansions(model)) == 2
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 4)
    model.reset_classifier(7)  # timm's contract
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 7)
    run = tmp_path / "run"
    settings = [
        "--train-size",
        "48",
        "--batch-size",
        "16",
        "--epochs",
        "1",
        "--image-size",
        "32",
        "--cpu",
        "--quiet",
    ]
    assert main(["train", "--model", name, *settings, "--output", str(run)]) == 0
    assert main(["info", name, "--image-size", "32"]) == 0
    assert main(["export", str(run), "--format", "onnx", "--images", "8"]) == 0
    assert main(["evaluate", str(run)]) == 0


def test_a_network_without_expansions_cannot_be_plugged_by_name() -> None:
    with pytest.raises(UserError, match="resnet10t:plug cannot be built: the network has no expansion"):
        create_model("resnet10t:plug", num_classes=2)


def test_a_network_of_one_size_is_tried_at_its_own() -> None:
    model = create_model("deit_tiny_patch16_224:plug", num_classes=3, image_size=64)
    assert model.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 3)
    with pytest.raises(ValueError, match=r"takes no images of \(3, 32, 32\)"):
        plug(timm.create_model("deit_tiny_patch16_224"), 1, input_size=(3, 32, 32))


def test_what_was_in_eval_mode_stays_in_it() -> None:
    model = created("mobilenetv2_050").train()
    model.bn1.eval()
    plug(model, 1)
    assert model.training
    assert not model.bn1.training
    assert model.blocks.training
