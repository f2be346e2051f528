"""Whole blocks of channels multiplied with each other: operators, modules, networks, and what is exported."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import close
from problems import LAYOUTS, arranged, leaves, problem
from test_export import card_of, deployed
from tolerances import TOLERANCES, dtype_id
from torch import Tensor

from hadaptive import ops
from hadaptive.errors import UserError
from hadaptive.measure.deploy import fold
from hadaptive.measure.formats import SUFFIXES
from hadaptive.measure.lowering import write
from hadaptive.measure.sessions import load
from hadaptive.models import ConvSpec, HadaptiveNet, NetSpec
from hadaptive.models.layer_spec import BlockSpec, ach
from hadaptive.models.published import HADAPTIVE_NET_S
from hadaptive.nn import NORMS, AdaptiveCrossHadamard, CrossHadamardExpansion, CrossHadamardMlp
from hadaptive.ops import library, reference

# Libraries' own, while they export.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
needs_numba = pytest.mark.skipif(library._unusable("cpu") is not None, reason="Numba is not installed")


def by_hand(z: Tensor, block: int) -> Tensor:
    """Products of the blocks of z (B, k, S...), one slice after the other."""
    parts = z.split(block, 1)
    return torch.cat([parts[i] * parts[j] for i in range(len(parts)) for j in range(i + 1, len(parts))], 1)


@given(st.integers(2, 6), st.integers(1, 5))
def test_pairs_are_those_of_slices(groups: int, block: int) -> None:
    k = groups * block
    z = torch.randn(2, k, 3)
    assert torch.equal(reference.pair_products(z, block), by_hand(z, block))
    assert ops.num_pairs(k, block) == ops.pair_indices(k, block=block).shape[1] == by_hand(z, block).shape[1]
    first, second = ops.pair_indices(k, block=block)
    assert torch.equal(z[:, first] * z[:, second], by_hand(z, block))


@needs_numba
@pytest.mark.usefixtures("nan_empty")
@pytest.mark.parametrize("dtype", library.DTYPES, ids=dtype_id)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("shape", "k", "block", "gated"),
    [
        ((1, 4, 1, 1), 4, 2, True),
        ((2, 9, 7, 7), 9, 3, False),
        ((3, 34, 5, 13), 32, 8, True),
        ((5, 13, 31), 12, 4, False),
        ((4, 8), 6, 3, True),
        ((0, 6, 5, 5), 6, 2, True),
    ],
    ids=str,
)
def test_kernels_agree_with_plain_pytorch(
    shape: tuple[int, ...], k: int, block: int, gated: bool, layout: str, dtype: torch.dtype
) -> None:
    arguments = problem(shape, k, dtype, layout, gated, block=block)
    for operator, count in ((ops.cross_hadamard_expand, 6), (ops.selected_products, 3)):
        mine, exact = leaves(arguments[:count]), leaves(arguments[:count], torch.float64)
        y, true = operator(*mine, block, backend="fused"), operator(*exact, block, backend="reference")
        torch.testing.assert_close(y.double(), true, **TOLERANCES[y.dtype])
        grad = arranged(torch.randn(y.shape), layout).to(y.dtype)
        wanted, truths = ([a for a in part if a is not None and a.requires_grad] for part in (mine, exact))
        found = torch.autograd.grad(y, wanted, grad)
        for one, plain in zip(found, torch.autograd.grad(true, truths, grad.double()), strict=True):
            room = max(1.0, float(plain.abs().max())) if plain.numel() else 1.0
            torch.testing.assert_close(one.double() / room, plain / room, **TOLERANCES[dtype])


@needs_numba
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # opcheck's own
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
def test_opcheck(gated: bool) -> None:
    arguments = leaves(problem((2, 7, 3, 5), 6, torch.float32, "channels_last", gated, block=3))
    x, index, gate, *affine = arguments
    torch.library.opcheck(torch.ops.hadaptive.cross_hadamard_expand.default, (*arguments, 3))
    torch.library.opcheck(torch.ops.hadaptive.selected_products.default, (x, index, gate, 3))
    grad = torch.randn(2, 10, 3, 5, requires_grad=True)
    backward = torch.ops.hadaptive.cross_hadamard_expand_backward.default
    torch.library.opcheck(backward, (grad, x, index, gate, *affine[:2], 3))
    products = torch.ops.hadaptive.selected_products_backward.default
    torch.library.opcheck(products, (grad[:, 7:].detach().requires_grad_(), x, index, gate, 3))


def test_gradients_twice() -> None:
    arguments = leaves(problem((2, 7, 3), 6, torch.float32, block=2), torch.float64)

    def function(*tensors: Tensor) -> Tensor:
        return ops.cross_hadamard_expand(tensors[0], arguments[1], *tensors[1:], 2)

    given = tuple(a for n, a in enumerate(arguments) if n != 1)
    torch.autograd.gradcheck(function, given)
    torch.autograd.gradgradcheck(function, given)


@needs_numba
def test_vmap_and_create_graph_take_the_block_along() -> None:
    arguments = problem((2, 6, 4, 4), 6, torch.float32, block=3)
    x, *rest = arguments
    many = torch.stack([x, 2 * x])
    expected = torch.stack([ops.cross_hadamard_expand(one, *rest, 3) for one in many])
    close(torch.vmap(lambda one: ops.cross_hadamard_expand(one, *rest, 3))(many), expected)
    found = []
    for name in ("fused", "reference"):
        leaf = x.clone().requires_grad_()
        y = ops.cross_hadamard_expand(leaf, *rest, 3, backend=name)
        (grad,) = torch.autograd.grad(y.square().sum(), leaf, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), leaf)[0])
    close(*found)


@pytest.mark.parametrize(
    ("k", "block", "message"),
    [
        (6, 4, "k = 6 selected channels are not two or more whole blocks of 4"),
        (6, 6, "are not two or more whole blocks of 6"),
        (6, 0, "block must be a positive whole number, got 0"),
        (6, True, "block must be a positive whole number, got True"),
        (6, 1.5, "block must be a positive whole number, got 1.5"),
    ],
)
def test_blocks_that_there_cannot_be(k: int, block: int, message: str) -> None:
    x, index, gate, alpha, weight, bias = problem((2, 6, 3, 3), k, torch.float32)
    for call in (
        lambda: ops.selected_products(x, index, gate, block),
        lambda: ops.cross_hadamard_expand(x, index, gate, alpha, weight, bias, block),
    ):
        with pytest.raises(ValueError, match=message):
            call()


# ---------------------------------------------------------------- modules and networks


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("channels", "groups"), [(8, 2), (13, 3), (16, 4)])
def test_a_module_multiplies_its_first_blocks(channels: int, groups: int, norm: str) -> None:
    torch.manual_seed(0)
    module = CrossHadamardExpansion(channels, groups, norm, pairing="blocks").eval()
    block = channels // groups
    x = torch.randn(3, channels, 4, 5)
    expected = torch.cat([x, module.norm(by_hand(x[:, : groups * block], block))], 1)
    close(module(x), expected)
    assert module.out_channels == expected.shape[1]
    assert not [name for name in module.state_dict() if name.startswith(("score", "select"))]


def test_everything_that_has_a_pairing() -> None:
    for module, x in (
        (AdaptiveCrossHadamard(9, 3, pairing="blocks"), torch.randn(2, 9, 4, 4)),
        (CrossHadamardMlp(9, k=3, pairing="blocks"), torch.randn(2, 5, 9)),
    ):
        module(x).square().sum().backward()
        assert all(p.grad is not None for p in module.parameters())
        module.eval()
        close(torch.jit.script(module)(x), module(x))
        close(torch.compile(module, fullgraph=True, backend="eager")(x), module(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairing": "rings"}, "pairing must be one of triangle, blocks; got 'rings'"),
        ({"pairing": "blocks", "selection": "sample"}, "whole blocks are always the first: leave selection out"),
        ({"pairing": "blocks", "noise": 0.0}, "noise and temperature have no effect"),
    ],
    ids=str,
)
def test_pairings_that_there_cannot_be(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaptiveCrossHadamard(8, 3, **options)


def network(norm: str = "dysoft") -> NetSpec:
    blocks = (ach(3, 3, 24, norm=norm, pairing="blocks"), ach(4, 3, 24, pairing="blocks"), ach(5, 3, 24))
    stem = (ConvSpec(12, 3, 1), (ConvSpec(24, 2, 2),))
    return NetSpec("blocks", *stem, (blocks,), 16, 16)


def test_a_network_of_both_pairings_is_data() -> None:
    spec = network()
    assert NetSpec.from_dict(spec.to_dict()) == spec
    assert "pairing" not in str(HADAPTIVE_NET_S.to_dict())
    with pytest.raises(UserError, match="pairing is for ach blocks"):
        BlockSpec("ghost", 8, 3, ratio=2.0, pairing="blocks")


@pytest.mark.parametrize("norm", ["dysoft", "batchnorm", "dyt"])
def test_what_is_deployed_computes_the_same(norm: str) -> None:
    torch.manual_seed(0)
    net = HadaptiveNet(network(norm), 4).eval()
    x = torch.randn(3, 3, 16, 16)
    close(fold(net)(x), net(x))


@pytest.mark.parametrize("name", ["onnx", "openvino", "executorch", "ncnn", "torch"])
def test_blocks_run_everywhere(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = NetSpec("b", ConvSpec(24, 2, 2), (), (network().stages[0][:2],), 16, 16)
    net, path = HadaptiveNet(spec, 4).eval(), tmp_path / f"blocks{SUFFIXES[name]}"
    write(deployed(net), path, name, card_of(net), {})
    images = torch.randn(5, 3, 16, 16)
    run, _ = load(path, trust=True)
    with torch.no_grad():
        np.testing.assert_allclose(run(images.numpy()), net(images).numpy(), rtol=1e-3, atol=1e-4)
    if name == "onnx":
        kinds = {node.op_type for node in onnx.load(path).graph.node}
        assert not {"TopK", "Gather", "GatherElements", "GatherND", "ScatterElements"} & kinds
