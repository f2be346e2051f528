"""Appended channels: torch.cat's values, and dense gradients, under everything that looks at operators."""

import warnings
from functools import partial
from pathlib import Path

import onnx
import pytest
import torch
from problems import LAYOUTS, arranged
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from hadaptive import ops
from hadaptive.nn import AdaptiveCrossHadamard, GhostExpansion
from hadaptive.ops.layout import channels_contiguous

# PyTorch's forward mode and scripts warn of torch.jit.script, which PyTorch itself calls.
quiet = pytest.mark.filterwarnings("ignore:.torch.jit")
SHAPES = [(2, 3, 4, 5), (3, 2), (2, 3, 7), (2, 1, 2, 3, 2), (0, 3, 4, 4), (2, 0, 3, 3), (1, 2, 1, 1)]


def parts(
    shape: tuple[int, ...] = (2, 3, 4, 5), channels: int = 4, layout: str = "contiguous", double: bool = False
) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if double else torch.float32
    sizes = shape, (shape[0], channels, *shape[2:])
    x, extra = (arranged(torch.randn(size, dtype=dtype), layout).requires_grad_() for size in sizes)
    return x, extra


def plain(x: Tensor, extra: Tensor) -> Tensor:
    return torch.cat([x, extra], dim=1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("layout_of_gradient", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_are_dense_in_each_inputs_layout(
    shape: tuple[int, ...], layout: str, layout_of_gradient: str
) -> None:
    x, extra = parts(shape, layout=layout)
    y = ops.append(x, extra)
    assert y.equal(plain(x, extra))
    grad = arranged(torch.randn(y.shape), layout_of_gradient)
    found = torch.autograd.grad(y, (x, extra), grad)
    for part, a, b in zip((x, extra), found, grad.split([x.shape[1], extra.shape[1]], dim=1), strict=True):
        assert a.equal(b)
        assert a.movedim(1, -1).is_contiguous() if channels_contiguous(part) else a.is_contiguous()


def _watch(seen: list[Tensor], module: nn.Module, arguments: tuple, output: Tensor) -> None:
    output.register_hook(seen.append)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_ghost_and_unfused_ach_hand_dense_gradients_to_their_norms(layout: str) -> None:
    for module, name in (
        (GhostExpansion(8, 4), "cheap.1"),
        (AdaptiveCrossHadamard(8, 4, norm="batchnorm", selection="sample"), "cross_hadamard.norm"),
    ):
        seen: list[Tensor] = []
        norm = module.get_submodule(name)
        norm.register_forward_hook(partial(_watch, seen))
        x = arranged(torch.randn(2, 8, 5, 5), layout)
        y = module(x)
        y.backward(torch.randn_like(y))
        assert seen
        assert all(g.is_contiguous() or channels_contiguous(g) for g in seen)


def test_only_what_needs_a_gradient_gets_one() -> None:
    x, extra = parts()
    assert torch.autograd.grad(ops.append(x, extra.detach()).sum(), x)[0].equal(torch.ones_like(x))
    assert torch.autograd.grad(ops.append(x.detach(), extra).sum(), extra)[0].equal(torch.ones_like(extra))
    with torch.no_grad():
        assert not ops.append(x, extra).requires_grad


@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16, torch.float32])
def test_dtypes_promote_as_in_torch(wide: torch.dtype, narrow: torch.dtype) -> None:
    x, extra = torch.randn(2, 3, 2, 2, dtype=wide), torch.randn(2, 4, 2, 2).to(narrow)
    for part in (x, extra):
        part.requires_grad_()
    y = ops.append(x, extra)
    assert y.dtype == plain(x, extra).dtype
    y.square().sum().backward()
    assert x.grad is not None
    assert x.grad.equal(2 * x)
    assert extra.grad is not None
    assert extra.grad.equal(2 * extra)


def test_autocast_promotes() -> None:
    x, extra = parts()
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.append(x, nn.Conv2d(4, 4, 1)(extra))
        expected = plain(x, nn.Conv2d(4, 4, 1)(extra))
    assert y.dtype == expected.dtype
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == x.dtype


def test_it_can_be_differentiated_again() -> None:
    x, extra = parts((2, 2, 2, 2), 1, double=True)
    assert torch.autograd.gradcheck(ops.append, (x, extra))
    assert torch.autograd.gradgradcheck(lambda a, b: ops.append(a * a, b * a[:, :1]).pow(3), (x, extra))


@quiet
def test_transforms() -> None:
    x, extra = (t.detach() for t in parts((2, 2, 3), 1, double=True))

    def cubes(a: Tensor, b: Tensor) -> Tensor:
        return ops.append(a, b).pow(3).sum((1, 2))

    def true(a: Tensor, b: Tensor) -> Tensor:
        return plain(a, b).pow(3).sum((1, 2))

    for transform in (torch.func.jacrev, torch.func.jacfwd, torch.func.hessian):
        for a, b in zip(transform(cubes, (0, 1))(x, extra), transform(true, (0, 1))(x, extra), strict=True):
            torch.testing.assert_close(a, b)
    stacks = torch.randn(3, 2, 2, 3), torch.randn(2, 1, 3)
    torch.testing.assert_close(torch.vmap(ops.append, (0, None))(*stacks), torch.vmap(plain, (0, None))(*stacks))
    torch.testing.assert_close(torch.func.functionalize(ops.append)(x, extra), plain(x, extra))


@quiet
def test_forward_mode_keeps_the_tangent() -> None:
    x, extra = parts()
    with forward_ad.dual_level():
        y = ops.append(forward_ad.make_dual(x, torch.ones_like(x)), extra)
        tangent = forward_ad.unpack_dual(y).tangent
    assert tangent is not None
    assert tangent.equal(plain(torch.ones_like(x), torch.zeros_like(extra)))


class _Module(nn.Module):
    def forward(self, x: Tensor, extra: Tensor) -> Tensor:
        return ops.append(x, extra) * 2


@quiet
def test_graphs_have_one_concatenation() -> None:
    x, extra = (t.detach() for t in parts())
    expected = 2 * plain(x, extra)
    traced = torch.fx.symbolic_trace(_Module())
    assert next(node.target for node in traced.graph.nodes if node.op == "call_function") is ops.append
    exported = torch.export.export(_Module(), (x, extra))
    graphs = [exported.module(), make_fx(_Module())(x, extra)]
    graphs += [torch.jit.script(_Module()), torch.jit.trace(_Module(), (x, extra))]
    for graph in [traced, *graphs]:
        assert graph(x, extra).equal(expected)
    names = [str(node.target) for node in exported.graph.nodes]
    assert sum("cat" in name for name in names) == 1


def test_onnx_has_an_ordinary_concat(tmp_path: Path) -> None:
    file = tmp_path / "append.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(_Module(), tuple(t.detach() for t in parts()), file, dynamo=False)
    kinds = {node.op_type for node in onnx.load(file).graph.node}
    assert kinds <= {"Concat", "Mul", "Constant"}
    assert "Concat" in kinds


def test_a_compiler_is_given_plain_operators() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]):
        graphs.append(graph)
        return graph.forward

    x, extra = parts()
    y = torch.compile(ops.append, backend=keep, fullgraph=True)(x, extra)
    assert [node.target for node in graphs[0].graph.nodes if node.op == "call_function"] == [torch.cat]
    assert y.equal(plain(x, extra))


def test_other_tensors_stay_what_they_are() -> None:
    x, extra = (t.detach().to("meta").requires_grad_() for t in parts())
    assert ops.append(x, extra).shape == (2, 7, 4, 5)


@pytest.mark.parametrize(
    ("first", "second"), [((2, 3, 4), (2, 3, 5)), ((2, 3, 4), (1, 3, 4)), ((2, 3), (2, 3, 1)), ((3,), (3,))]
)
def test_shapes_that_do_not_fit_are_one_sentence(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must have shapes"):
        ops.append(torch.zeros(first), torch.zeros(second))
