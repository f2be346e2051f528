"""What `hadaptive info` counts: parameters, MACs and element-wise products."""

from pathlib import Path

import pytest
import timm
import torch
from tiny import tiny_spec
from torch import nn

from hadaptive.info import info_command, inspect_network
from hadaptive.nn import NORMS, AdaptiveCrossHadamard, ProductBlock


@pytest.mark.parametrize(
    ("name", "parameters", "macs", "products"),
    [
        ("hadaptive_net_s", 2_101_992, 131.0, 0.14),
        ("hadaptive_net_m", 3_095_076, 338.7, 0.39),
        ("hadaptive_net_l", 6_108_078, 668.9, 0.85),
    ],
)
def test_networks_as_in_the_paper(name: str, parameters: int, macs: float, products: float) -> None:
    info = inspect_network(timm.create_model(name, num_classes=100), (3, 224, 224))
    assert info.parameters == parameters
    assert round(info.macs / 1e6, 1) == macs
    assert round(info.products / 1e6, 2) == products
    assert sum(layer.macs for layer in info.layers) == info.macs
    assert sum(layer.products for layer in info.layers) == info.products
    assert sum(layer.parameters for layer in info.layers) == info.parameters


def test_counts_by_hand() -> None:
    model = nn.Sequential(
        AdaptiveCrossHadamard(6, 4, selection="sample"), nn.Conv2d(12, 5, 3, padding=1, groups=1, bias=True)
    )
    info = inspect_network(model, (6, 7, 9))
    assert info.products == 6 * 63
    assert info.macs == 6 * 6 * 63 + 12 * 5 * 9 * 63


@pytest.mark.parametrize("norm", NORMS)
def test_what_a_norm_makes_of_a_product_is_none(norm: str) -> None:
    """DyAlge squares each."""
    assert inspect_network(AdaptiveCrossHadamard(6, 4, norm, selection="sample"), (6, 7, 9)).products == 6 * 63
    assert inspect_network(ProductBlock(4, 2, 8, 3, norm), (4, 5, 5)).products == 8 * 25


def test_a_network_of_timms_own() -> None:
    info = inspect_network(timm.create_model("mobilenetv3_small_100", num_classes=1000), (3, 224, 224))
    assert info.parameters == 2_542_856
    assert info.products == 0
    assert info.macs == pytest.approx(56e6, rel=0.05)  # the paper's MAdds


def test_inspection_changes_nothing(tmp_path: Path) -> None:
    model = timm.create_model("hadaptive_net_s", num_classes=3).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inspect_network(model, (3, 64, 64))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_images_too_small_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot take images") as caught:
        info_command("hadaptive_net_s", image_size=8)
    assert "\n" not in str(caught.value)


def test_spec_of_a_foreign_network_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no spec to save"):
        info_command("mobilenetv3_small_050", save_spec=tmp_path / "spec.json")


def test_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info_command(tiny_spec(tmp_path), image_size=8, num_classes=10)
    assert "ACH k=4" in capsys.readouterr().out
