"""create_model: timm names, spec files and specs in, networks or one clear ValueError out."""

import pytest
import torch
from timm.layers import DropPath

from hadaptive.models import HadaptiveNet, create_model, spec_of
from hadaptive.models.published import HADAPTIVE_NET_M, HADAPTIVE_NET_S


@pytest.fixture
def spec_file(tmp_path):
    path = tmp_path / "net.json"
    HADAPTIVE_NET_M.save(path)
    return str(path)


@pytest.mark.parametrize("name", ["hadaptive_net_s", "hadaptive_net_s.untrained"])
def test_by_name(name):
    model = create_model(name, num_classes=10)
    assert isinstance(model, HadaptiveNet)
    assert model.spec == HADAPTIVE_NET_S
    assert model.num_classes == model.classifier.out_features == 10


def test_by_spec_file(spec_file):
    model = create_model(spec_file, num_classes=10)
    assert isinstance(model, HadaptiveNet)
    assert spec_of(model) == HADAPTIVE_NET_M


def test_by_spec():
    assert spec_of(create_model(HADAPTIVE_NET_M, num_classes=10)) == HADAPTIVE_NET_M


def test_a_derived_class_is_not_described_by_its_spec():
    class Variant(HadaptiveNet):
        pass

    assert spec_of(Variant(num_classes=2)) is None


def test_name_file_and_spec_build_the_same_network(tmp_path):
    HADAPTIVE_NET_S.save(tmp_path / "s.json")
    weights = []
    for model in ("hadaptive_net_s", str(tmp_path / "s.json"), HADAPTIVE_NET_S):
        torch.manual_seed(0)
        weights.append(create_model(model, num_classes=4, stem_strides=(1, 1)).state_dict())
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)
    torch.testing.assert_close(weights[0], weights[2], rtol=0, atol=0)


def test_foreign_model():
    model = create_model("test_resnet", num_classes=10, in_chans=1)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 10)
    assert spec_of(model) is None


@pytest.mark.parametrize("model", ["hadaptive_net_s", HADAPTIVE_NET_S], ids=["name", "spec"])
def test_options_arrive(model):
    net = create_model(model, num_classes=4, in_chans=1, drop_rate=0.1, drop_path_rate=0.2, stem_strides=(1, 2))
    assert (net.num_classes, net.in_chans, net.drop_rate) == (4, 1, 0.1)
    assert max(m.drop_prob for m in net.modules() if isinstance(m, DropPath)) == pytest.approx(0.2)
    assert spec_of(net) == HADAPTIVE_NET_S.with_stem_strides(1, 2)
    assert net.eval()(torch.zeros(1, 1, 64, 64)).shape == (1, 4)


def test_none_leaves_the_models_own_defaults():
    assert create_model("hadaptive_net_s", num_classes=4).drop_rate == 0.3
    assert create_model("hadaptive_net_s", num_classes=4, drop_rate=0.0).drop_rate == 0.0


@pytest.mark.parametrize(
    ("name", "hint"),
    [("hadaptive_net_x", "hadaptive_net_s"), ("resnet_18", "resnet18"), ("starnets1", "starnet_s1")],
)
def test_unknown_name_gets_a_suggestion(name, hint):
    with pytest.raises(ValueError, match=f"no model '{name}'.*did you mean .*{hint}"):
        create_model(name, num_classes=4)


@pytest.mark.parametrize("name", ["", "qqqqqqqq", "net.yaml", "hf-hub:someone/something", "../net"])
def test_unknown_name_without_a_suggestion(name):
    with pytest.raises(ValueError, match="there is no model"):
        create_model(name, num_classes=4)


def test_unknown_tag():
    with pytest.raises(ValueError, match=r"hadaptive_net_s\.imagenet.*[Ii]nvalid pretrained tag"):
        create_model("hadaptive_net_s.imagenet", num_classes=4)


def test_option_the_model_does_not_take():
    with pytest.raises(ValueError, match=r"dla46_c cannot be built with these options.*drop_path_rate"):
        create_model("dla46_c", num_classes=4, drop_path_rate=0.1)


def test_stem_strides_on_a_foreign_model():
    with pytest.raises(ValueError, match="Hadaptive-Nets only, not to resnet18"):
        create_model("resnet18", num_classes=4, stem_strides=(1, 1))


@pytest.mark.parametrize("strides", [(3,), (1, 1, 1), (0,)], ids=str)
@pytest.mark.parametrize("model", ["hadaptive_net_s", HADAPTIVE_NET_S], ids=["name", "spec"])
def test_bad_stem_strides(model, strides):
    with pytest.raises(ValueError, match="stem_strides must be up to 2 values of 1 or 2"):
        create_model(model, num_classes=4, stem_strides=strides)


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"there is no network spec file .*none\.json"):
        create_model(str(tmp_path / "none.json"), num_classes=4)


def test_folder_in_place_of_a_file(tmp_path):
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ValueError, match="there is no network spec file"):
        create_model(str(tmp_path / "folder.json"), num_classes=4)


@pytest.mark.parametrize(
    ("content", "says"), [("{", "is not JSON"), ("{}", "not a network spec")], ids=["cut", "foreign"]
)
def test_bad_file_is_named(tmp_path, content, says):
    path = tmp_path / "net.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"net\.json.*{says}"):
        create_model(str(path), num_classes=4)


@pytest.mark.parametrize("options", [{"num_classes": -1}, {"num_classes": 3, "in_chans": 0}], ids=str)
def test_counts_out_of_range_are_one_sentence(options: dict) -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 0"):
        create_model("hadaptive_net_s", **options)
