"""Where and in what precision layers and networks are made: device=, dtype=, and PyTorch's defaults."""

import copy
import dataclasses
import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import timm
import torch
from networks import NAMES
from tiny import TINY
from torch import nn

import hadaptive.nn
from hadaptive.export.freeze import calibrate, freeze
from hadaptive.models.layer_spec import ach
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
    GroupedSelection,
    InvertedExpansion,
    PolyBlock,
    ProductBlock,
    RepDepthwise,
    SelectionRecorder,
    StaticSelection,
    create_norm,
    expansions,
)

LAYERS = {
    AdaptiveBottleneck: lambda **dd: AdaptiveBottleneck(
        GhostExpansion(4, 2, **dd), 4, 8, 4, 3, drop_path=0.1, **dd
    ),
    AdaptiveCrossHadamard: lambda **dd: AdaptiveCrossHadamard(6, 3, selection="sample", **dd),
    BatchNorm: lambda **dd: BatchNorm(4, **dd),
    ChannelRMSNorm: lambda **dd: ChannelRMSNorm(4, **dd),
    ChannelScore: lambda **dd: ChannelScore(3, **dd),
    ChannelSelection: lambda **dd: ChannelSelection(2, **dd),
    CrossHadamardExpansion: lambda **dd: CrossHadamardExpansion(6, 3, norm="batchnorm", selection="sample", **dd),
    CrossHadamardMlp: lambda **dd: CrossHadamardMlp(6, k=3, norm_layer=nn.LayerNorm, selection="sample", **dd),
    PolyBlock: lambda **dd: PolyBlock(4, 3, 0.1, **dd),
    ProductBlock: lambda **dd: ProductBlock(
        4, 2, 3, 3, "batchnorm", 0.1, **dd, reparam=True, layer_scale_init=1.0
    ),
    RepDepthwise: lambda **dd: RepDepthwise(4, 5, **dd),
    DyAlge: lambda **dd: DyAlge(4, **dd),
    DySig: lambda **dd: DySig(4, **dd),
    DySoft: lambda **dd: DySoft(4, **dd),
    DyT: lambda **dd: DyT(4, **dd),
    FixedSelection: lambda **dd: FixedSelection(torch.tensor([2, 0], device="cpu"), **dd),
    GhostExpansion: lambda **dd: GhostExpansion(4, 2, **dd),
    GroupedSelection: lambda **dd: GroupedSelection(2, **dd),
    InvertedExpansion: lambda **dd: InvertedExpansion(4, 2, **dd),
    StaticSelection: lambda **dd: StaticSelection(2, **dd),
}
SHAPES = {  # of inputs, where (2, 4, 5, 5) does not fit
    AdaptiveCrossHadamard: (2, 6, 5, 5),
    ChannelSelection: (2, 6),
    GroupedSelection: (2, 6),
    CrossHadamardExpansion: (2, 6, 5, 5),
    CrossHadamardMlp: (2, 5, 6),
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
    layers = {kind for kind in layers if not issubclass(kind, nn.Sequential)}  # which make nothing
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
    with defaults(torch.float64, None):
        assert_placed(LAYERS[layer](), "cpu", torch.float64)
        assert_placed(LAYERS[layer](dtype=torch.float32), "cpu", torch.float32)


@contextmanager
def defaults(dtype: torch.dtype | None, device: str | None) -> Iterator[None]:
    """PyTorch's own defaults, inside the block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype or before)
    try:
        with nullcontext() if device is None else torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


each_default = pytest.mark.parametrize(
    ("dtype", "device"),
    [(torch.float64, None), (torch.bfloat16, None), (None, "meta")],
    ids=["float64", "bfloat16", "meta"],
)


def computed(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """What comes out, what is learned from it, and what is kept."""
    module, x = copy.deepcopy(module), x.clone().requires_grad_()
    torch.manual_seed(3)
    found = module(x)
    outputs = [y for y in (found if isinstance(found, tuple) else (found,)) if y is not None]
    learned = [y.square().sum() for y in outputs if y.requires_grad]
    for each in learned:
        each.backward(retain_graph=True)
    gradients = [t.grad for t in (x, *module.parameters()) if t.grad is not None]
    return [*(y.detach() for y in outputs), *gradients, *module.buffers()]


@each_layer
@each_default
def test_layers_compute_the_same_whatever_pytorchs_defaults(layer, dtype, device) -> None:
    module = LAYERS[layer]()
    x = torch.randn(SHAPES.get(layer, (2, 4, 5, 5)))
    for training in (False, True):
        expected = computed(module.train(training), x)
        with defaults(dtype, device):
            found = computed(module, x)
        assert len(found) == len(expected) > 0
        for one, other in zip(found, expected, strict=True):
            assert (one.dtype, one.device) == (other.dtype, other.device)
            torch.testing.assert_close(one, other)


@each_default
def test_what_watches_and_fixes_selections_minds_no_defaults(dtype, device) -> None:
    network = timm.create_model("hadaptive_net", spec=TINY, num_classes=3).eval()
    x = torch.randn(4, 3, 16, 16)

    def watched() -> tuple[list[float], list[dict], torch.Tensor, torch.Size]:
        with SelectionRecorder(network) as recorder:
            network(x)
        calibration = calibrate(network, [x])
        other = copy.deepcopy(network)
        other.reset_classifier(5)
        return (
            [report.entropy for report in recorder.reports()],
            [each.summary() for each in calibration.values()],
            freeze(network, calibration)(x),
            other(x).shape,
        )

    expected = watched()
    with defaults(dtype, device):
        found = watched()
    assert found[:2] == expected[:2]
    torch.testing.assert_close(found[2], expected[2])
    assert found[3] == expected[3]


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


def test_a_network_made_on_meta_can_be_reset() -> None:
    """As FSDP does: all but the random weights are those of a network that was made as ever."""
    spec = dataclasses.replace(
        TINY,
        stages=tuple(  # with every norm
            tuple(ach(4, 3, 12, norm=norm) for norm in norms)
            for norms in (("dysoft", "dysig", "dyalge", "dyt"), NORMS)
        ),
    )
    network = timm.create_model("hadaptive_net", spec=spec, num_classes=3, device="meta").to_empty(device="cpu")
    for tensor in network.state_dict().values():
        tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.fill_(-7)
    network.apply(lambda module: module.reset_parameters() if hasattr(module, "reset_parameters") else None)
    made = timm.create_model("hadaptive_net", spec=spec, num_classes=3).state_dict()
    for name, value in network.state_dict().items():
        assert torch.isfinite(value).all(), name
        if len(made[name].unique()) < 2:
            assert value.equal(made[name]), name
    assert torch.isfinite(network(torch.randn(4, 3, 16, 16))).all()


@pytest.mark.parametrize("convert", ["half", "bfloat16", "double", "float"])
def test_a_temperature_is_float32_whatever_the_network_becomes(convert: str) -> None:
    module = AdaptiveCrossHadamard(6, 3, selection="sample")
    select = module.cross_hadamard.select
    select.temperature.fill_(3.98)
    kept = select.temperature.clone()
    getattr(module, convert)()
    assert select.temperature.equal(kept)
    for step in range(40):
        select.update_temperature(torch.tensor([40.0 - step]))
    assert float(select.temperature) == pytest.approx(3.98 * 1.005 * 0.995**39, rel=1e-3)
    narrow = {name: value.half() if "select" in name else value for name, value in module.state_dict().items()}
    module.load_state_dict(narrow, assign=True)
    assert select.temperature.dtype == torch.float32
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
