"""Bare products of the selected channels: kernels against the reference in float64, in every mode of PyTorch."""

import pytest
import torch
from problems import LAYOUTS, arranged, problem
from tolerances import TOLERANCES, dtype_id
from torch import Tensor

from hadaptive import ops
from hadaptive.nn import AdaptiveCrossHadamard
from hadaptive.ops import library, reference

pytestmark = pytest.mark.skipif(library._unusable("cpu") is not None, reason="Numba is not installed")


def selection(
    shape: tuple[int, ...],
    k: int,
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    gated: bool = True,
) -> tuple[Tensor, Tensor, Tensor | None]:
    x, index, gate = problem(shape, k, dtype, layout, gated)[:3]
    return x.requires_grad_(), index, gate if gate is None else gate.requires_grad_()


def wanted(x: Tensor, gate: Tensor | None) -> list[Tensor]:
    return [x] if gate is None else [x, gate]


@pytest.mark.usefixtures("nan_empty")
@pytest.mark.parametrize("dtype", library.DTYPES, ids=dtype_id)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("shape", "k", "gated"),
    [
        ((1, 2, 1, 1), 2, True),
        ((2, 9, 7, 7), 7, False),
        ((3, 17, 5, 13), 16, True),
        ((2, 33, 4, 4), 33, True),
        ((5, 13, 31), 7, True),
        ((4, 8), 3, False),
        ((0, 6, 5, 5), 3, True),
        ((2, 6, 0, 5), 3, True),
    ],
    ids=str,
)
def test_values_and_gradients(
    shape: tuple[int, ...], k: int, gated: bool, layout: str, dtype: torch.dtype
) -> None:
    x, index, gate = selection(shape, k, dtype, layout, gated)
    y = ops.selected_products(x, index, gate, backend="fused")
    exact = [t.detach().double().requires_grad_() for t in wanted(x, gate)]
    true = reference.selected_products(exact[0], index, exact[1] if gated else None)
    assert (y.dtype, y.shape) == (torch.float32, true.shape)
    torch.testing.assert_close(y.double(), true, **TOLERANCES[torch.float32])
    grad = arranged(torch.randn(y.shape), layout)
    found = torch.autograd.grad(y, wanted(x, gate), grad)
    for mine, plain in zip(found, torch.autograd.grad(true, exact, grad.double()), strict=True):
        room = max(1.0, float(plain.abs().max())) if plain.numel() else 1.0
        torch.testing.assert_close(mine.double() / room, plain / room, **TOLERANCES[mine.dtype])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # opcheck's own
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck(layout: str, gated: bool) -> None:
    x, index, gate = selection((2, 6, 3, 5), 4, torch.float32, layout, gated)
    torch.library.opcheck(torch.ops.hadaptive.selected_products.default, (x, index, gate))
    grad = torch.randn(2, 6, 3, 5, requires_grad=True)
    torch.library.opcheck(torch.ops.hadaptive.selected_products_backward.default, (grad, x, index, gate))


def test_the_plain_backward_pass_is_the_plain_gradient() -> None:
    x, index, gate = (
        t if t is None or not t.is_floating_point() else t.detach().double().requires_grad_()
        for t in selection((2, 7, 3, 3), 4)
    )
    y = reference.selected_products(x, index, gate)
    grad = torch.randn_like(y)
    found = reference.selected_products_backward(grad, x, index, gate)
    for mine, true in zip(found, torch.autograd.grad(y, (x, gate), grad), strict=True):
        torch.testing.assert_close(mine, true)


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_second_derivatives_with_a_gate_that_depends_on_the_map(layout: str, gated: bool) -> None:
    seconds = []
    for dtype, backend in ((torch.float32, "fused"), (torch.float64, "reference")):
        torch.manual_seed(0)
        x, index, _ = selection((2, 5, 3, 2), 3, torch.float32, layout)
        x = x.detach().to(dtype).requires_grad_()
        gate = x.mean((2, 3)).gather(1, index).sigmoid() if gated else None
        y = ops.selected_products(x, index, gate, backend=backend)
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        seconds.append(torch.autograd.grad(first.square().sum(), x)[0].double())
    torch.testing.assert_close(seconds[0], seconds[1], rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # forward-mode's own tables of derivatives
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_vmap_and_jacobians() -> None:
    x, index, gate = (t.detach() for t in selection((2, 5, 3, 2), 3))
    many = torch.stack([x, 2 * x])
    each = torch.stack([ops.selected_products(one, index, gate) for one in many])
    torch.testing.assert_close(torch.vmap(ops.selected_products, (0, None, None))(many, index, gate), each)
    raw = torch.ops.hadaptive.selected_products
    torch.testing.assert_close(torch.vmap(raw, (0, None, None))(many, index, gate), each)
    backward, forward = (
        jacobian(lambda x: ops.selected_products(x, index, gate))(x)
        for jacobian in (torch.func.jacrev, torch.func.jacfwd)
    )
    torch.testing.assert_close(backward, forward)


def test_results_do_not_depend_on_the_threads() -> None:
    threads, results = torch.get_num_threads(), []
    try:
        for layout in ("contiguous", "channels_last"):
            x, index, gate = selection((5, 40, 14, 14), 24, torch.float32, layout)
            grad = arranged(torch.randn(5, 276, 14, 14), layout)
            for count in (1, 3):
                torch.set_num_threads(count)
                y = ops.selected_products(x, index, gate)
                results.append([y, *torch.autograd.grad(y, (x, gate), grad)])
    finally:
        torch.set_num_threads(threads)
    for one, three in (results[:2], results[2:]):
        assert all(map(torch.equal, one, three))


def test_an_expansion_with_another_norm_saves_no_factors() -> None:
    module = AdaptiveCrossHadamard(32, 16, norm="batchnorm", selection="sample")
    saved: list[int] = []
    x = torch.randn(4, 32, 7, 7)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        module(x)
    assert sum(size == 4 * 120 * 49 for size in saved) == 1  # BatchNorm's input


@pytest.mark.parametrize("bad", [-1, 6])
def test_index_out_of_range_is_refused(bad: int) -> None:
    x, index, gate = selection((1, 6, 4, 4), 4)
    index[0, 0] = bad
    with pytest.raises(IndexError, match="outside 0 to 5"):
        ops.selected_products(x, index, gate)
