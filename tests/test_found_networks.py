"""Networks of any spec through timm.create_model, whoever found it and however it is told."""

import json
import re
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config, resolve_model_data_config
from timm.models import save_for_hf
from tiny import TINY, tiny_spec

from hadaptive.models import HadaptiveNet, NetSpec, spec_of
from hadaptive.models.published import HADAPTIVE_NET_M


@pytest.fixture
def said(tmp_path: Path, request: pytest.FixtureRequest):
    """The tiny spec as one may pass it."""
    path = tiny_spec(tmp_path)
    read = json.loads(Path(path).read_text())
    ways = {"spec": TINY, "dict": TINY.to_dict(), "path": Path(path), "text": path, "read": read}
    return ways[request.param]


@pytest.mark.parametrize("said", ["spec", "dict", "path", "text", "read"], indirect=True)
def test_every_way_to_say_it_builds_the_same_network(said) -> None:
    options = {"num_classes": 5, "in_chans": 1, "drop_rate": 0.1, "drop_path_rate": 0.2, "stem_strides": (1, 1)}
    torch.manual_seed(0)
    network = timm.create_model("hadaptive_net", spec=said, **options)
    torch.manual_seed(0)
    plain = HadaptiveNet(TINY, **options)
    assert type(network) is HadaptiveNet
    assert spec_of(network) == TINY.with_stem_strides(1, 1)
    assert repr(network) == repr(plain)
    for (name, one), other in zip(network.state_dict().items(), plain.state_dict().values(), strict=True):
        assert one.equal(other), name


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (None, "hadaptive_net is built of a spec: pass spec="),
        ("none.json", "there is no network spec file none.json"),
        (3, "a spec is a NetSpec, a dict or the path of a .json file, not of type int"),
        ({}, 'not a network spec: the field "format" must be "hadaptive-net"'),
        ({**TINY.to_dict(), "depth": 3}, "the network spec has an unknown field 'depth'"),
        ({**TINY.to_dict(), "stages": []}, "a network needs at least one stage"),
    ],
    ids=["none", "no file", "a number", "empty", "unknown field", "no stages"],
)
def test_a_bad_spec_is_one_sentence(spec, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as raised:
        timm.create_model("hadaptive_net", spec=spec)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["hadaptive_net", "hadaptive_net.untrained"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_timm_knows_how_to_feed_it(channels: int, name: str) -> None:
    network = timm.create_model(name, spec=TINY, in_chans=channels, num_classes=4)
    known = network.pretrained_cfg
    assert network.default_cfg == known
    assert known["architecture"] == "hadaptive_net"
    for found in (resolve_data_config(model=network), resolve_model_data_config(network)):
        assert found["input_size"] == (channels, 224, 224)
        assert len(found["mean"]) == len(found["std"]) == channels
        assert found["interpolation"] == "bicubic"
    first = network.get_submodule(known["first_conv"])
    assert first.in_channels == channels
    assert network.get_submodule(known["classifier"]) is network.get_classifier()
    if channels == 3:
        image = create_transform(**resolve_data_config(model=network))(Image.new("RGB", (300, 250)))
        assert network.eval()(image[None]).shape == (1, 4)
    small = timm.create_model("hadaptive_net", spec=TINY, pretrained_cfg_overlay={"input_size": (3, 64, 64)})
    assert resolve_data_config(model=small)["input_size"] == (3, 64, 64)


def test_it_is_a_backbone() -> None:
    backbone = timm.create_model("hadaptive_net", spec=TINY, features_only=True, out_indices=(0, 2))
    assert backbone.feature_info.channels() == [8, 16]
    assert backbone.feature_info.reduction() == [2, 4]
    assert [tuple(m.shape) for m in backbone(torch.randn(2, 3, 16, 16))] == [(2, 8, 8, 8), (2, 16, 4, 4)]


@pytest.mark.parametrize("kind", ["list", "dict", "hook", "getter"])
def test_a_backbone_on_any_device_in_any_dtype(kind: str) -> None:
    options = {"spec": TINY, "features_only": True, "feature_cls": kind, "dtype": torch.float64}
    backbone = timm.create_model("hadaptive_net", device="meta", **options)
    assert {t.device.type for t in backbone.parameters()} == {"meta"}
    whole = timm.create_model("hadaptive_net", **options).eval()
    backbone.to_empty(device="cpu").load_state_dict(whole.state_dict())
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    expected, found = whole(x), backbone.eval()(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_checkpoint_path_loads_its_weights(tmp_path: Path) -> None:
    network = timm.create_model("hadaptive_net", spec=TINY, num_classes=3)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    path = tmp_path / "weights.pt"
    again = timm.create_model("hadaptive_net", spec=TINY, num_classes=3, checkpoint_path=path)
    for name, value in network.state_dict().items():
        assert value.equal(again.state_dict()[name]), name


@pytest.mark.parametrize("said", ["spec", "path"], indirect=True)
def test_saved_by_timm_it_needs_no_file_of_the_spec(said, tmp_path: Path) -> None:
    network = timm.create_model("hadaptive_net", spec=said, num_classes=3, stem_strides=(1, 1)).eval()
    save_for_hf(network, str(tmp_path / "saved"), safe_serialization=True)
    (tmp_path / "tiny.json").unlink()
    again = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    assert spec_of(again) == TINY.with_stem_strides(1, 1)
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(again(x), network(x), rtol=0, atol=0)


def test_a_spec_under_the_name_of_another_network_is_still_read() -> None:
    """Networks of specs were saved under it."""
    assert spec_of(timm.create_model("hadaptive_net_s", spec=HADAPTIVE_NET_M.to_dict())) == HADAPTIVE_NET_M


def test_spec_of_a_file_that_is_no_spec_names_it(tmp_path: Path) -> None:
    (tmp_path / "found.json").write_text("[]")
    with pytest.raises(ValueError, match=r"found\.json: not a network spec"):
        timm.create_model("hadaptive_net", spec=tmp_path / "found.json")
    assert NetSpec.load(tiny_spec(tmp_path)) == TINY
