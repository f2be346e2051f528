"""Hadaptive-Net S, M and L: their size, and all that timm's own model tests ask of a convolutional network."""

import copy
import pkgutil

import pytest
import timm
import timm.models
import timm.optim
import torch
from networks import REGISTERED, close, create, each_net, images, settled
from timm.layers import DropPath
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from hadaptive.models.shipped import shipped_weights
from hadaptive.nn import expansions

scripting = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::FutureWarning:torch")

POOL_SIDE = {"hadaptive_net_s": 7, "hadaptive_net_m": 7, "hadaptive_net_l": 3}

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
    ours = {name for name in timm.list_models("hadaptive*") if not name.endswith("_published")}
    assert ours == set(REGISTERED)
    assert timm.list_pretrained("hadaptive*") == sorted(shipped_weights())
    assert timm.list_models(module="hadaptive_net", name_matches_cfg=True) == sorted(REGISTERED)


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
