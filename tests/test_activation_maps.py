"""Class-activation maps: the ones that are known, and networks of every shape of features."""

import pytest
import timm
import torch
import torch.nn.functional as F
from networks import randomise, seeded
from tiny import TINY
from torch import nn

from hadaptive.data import Preprocessing
from hadaptive.models import HadaptiveNet, create_model
from hadaptive.report import cam
from hadaptive.report.cam import NoMapError, activation_maps, overlay

pytest.importorskip("captum", reason="maps were NOT made: pip install captum")


def images(side: int, number: int = 2) -> torch.Tensor:
    return torch.randn(number, 3, side, side, generator=seeded(5))


def test_of_averages_and_a_linear_layer_the_map_is_the_textbooks() -> None:
    """CAM (arXiv 1512.04150): the last map weighted by the class's row of the classifier."""
    network = randomise(timm.create_model("test_resnet", num_classes=3)).eval()
    x = images(128, 4)
    found = activation_maps(network, x, [2, 0, 1, 1])
    with torch.no_grad():
        last = network.forward_features(x)
    assert last.shape[2] >= 4
    weights = network.get_classifier().weight[[2, 0, 1, 1]]
    expected = torch.einsum("bchw,bc->bhw", last, weights).clamp(min=0)
    expected = F.interpolate(expected[:, None], (128, 128), mode="bilinear")[:, 0]
    expected = expected / expected.amax((1, 2), keepdim=True).clamp(min=1e-12)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("test_efficientnet", 64),
        ("mobilenetv3_small_050", 64),
        ("test_convnext", 64),
        ("test_vit", 160),  # a class token
        ("test_vit2", 64),  # none
        ("mobilenetv3_small_050:plug", 64),
    ],
)
def test_networks_of_every_shape_of_features(name: str, side: int) -> None:
    network = create_model(name, num_classes=3, image_size=side)
    found = activation_maps(randomise(network).eval(), images(side), [0, 1])
    assert found.shape == (2, side, side)
    assert bool((found >= 0).all())
    assert found.amax((1, 2)).tolist() == pytest.approx([1, 1])
    assert found.flatten(1).std(1).min() > 0.01, "a map that says where"


def test_channels_may_be_last() -> None:
    small = {
        "img_size": 32,
        "patch_size": 4,
        "window_size": 4,
        "embed_dim": 8,
        "depths": (1, 1),
        "num_heads": (1, 1),
    }
    network = timm.create_model("swin_tiny_patch4_window7_224", num_classes=3, **small).eval()
    assert network.forward_features(images(32)).shape == (2, 4, 4, 16)
    assert activation_maps(network, images(32), [0, 1]).shape == (2, 32, 32)


def test_a_last_map_of_one_place_is_no_map() -> None:
    network = randomise(HadaptiveNet(TINY, 3)).eval()
    x = images(8)
    assert network.forward_features(x).shape[2] == 2
    found = activation_maps(network, x, [0, 1])
    assert found.flatten(1).std(1).min() > 0.01


class Flat(nn.Module):
    """Features that are no map."""

    num_features = 4

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(3 * 64, 4), nn.Linear(4, 2)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.flatten(1))

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x)


def test_what_has_no_map_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoMapError, match="no map of the image"):
        activation_maps(Flat().eval(), images(8), [0, 1])
    with pytest.raises(NoMapError, match="features and a head"):
        activation_maps(nn.Linear(2, 2), images(8), [0, 1])
    network = timm.create_model("test_resnet", num_classes=2).eval()
    nn.init.zeros_(network.get_classifier().weight)
    with pytest.raises(NoMapError, match="for or against a class"):
        activation_maps(network, images(64), [0, 1])
    monkeypatch.setattr(cam, "obstacle", lambda name: "is not installed")
    with pytest.raises(NoMapError, match=r'captum is not installed: pip install "hadaptive\[cam\]"'):
        activation_maps(network, images(64), [0, 1])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_map_lies_over_its_image(channels: int) -> None:
    heat = torch.zeros(8, 6)
    heat[2:4, 1:3] = 1
    picture = overlay(torch.zeros(channels, 8, 6), heat, Preprocessing(image_size=8, in_chans=channels), side=60)
    assert picture.size == (60, 80)
    dark, bright = picture.getpixel((55, 75)), picture.getpixel((20, 30))
    assert dark[0] == dark[1] == dark[2]
    assert bright[0] > dark[0] + 40
