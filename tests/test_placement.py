"""Where and in what precision layers and networks are made: device=, dtype=, and PyTorch's defaults."""

import inspect

import pytest
import timm
import torch
from networks import NAMES
from tiny import TINY
from torch import nn

import hadaptive.nn
from hadaptive.nn import (
    NORMS,
    AdaptiveBottleneck,
    AdaptiveCrossHadamard,
    BatchNorm,
    ChannelRMSNorm,
    ChannelScore,
    ChannelSelection,
    CrossHadamardExpansion,
    CrossHadamardMlp,
    DyAlge,
    DySig,
    DySoft,
    DyT,
    FixedSelection,
    GhostExpansion,
    InvertedExpansion,
    create_norm,
    expansions,
)

LAYERS = {
    AdaptiveBottleneck: lambda **dd: AdaptiveBottleneck(
        GhostExpansion(4, 2, **dd), 4, 8, 4, 3, drop_path=0.1, **dd
    ),
    AdaptiveCrossHadamard: lambda **dd: AdaptiveCrossHadamard(6, 3, **dd),
    BatchNorm: lambda **dd: BatchNorm(4, **dd),
    ChannelRMSNorm: lambda **dd: ChannelRMSNorm(4, **dd),
    ChannelScore: lambda **dd: ChannelScore(3, **dd),
    ChannelSelection: lambda **dd: ChannelSelection(2, **dd),
    CrossHadamardExpansion: lambda **dd: CrossHadamardExpansion(6, 3, norm="batchnorm", **dd),
    CrossHadamardMlp: lambda **dd: CrossHadamardMlp(6, k=3, norm_layer=nn.LayerNorm, **dd),
    DyAlge: lambda **dd: DyAlge(4, **dd),
    DySig: lambda **dd: DySig(4, **dd),
    DySoft: lambda **dd: DySoft(4, **dd),
    DyT: lambda **dd: DyT(4, **dd),
    FixedSelection: lambda **dd: FixedSelection(torch.tensor([2, 0], device="cpu"), **dd),
    GhostExpansion: lambda **dd: GhostExpansion(4, 2, **dd),
    InvertedExpansion: lambda **dd: InvertedExpansion(4, 2, **dd),
}
each_layer = pytest.mark.parametrize("layer", LAYERS, ids=[layer.__name__ for layer in LAYERS])
FLOAT32 = {"temperature", "gradient_norm"}  # whatever the rest is


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return dict([*module.named_parameters(), *module.named_buffers()])


def assert_placed(module: nn.Module, device: str, dtype: torch.dtype) -> None:
    for name, tensor in tensors(module).items():
        assert tensor.device.type == device, name
        if tensor.is_floating_point():
            assert tensor.dtype == (torch.float32 if name.rpartition(".")[2] in FLOAT32 else dtype), name


def test_every_layer_is_listed_and_takes_both() -> None:
    public = (getattr(hadaptive.nn, name) for name in hadaptive.nn.__all__)
    layers = {kind for kind in public if isinstance(kind, type) and issubclass(kind, nn.Module)}
    assert layers == set(LAYERS)
    for layer in layers:
        assert {"device", "dtype"} <= inspect.signature(layer).parameters.keys(), layer.__name__
    for name in NORMS:
        assert_placed(create_norm(name, 4, device="meta", dtype=torch.float64), "meta", torch.float64)


@each_layer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_layers_are_made_where_and_as_they_are_told(layer, dtype: torch.dtype) -> None:
    make = LAYERS[layer]
    assert_placed(make(), "cpu", torch.float32)
    assert_placed(make(dtype=dtype), "cpu", dtype)
    assert_placed(make(device="meta", dtype=dtype), "meta", dtype)
    with torch.device("meta"):
        if layer is not FixedSelection:  # which stays where its channels are
            assert_placed(make(), "meta", torch.float32)
        assert_placed(make(device="cpu"), "cpu", torch.float32)


@each_layer
def test_layers_follow_the_default_dtype(layer) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert_placed(LAYERS[layer](), "cpu", torch.float64)
        assert_placed(LAYERS[layer](dtype=torch.float32), "cpu", torch.float32)
    finally:
        torch.set_default_dtype(before)


@each_layer
def test_a_layer_made_on_meta_becomes_the_one_it_loads(layer) -> None:
    made = LAYERS[layer]()
    with torch.no_grad():
        for tensor in tensors(made).values():
            if tensor.is_floating_point():
                tensor.add_(0.25)
    for assign in (False, True):
        empty = LAYERS[layer](device="meta")
        if not assign:
            empty.to_empty(device="cpu")
        empty.load_state_dict(made.state_dict(), assign=assign)
        assert tensors(empty).keys() == tensors(made).keys()
        for name, tensor in tensors(made).items():
            assert tensor.equal(tensors(empty)[name]), name


@pytest.mark.parametrize("convert", ["half", "bfloat16", "double", "float"])
def test_a_temperature_is_float32_whatever_the_network_becomes(convert: str) -> None:
    module = AdaptiveCrossHadamard(6, 3)
    select = module.cross_hadamard.select
    select.temperature.fill_(3.98)
    kept = select.temperature.clone()
    getattr(module, convert)()
    assert select.temperature.equal(kept)
    for step in range(40):
        select.update_temperature(torch.tensor([40.0 - step]))
    assert float(select.temperature) == pytest.approx(3.98 * 1.005 * 0.995**39, rel=1e-3)
    module.to("meta", torch.float16)
    assert (select.temperature.device.type, select.temperature.dtype) == ("meta", torch.float32)


@pytest.mark.parametrize("name", [*NAMES, "hadaptive_net"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float64], ids=str)
def test_networks_are_made_where_and_as_they_are_told(name: str, dtype: torch.dtype | None) -> None:
    options = {"spec": TINY} if name == "hadaptive_net" else {}
    network = timm.create_model(name, device="meta", dtype=dtype, num_classes=3, drop_path_rate=0.1, **options)
    assert_placed(network, "meta", dtype or torch.float32)
    network.reset_classifier(5)
    assert_placed(network, "meta", dtype or torch.float32)
    assert "device" not in network._model_args


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_network_of_another_precision_learns(dtype: torch.dtype) -> None:
    network = timm.create_model("hadaptive_net", spec=TINY, num_classes=3, dtype=dtype)
    y = network(torch.randn(4, 3, 16, 16, dtype=dtype))
    assert y.dtype == dtype
    y.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_a_network_made_on_meta_becomes_the_one_it_loads() -> None:
    made = timm.create_model("hadaptive_net", spec=TINY, num_classes=3).eval()
    for layer in expansions(made).values():
        layer.select.temperature.fill_(1.5)
    empty = timm.create_model("hadaptive_net", spec=TINY, num_classes=3, device="meta").to_empty(device="cpu")
    empty.load_state_dict(made.state_dict())
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(empty.eval()(x), made(x), rtol=0, atol=0)
    assert [float(layer.select.temperature) for layer in expansions(empty).values()] == [1.5, 1.5]
    for layer in expansions(made).values():
        layer.freeze(torch.arange(layer.k))
    fixed = timm.create_model("hadaptive_net", spec=TINY, num_classes=3, device="meta").to_empty(device="cpu")
    fixed.load_state_dict(made.state_dict())
    torch.testing.assert_close(fixed.eval()(x), made(x), rtol=0, atol=0)
