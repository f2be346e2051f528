"""What is done to a network before it is written changes no output."""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hadaptive.export.freeze import calibrate, freeze
from hadaptive.measure.deploy import DeployNet, conv_of, fold
from hadaptive.measure.passes import absorb, align, merge, prepare
from hadaptive.models import ConvSpec, HadaptiveNet, NetSpec
from hadaptive.models.layer_spec import ach, ghost, inverted
from hadaptive.nn import NORMS, BatchNorm, ChannelScore, expansions, top_k_channels


def network(
    k: int = 5,
    norm: str = "dysoft",
    order: str = "rank",
    alpha: float = 0.7,
    stage1: ConvSpec = ConvSpec(10, 2, 2),  # noqa: B008
    stride: int = 1,
    kernel: int = 3,
) -> HadaptiveNet:
    """A small network whose every constant is something else than its start value."""
    spec = NetSpec(
        name="tiny",
        stem=ConvSpec(8, 2, 2, act=False),
        stage1=(stage1,),
        stages=(
            (ghost(1.5, kernel, 12, stride), ach(k, 3, 12, norm=norm)),
            (inverted(2, 2, 14, 2), ach(k, 5, 14, norm=norm)),
        ),
        last_channels=20,
        head_channels=16,
        order=order,
    )
    torch.manual_seed(0)
    model = HadaptiveNet(spec, num_classes=4)
    for name, tensor in model.state_dict().items():
        if name.endswith("alpha"):
            tensor.fill_(alpha)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point() and "select" not in name:
            tensor.copy_(torch.randn_like(tensor) * (0.3 if tensor.dim() > 1 else 1.0))
    return model.eval()


def fixed(model: HadaptiveNet) -> HadaptiveNet:
    frozen = copy.deepcopy(model)
    for layer in expansions(frozen).values():
        layer.freeze(torch.randperm(layer.channels)[: layer.k])
    return frozen


def assert_same(net: torch.nn.Module, model: HadaptiveNet) -> None:
    x = torch.randn(3, 3, 17, 14)
    with torch.no_grad():
        torch.testing.assert_close(net(x), model(x), rtol=1e-4, atol=1e-4)


SCORES = [0.0, -0.0, 1.0, -1.0, 1e-44, 1e37, -3e38, 1 + 2**-23, 0.1]
PASSES = {"absorb": absorb, "merge": merge, "align": align}


@pytest.mark.parametrize("frozen", [False, True], ids=["dynamic", "frozen"])
@pytest.mark.parametrize("norm", sorted(NORMS))
def test_each_pass_and_all_together_keep_the_outputs(norm: str, frozen: bool) -> None:
    model = network(norm=norm)
    model = fixed(model) if frozen else model
    assert_same(fold(model), model)
    for change in PASSES.values():
        net = fold(model)
        assert change(net)
        assert_same(net, model)
    for order in itertools.permutations(PASSES):
        net = fold(model)
        for name in order:
            PASSES[name](net)
        assert_same(net, model)


@settings(max_examples=20, deadline=None)
@given(
    k=st.integers(2, 12),
    order=st.sampled_from(["rank", "index"]),
    alpha=st.sampled_from([0.7, -0.6, 0.0]),
    multiple=st.integers(1, 16),
    frozen=st.booleans(),
)
def test_any_network_keeps_its_outputs(k: int, order: str, alpha: float, multiple: int, frozen: bool) -> None:
    model = network(k, order=order, alpha=alpha)
    model = fixed(model) if frozen else model
    net = fold(model)
    absorb(net)
    merge(net)
    align(net, multiple)
    assert_same(net, model)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track", [True, False])
def test_batchnorm_of_products_keeps_its_outputs_over_its_options(affine: bool, track: bool) -> None:
    model = fixed(network(norm="batchnorm"))
    for layer in expansions(model).values():
        was = layer.norm
        layer.norm = BatchNorm(was.num_features, affine=affine, track_running_stats=track).eval()
        layer.norm.load_state_dict({k: v for k, v in was.state_dict().items() if k in layer.norm.state_dict()})
    assert_same(prepare(model, 16)[0], model)


def test_fold_leaves_the_network_alone_and_nothing_of_training() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    net = fold(model)
    align(net)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    kinds = {type(module).__name__ for module in net.modules()}
    assert not kinds & {"BatchNorm2d", "Dropout", "DropPath", "ChannelSelection", "DySoft"}
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_widths_are_aligned_and_what_fills_them_is_zero() -> None:
    net = fold(network())
    align(net, 16)
    for block in net.blocks():
        x = torch.randn(1, conv_of(block.primary).in_channels, 6, 6)
        primary = block.primary(x)
        parts = [(primary, block.depthwise, block.project)]
        if block.derived is not None:
            parts.append((block.derived(x, primary), block.derived_depthwise, block.derived_project))
        for channels, depthwise, project in parts:
            assert channels.shape[1] % 16 == 0
            assert channels.shape[1] == conv_of(depthwise).out_channels == project.in_channels
            read = project.weight.abs().amax((0, 2, 3)) > 0
            assert not channels[:, ~read].any()


@settings(max_examples=100, deadline=None)
@given(
    scores=st.lists(
        st.lists(
            st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-44, 1e37, -3e38, 1 + 2**-23, 0.1]), min_size=12, max_size=12
        ),
        min_size=1,
        max_size=4,
    ),
    order=st.sampled_from(["rank", "index"]),
)
def test_keys_without_ties_choose_as_a_stable_sort_does(scores: list[list[float]], order: str) -> None:
    products = fold(network(order=order)).blocks()[1].derived
    rows = torch.tensor(scores)
    assert torch.equal(products._chosen_by_key(rows), top_k_channels(rows, products.k, order))


def test_fixed_selections_gather_nothing() -> None:
    for model, gathers in ((network(), True), (fixed(network()), False)):
        program = torch.export.export(prepare(model, 16)[0], (torch.zeros(2, 3, 16, 16),))
        called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
        assert any(word in name for name in called for word in ("index", "gather", "topk", "sort")) is gathers


@pytest.mark.parametrize("size", [16, 17, 18, 19])
def test_two_convolutions_at_the_input_are_one(size: int) -> None:
    net = fold(network())
    x = torch.randn(2, 3, size, size)
    expected, layers = net(x), len(net.layers)
    assert merge(net).startswith("merge: 1 convolutions at the input and 0 cheap ones")
    assert len(net.layers) == layers - 1
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)
    assert merge(net).startswith("merge: 0")  # an activation lies between these
    padded = fold(network(stage1=ConvSpec(10, 3, 1)))
    assert merge(padded).startswith("merge: 0")


@pytest.mark.parametrize("size", [16, 17, 18, 19])
def test_cheap_convolutions_are_part_of_the_next_one_where_the_map_is_halved(size: int) -> None:
    model = network(stride=2, kernel=2)
    net = fold(model)
    x = torch.randn(2, 3, size, size)
    assert merge(net).startswith("merge: 1 convolutions at the input and 1 cheap ones")
    align(net)
    torch.testing.assert_close(net(x), model(x), rtol=1e-4, atol=1e-4)
    assert merge(net).startswith("merge: 0 convolutions at the input and 0 cheap ones")
    first = next(iter(net.blocks()))
    assert conv_of(first.derived_depthwise).kernel_size == (4, 4)
    # With padding between the two, the border is another function.
    padded = fold(network(stride=2, kernel=3))
    assert "and 0 cheap ones" in merge(padded)


@settings(max_examples=30, deadline=None)
@given(
    kernels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.integers(0, 1),
    size=st.integers(9, 14),
    widths=st.sampled_from([(1, 9, 2, 1), (3, 3, 3, 3)]),
)
def test_whatever_is_merged_is_the_same(
    kernels: tuple[int, int],
    strides: tuple[int, int],
    padding: int,
    size: int,
    widths: tuple[int, int, int, int],
) -> None:
    read, between, written, groups = widths
    first = torch.nn.Conv2d(read, between, kernels[0], strides[0], padding, groups=groups)
    second = torch.nn.Conv2d(between, written, kernels[1], strides[1], groups=groups)
    net = DeployNet(torch.nn.Sequential(first, second), torch.nn.Identity())
    x = torch.randn(1, read, size, size)
    expected = net(x)
    merge(net)
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)


def test_a_multiple_that_is_none() -> None:
    with pytest.raises(ValueError, match="positive multiple, got 0"):
        align(fold(network()), 0)


# ---------------------------------------------------------------- fixed selections


@pytest.mark.parametrize("order", ["rank", "index"])
def test_calibration_counts_what_was_selected(order: str) -> None:
    model, images = network(order=order), torch.randn(24, 3, 16, 16)
    seen: dict[str, torch.Tensor] = {}
    for name, layer in expansions(model).items():
        layer.score.register_forward_hook(lambda m, a, scores, n=name, k=layer.k: seen.update({n: scores}))
    calibration = calibrate(model, images.split(10))
    assert model.training is False
    with torch.no_grad():
        model(images)
    for name, layer in expansions(model).items():
        index = top_k_channels(seen[name], layer.k, order)
        counts = torch.bincount(index.flatten(), minlength=layer.channels)
        found = calibration[name]
        torch.testing.assert_close(found.frequency, counts.double() / 24)
        assert counts[found.index].min() >= counts.sort(descending=True)[0][layer.k - 1]
        held = torch.isin(index, found.index).double().mean()
        assert found.agreement == pytest.approx(float(held))
        assert 0 < found.entropy <= 1
        if order == "index":
            assert found.index.tolist() == sorted(found.index.tolist())
        else:
            places = found.place[found.index]
            assert bool((places[1:] >= places[:-1]).all())


def test_frozen_networks_agree_where_the_selection_never_changes() -> None:
    model, images = network(), torch.randn(1, 3, 16, 16)
    frozen = freeze(model, calibrate(model, [images]))
    with torch.no_grad():
        torch.testing.assert_close(frozen(images), model(images))
    assert all(isinstance(layer.score, ChannelScore) for layer in expansions(model).values())  # left alone


def test_frozen_networks_train_and_their_temperature_stays() -> None:
    from hadaptive.nn import update_temperatures

    frozen = fixed(network()).train()
    frozen(torch.randn(4, 3, 16, 16)).square().mean().backward()
    update_temperatures(frozen)
    assert all(p.grad is not None for p in frozen.parameters())


def test_what_cannot_be_frozen() -> None:
    model = network()
    with pytest.raises(ValueError, match="without calibration images"):
        calibrate(model, [])
    with pytest.raises(ValueError, match="of another network"):
        freeze(model, {})
    layer = next(iter(expansions(model).values()))
    for wrong in ([0, 1, 2, 3], [0, 1, 2, 3, 3], [0, 1, 2, 3, 99], [0, 1, 2, 3, 4, 4]):
        with pytest.raises(ValueError, match="expected 5 different channels"):
            layer.freeze(torch.tensor(wrong))


def test_a_deployed_network_is_one() -> None:
    assert isinstance(fold(network()), DeployNet)
