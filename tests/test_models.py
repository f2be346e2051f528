"""Hadaptive-Net S, M and L: their size, and all that timm's own model tests ask of a convolutional network."""

import copy
import pkgutil
from math import ceil

import pytest
import timm
import timm.models
import timm.optim
import torch
from timm.layers import DropPath
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from hadaptive.models import HadaptiveNet
from hadaptive.nn import expansions

NAMES = ["hadaptive_net_s", "hadaptive_net_m", "hadaptive_net_l"]
each_net = pytest.mark.parametrize("name", NAMES, ids=["s", "m", "l"])
scripting = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::FutureWarning:torch")

POOL_SIDE = {"hadaptive_net_s": 7, "hadaptive_net_m": 7, "hadaptive_net_l": 3}
CHANNELS = {
    "hadaptive_net_s": [32, 64, 96, 128],
    "hadaptive_net_m": [48, 80, 128, 192],
    "hadaptive_net_l": [48, 96, 192, 256, 256],
}
REDUCTIONS = [4, 8, 16, 32, 64]


def images(batch=2, side=64, channels=3, seed=1):
    return torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(seed))


def create(name="hadaptive_net_s", **options):
    torch.manual_seed(0)
    return timm.create_model(name, **options)


def settled(name="hadaptive_net_s", **options):
    """An untrained network in eval mode whose BatchNorms know their inputs: without that, activations shrink
    from layer to layer until every output looks the same."""
    model = create(name, **options)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(images(8, channels=model.in_chans))
    return model.eval()


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- size


@pytest.mark.parametrize(
    ("name", "at_100", "at_1000"),
    [
        ("hadaptive_net_s", 2_101_992, 3_254_892),
        ("hadaptive_net_m", 3_095_076, 4_247_976),
        ("hadaptive_net_l", 6_108_078, 7_260_978),
    ],
    ids=["s", "m", "l"],
)
def test_parameters(name, at_100, at_1000):
    with torch.device("meta"):
        for classes, expected in ((100, at_100), (1000, at_1000)):
            model = timm.create_model(name, num_classes=classes)
            assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize(
    ("name", "millions"),
    [("hadaptive_net_s", 131.0), ("hadaptive_net_m", 338.7), ("hadaptive_net_l", 668.9)],
    ids=["s", "m", "l"],
)
def test_macs(name, millions):
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        timm.create_model(name, num_classes=100).eval()(torch.empty(1, 3, 224, 224))
    assert counter.get_total_flops() / 2e6 == pytest.approx(millions, abs=0.05)


# ---------------------------------------------------------------- registry


def test_registered_with_timm():
    # The benchmarks register the published ones besides, once they are imported.
    assert {name for name in timm.list_models("hadaptive*") if not name.endswith("_published")} == set(NAMES)
    assert timm.list_pretrained("hadaptive*") == []
    assert timm.list_models(module="hadaptive_net", name_matches_cfg=True) == sorted(NAMES)


def test_module_name_is_not_one_of_timms():
    # timm's registry knows a module by its last name only.
    assert "hadaptive_net" not in {module.name for module in pkgutil.iter_modules(timm.models.__path__)}


@each_net
def test_pretrained_cfg(name):
    cfg = timm.models.get_pretrained_cfg(name)
    assert (cfg.architecture, cfg.tag) == (name, "untrained")
    assert not cfg.has_weights
    assert (cfg.input_size, cfg.num_classes, cfg.license) == ((3, 224, 224), 1000, "apache-2.0")
    model = create(f"{name}.untrained")
    assert model.pretrained_cfg["tag"] == "untrained"
    assert model.default_cfg == model.pretrained_cfg


@pytest.mark.parametrize("name", ["hadaptive_net_s", "hadaptive_net_s.untrained"])
def test_pretrained_weights_are_refused_not_ignored(name):
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        timm.create_model(name, pretrained=True)


def test_misspelt_option_is_not_swallowed():
    with pytest.raises(TypeError, match="drop_rat"):
        timm.create_model("hadaptive_net_s", drop_rat=0.1)


# ---------------------------------------------------------------- forward, backward, head


@each_net
@pytest.mark.parametrize("batch", [1, 2])
def test_forward(name, batch):
    out = settled(name)(images(batch, side=96))
    assert out.shape == (batch, 1000)
    assert torch.isfinite(out).all()


@each_net
def test_backward(name):
    model = create(name, num_classes=42).train()
    out = model(images(4))
    assert out.shape == (4, 42)
    out.square().mean().backward()
    assert torch.isfinite(out).all()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name
        assert parameter.grad.any(), parameter_name


@each_net
def test_default_cfgs(name):
    model, x = settled(name), images(1, side=224)
    keys, cfg = set(model.state_dict()), model.default_cfg
    assert f"{cfg['classifier']}.weight" in keys
    assert f"{cfg['first_conv']}.weight" in keys
    side = POOL_SIDE[name]
    assert cfg["pool_size"] == (side, side)

    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape == (1, model.num_features, side, side)
        pre_logits = model.forward_head(features, pre_logits=True)
        model.reset_classifier(0)
        assert model.num_classes == 0
        torch.testing.assert_close(model(x), pre_logits, rtol=0, atol=0)
        assert pre_logits.shape == (1, model.head_hidden_size)
        model.reset_classifier(0, "")
        assert model(x).shape == (1, model.head_hidden_size, side, side)
        model.reset_classifier(7, "avg")
        assert model(x).shape == (1, 7)


def test_unpooled_and_headless_by_constructor():
    x = images()
    assert settled(num_classes=0)(x).shape == (2, 1280)
    # The head is a 1x1 convolution before the pool's place: a map passes through it.
    assert create(num_classes=0, global_pool="").eval()(x).shape == (2, 1280, 2, 2)


@each_net
def test_classifier(name):
    model = create(name, num_classes=5)
    assert model.get_classifier() is model.classifier
    assert model.classifier.out_features == model.num_classes == 5
    model.train().reset_classifier(9)
    assert model.get_classifier().out_features == model.num_classes == 9
    assert model.classifier.training
    model.eval().double().reset_classifier(3)
    assert model.classifier.weight.dtype == torch.float64
    assert not model.classifier.training
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", "catavgmax", "fast", "fastmax"])
def test_global_pool(pool):
    x = images()
    model = settled(global_pool=pool, num_classes=7)
    assert model(x).shape == (2, 7)
    model.reset_classifier(0)
    assert model(x).shape == (2, 1280)


def test_global_pools_differ():
    x, model, outputs = images(side=128), settled(num_classes=7), []
    for pool in ("avg", "max", "avgmax"):
        head = copy.deepcopy(model.classifier)
        model.reset_classifier(7, pool)
        model.classifier = head
        outputs.append(model(x))
    assert not any(torch.allclose(a, b) for a, b in zip(outputs, outputs[1:] + outputs[:1], strict=True))


def test_a_classifier_needs_a_pool():
    with pytest.raises(ValueError, match="num_classes=0"):
        create(global_pool="")
    model = create()
    with pytest.raises(ValueError, match="num_classes=0"):
        model.reset_classifier(5, "")
    assert model(images()).shape == (2, 1000)


def test_pool_that_the_built_head_cannot_take():
    for built, wanted in (("avg", "catavgmax"), ("catavgmax", "avg")):
        model = create(global_pool=built)
        with pytest.raises(ValueError, match="catavgmax"):
            model.reset_classifier(5, wanted)
        assert model(images()).shape == (2, 1000)


@each_net
@pytest.mark.parametrize("channels", [1, 4])
def test_in_chans(name, channels):
    model = create(name, in_chans=channels, num_classes=5).eval()
    assert model.get_submodule(model.default_cfg["first_conv"]).in_channels == channels
    assert model(images(channels=channels)).shape == (2, 5)


def test_drop_rate():
    model, x = settled(drop_rate=0.9), images(32)
    assert create().drop_rate == 0.3  # the method's
    features = model.forward_features(x)
    kept = model.forward_head(features, pre_logits=True)
    dropped = model.train().forward_head(features, pre_logits=True)
    survived = dropped != 0
    assert 0.08 < survived.float().mean() / (kept != 0).float().mean() < 0.12
    close(dropped[survived], 10 * kept[survived])
    model.drop_rate = 0.0
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), kept, rtol=0, atol=0)


@each_net
def test_drop_path_rate(name):
    model = create(name, drop_path_rate=0.2)
    blocks = [block for stage in model.stages[1:] for block in stage]
    assert not any(isinstance(m, DropPath) for m in create(name).modules())
    for i, block in enumerate(blocks):
        assert isinstance(block.drop_path, DropPath) == block.residual
        if block.residual:
            assert block.drop_path.drop_prob == pytest.approx(0.2 * i / (len(blocks) - 1))
    plain, x = create(name), images()
    torch.testing.assert_close(model.eval()(x), plain.eval()(x), rtol=0, atol=0)
    model.train()(x).sum().backward()


# ---------------------------------------------------------------- numerics


# In float64, because selection is discontinuous: where two scores agree to the last bits of float32, another order
# of summation swaps two channels' ranks, and the output changes by far more than rounding does.


@each_net
def test_batch_independence(name):
    model, x = settled(name).double(), images(3).double()
    with torch.no_grad():
        alone = torch.cat([model(x[i : i + 1]) for i in range(3)])
        close(model(x), alone)
    assert not torch.allclose(alone[0], alone[1], rtol=1e-2)


@each_net
def test_channels_last(name):
    model, x = settled(name).double(), images().double()
    with torch.no_grad():
        expected = model(x)
        model = model.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
        assert model.forward_features(x).is_contiguous(memory_format=torch.channels_last)
        close(model(x), expected)


def test_eval_is_deterministic_and_training_is_not():
    model, x = settled(drop_rate=0.0), images()
    with torch.no_grad():
        torch.testing.assert_close(model(x), model(x), rtol=0, atol=0)
        model.train()
        assert not torch.equal(model(x), model(x))  # Gumbel noise


@each_net
def test_state_dict_round_trip(name, tmp_path):
    model, x = settled(name), images()
    next(iter(expansions(model).values())).select.temperature.fill_(1.5)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    torch.manual_seed(5)
    other = timm.create_model(name).eval()
    assert not torch.equal(other(x), model(x))
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)
    assert next(iter(expansions(other).values())).select.temperature == 1.5


# ---------------------------------------------------------------- TorchScript, FX, export, compile


@scripting
@each_net
def test_torchscript(name):
    model, x = settled(name), images()
    torch.testing.assert_close(torch.jit.script(model)(x), model(x), rtol=0, atol=0)


@scripting
def test_torchscript_in_training():
    model, x = create(), images()
    scripted = torch.jit.script(copy.deepcopy(model))
    outputs = []
    for net in (model, scripted):
        torch.manual_seed(3)
        outputs.append(net(x))
        outputs[-1].square().mean().backward()
    close(outputs[0], outputs[1])
    for (key, p), q in zip(model.named_parameters(), scripted.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5, msg=key)


def fx_model(model):
    leaves = {
        "leaf_modules": list(timm.models.get_notrace_modules()),
        "autowrap_functions": list(timm.models.get_notrace_functions()),
    }
    train_nodes, eval_nodes = get_graph_node_names(model, tracer_kwargs=leaves)
    return create_feature_extractor(
        model,
        train_return_nodes={train_nodes[-1]: "out"},
        eval_return_nodes={eval_nodes[-1]: "out"},
        tracer_kwargs=leaves,
    )


@scripting
@each_net
def test_fx_forward_and_torchscript(name):
    model, x = settled(name), images()
    traced = fx_model(model).eval()
    expected = model(x)
    torch.testing.assert_close(traced(x)["out"], expected, rtol=0, atol=0)
    torch.testing.assert_close(torch.jit.script(traced)(x)["out"], expected, rtol=0, atol=0)


@each_net
def test_fx_backward(name):
    model = create(name, num_classes=42)
    traced = fx_model(model).train()
    out = traced(images())["out"]
    out.mean().backward()
    assert out.shape == (2, 42)
    total = sum(p.numel() for p in model.parameters())
    assert sum(p.grad.numel() for p in traced.parameters() if p.grad is not None) == total


def test_torch_export():
    model, x = settled(), images()
    program = torch.export.export(model, (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
    exported = program.module()
    for batch in (x, images(5, seed=2)):
        torch.testing.assert_close(exported(batch), model(batch), rtol=0, atol=0)


def test_torch_compile_without_graph_breaks():
    torch.compiler.reset()
    model, x = settled(), images()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("flag", ["exportable", "scriptable"])
def test_timms_layer_flags(flag):
    x = images()
    model = create(**{flag: True}).eval()
    torch.testing.assert_close(model(x), create().eval()(x), rtol=0, atol=0)


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
    dysoft = [key for key, layer in expansions(model).items() if layer.fused]
    assert model.no_weight_decay() == {f"{key}.norm.alpha" for key in dysoft}


def test_built_without_timm():
    model = HadaptiveNet(num_classes=3)
    assert model.eval()(images()).shape == (2, 3)
