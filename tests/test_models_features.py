"""Hadaptive-Net S, M and L as backbones: features, intermediates, pruning, and timm's aids of training."""

import copy
from math import ceil

import pytest
import timm
import timm.optim
import torch
from networks import create, each_net, images, settled

from hadaptive.models import HadaptiveNet
from hadaptive.nn import DySoft, expansions

CHANNELS = {
    "hadaptive_net_s": [32, 64, 96, 128],
    "hadaptive_net_m": [48, 80, 128, 192],
    "hadaptive_net_l": [48, 96, 192, 256, 256],
}
REDUCTIONS = [4, 8, 16, 32, 64]


# ---------------------------------------------------------------- features


@each_net
def test_feature_info(name):
    model = create(name)
    info = timm.models.FeatureInfo(model.feature_info, tuple(range(len(model.feature_info))))
    assert info.channels() == CHANNELS[name]
    assert info.reduction() == REDUCTIONS[: len(CHANNELS[name])]
    assert all(model.get_submodule(module) is not None for module in info.module_name())


@each_net
def test_features_only(name):
    model = create(name, features_only=True).eval()
    assert model.feature_info.channels() == CHANNELS[name]
    maps = model(images(side=96))
    assert len(maps) == len(CHANNELS[name])
    for features, channels, reduction in zip(maps, CHANNELS[name], model.feature_info.reduction(), strict=True):
        assert features.shape[:2] == (2, channels)
        assert 96 // reduction <= features.shape[-1] <= ceil(96 / reduction)
        assert torch.isfinite(features).all()


@pytest.mark.parametrize("feature_cls", ["list", "dict", "hook", "fx", "getter"])
def test_every_kind_of_feature_extractor(feature_cls):
    x, full = images(), create().eval()
    model = create(features_only=True, feature_cls=feature_cls).eval()
    maps = model(x)
    maps = list(maps.values()) if isinstance(maps, dict) else maps
    torch.testing.assert_close(maps, full.forward_intermediates(x)[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("wanted", "stages"), [((0,), [0]), ((1, 3), [1, 3]), ((-1,), [3]), ((-3, -1), [1, 3]), (2, [2, 3])], ids=str
)
def test_features_only_subsets(wanted, stages):
    x = images()
    model = create(features_only=True, out_indices=wanted).eval()
    assert model.feature_info.channels() == [CHANNELS["hadaptive_net_s"][i] for i in stages]
    every = create(features_only=True).eval()(x)
    torch.testing.assert_close(model(x), [every[i] for i in stages], rtol=0, atol=0)


def test_features_only_with_stem_strides():
    model = create(features_only=True, stem_strides=(1, 1)).eval()
    assert model.feature_info.reduction() == [1, 2, 4, 8]
    assert [f.shape[-1] for f in model(images(side=32))] == [32, 16, 8, 4]


@each_net
def test_forward_intermediates(name):
    model, x = settled(name), images()
    with torch.no_grad():
        final, maps = model.forward_intermediates(x)
        torch.testing.assert_close(final, model.forward_features(x), rtol=0, atol=0)
        assert [m.shape[1] for m in maps] == CHANNELS[name]
        torch.testing.assert_close(model.forward_intermediates(x, intermediates_only=True), maps, rtol=0, atol=0)
        torch.testing.assert_close(model.last(maps[-1]), final, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("indices", "stages"),
    [(None, [0, 1, 2, 3]), (1, [3]), (4, [0, 1, 2, 3]), ([0, 2], [0, 2]), ([-1], [3]), ((-4, 1), [0, 1])],
    ids=str,
)
def test_forward_intermediates_indices(indices, stages):
    model, x = settled(), images()
    every = model.forward_intermediates(x, intermediates_only=True)
    maps = model.forward_intermediates(x, indices=indices, intermediates_only=True)
    torch.testing.assert_close(maps, [every[i] for i in stages], rtol=0, atol=0)


def test_forward_intermediates_stop_early():
    model, x = settled(), images()
    ran = []
    for i, stage in enumerate(model.stages):
        stage.register_forward_hook(lambda *_, i=i: ran.append(i))
    final, maps = model.forward_intermediates(x, indices=[1], stop_early=True)
    assert ran == [0, 1]
    torch.testing.assert_close(final, maps[0], rtol=0, atol=0)
    ran.clear()
    final, later = model.forward_intermediates(x, indices=[1])
    assert ran == [0, 1, 2, 3]
    torch.testing.assert_close(later, maps, rtol=0, atol=0)
    torch.testing.assert_close(final, model.forward_features(x), rtol=0, atol=0)


@pytest.mark.parametrize("indices", [0, 5, -1, [4], [-5], [0, 9], []], ids=str)
def test_bad_indices(indices):
    model = create().eval()
    with pytest.raises(ValueError, match=r"stage|intermediates"):
        model.forward_intermediates(images(), indices=indices)
    with pytest.raises(ValueError, match=r"stage|intermediates"):
        model.prune_intermediate_layers(indices)
    assert len(model.stages) == 4


def test_bad_output_format():
    with pytest.raises(ValueError, match="NHWC"):
        create().forward_intermediates(images(), output_fmt="NHWC")


@each_net
@pytest.mark.parametrize("last", [1, -1], ids=["middle", "end"])
def test_prune_intermediate_layers(name, last):
    model, x = settled(name), images()
    before = sum(p.numel() for p in model.parameters())
    expected = model.forward_intermediates(x, indices=[0, last], intermediates_only=True)
    features = model.forward_features(x)
    last %= len(model.stages)
    assert model.prune_intermediate_layers([0, last]) == [0, last]
    assert sum(p.numel() for p in model.parameters()) < before
    assert len(model.stages) == last + 1
    final, maps = model.forward_intermediates(x, indices=[0, last])
    torch.testing.assert_close(maps, expected, rtol=0, atol=0)
    torch.testing.assert_close(final, features if last + 1 == len(CHANNELS[name]) else maps[-1], rtol=0, atol=0)
    torch.testing.assert_close(model(x), final, rtol=0, atol=0)
    assert model.num_features == model.head_hidden_size == final.shape[1]


def test_prune_norm_takes_the_last_convolution_away():
    model, x = settled(), images()
    expected = model.forward_intermediates(x, indices=1, intermediates_only=True)[0]
    assert model.prune_intermediate_layers(1, prune_norm=True) == [3]
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


def test_prune_can_keep_the_head():
    model, x = settled(), images()
    expected = model(x)
    model.prune_intermediate_layers(1, prune_head=False)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


def test_a_pruned_model_takes_a_new_classifier():
    model = settled()
    model.prune_intermediate_layers([2])
    model.reset_classifier(5, "avg")
    assert model(images()).shape == (2, 5)


# ---------------------------------------------------------------- training aids


@each_net
def test_grad_checkpointing(name):
    # Selection, dropout and stochastic depth are random: the recomputation must see the same noise again.
    plain = create(name, num_classes=7, drop_path_rate=0.2)
    checkpointed = copy.deepcopy(plain)
    checkpointed.set_grad_checkpointing()
    outputs, calls = [], [0]
    first = checkpointed.stages[1][0]
    first.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    for model in (plain, checkpointed):
        torch.manual_seed(7)
        outputs.append(model.train()(images()))
        outputs[-1].square().mean().backward()
    assert calls == [2]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)
    for (key, p), q in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-7, msg=key)
    checkpointed.set_grad_checkpointing(False)
    checkpointed(images())
    assert calls == [3]


def test_grad_checkpointing_of_intermediates():
    model, x = settled(), images()
    expected = model.forward_intermediates(x)
    model.set_grad_checkpointing()
    actual = model.forward_intermediates(x)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@each_net
@pytest.mark.parametrize("coarse", [False, True], ids=["fine", "coarse"])
def test_group_matcher(name, coarse):
    model = create(name)
    groups = timm.models.group_parameters(model, model.group_matcher(coarse=coarse))
    grouped = [parameter for group in groups.values() for parameter in group]
    assert sorted(grouped) == sorted(key for key, _ in model.named_parameters())
    layers = sum(len(stage) for stage in model.stages)
    # The stem, every layer (coarse: every stage), and what no pattern names: the classifier.
    assert len(groups) == 1 + (len(model.stages) if coarse else layers) + 1
    assert all(key.startswith("stem.") for key in groups[0])
    assert groups[len(groups) - 1] == ["classifier.weight", "classifier.bias"]
    # As in timm's other networks with such a head, it learns with the last layer.
    assert {key.split(".")[0] for key in groups[len(groups) - 2]} == {"stages", "last", "conv_head"}


@each_net
def test_layer_decay(name):
    model = create(name, num_classes=5)
    optimizer = timm.optim.create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.1, layer_decay=0.7)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert set(groups) == {id(p) for p in model.parameters()}
    scales = [groups[id(p)]["lr_scale"] for _, p in model.named_parameters()]
    assert scales == sorted(scales)
    depth = 1 + sum(len(stage) for stage in model.stages) + 1
    assert scales[0] == pytest.approx(0.7 ** (depth - 1))
    assert groups[id(model.classifier.weight)]["lr_scale"] == 1.0
    assert groups[id(model.classifier.weight)]["weight_decay"] == 0.1
    for key in model.no_weight_decay():
        assert groups[id(model.get_parameter(key))]["weight_decay"] == 0.0
    model(images()).mean().backward()
    optimizer.step()


@each_net
def test_no_weight_decay(name):
    model = create(name)
    names = {key for key, _ in model.named_parameters()}
    assert model.no_weight_decay() <= names
    dysoft = [key for key, layer in expansions(model).items() if isinstance(layer.norm, DySoft)]
    assert model.no_weight_decay() == {f"{key}.norm.alpha" for key in dysoft}


def test_built_without_timm():
    model = HadaptiveNet(num_classes=3)
    assert model.eval()(images()).shape == (2, 3)
