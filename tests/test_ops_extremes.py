"""The operators at the ends of what dtypes hold: finite where the inputs are, NaN where one is."""

import pytest
import torch
from tolerances import assert_close
from torch import Tensor
from transcription import array, differentiable, every_dtype, every_operator, numpy_products

from hadaptive import ops

pytestmark = pytest.mark.usefixtures("nan_empty")


SIGNS = {"same": [1.0] * 4, "alternating": [1.0, -1.0, 1.0, -1.0], "one-huge": [1.0, 0, 0, 0]}


def extreme_map(dtype: torch.dtype, signs: str) -> Tensor:
    """(2, 4, 3): channels at the largest finite value, the rest at 0.5."""
    column = torch.tensor(SIGNS[signs], dtype=torch.float64) * torch.finfo(dtype).max
    return torch.where(column == 0, 0.5, column).to(dtype).view(1, 4, 1).repeat(2, 1, 3)


@every_dtype
@pytest.mark.parametrize("scale", [0.0, 0.5, 1e6], ids=lambda a: f"alpha={a:g}")
@pytest.mark.parametrize("signs", SIGNS)
def test_expand_is_finite_for_every_finite_input(signs: str, scale: float, dtype: torch.dtype) -> None:
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    parameters = torch.tensor([scale]), torch.ones(6), torch.zeros(6), torch.ones(2, 4)
    x, alpha, weight, bias, gate = differentiable(extreme_map(dtype, signs), *(p.to(compute) for p in parameters))
    y = ops.cross_hadamard_expand(x, torch.arange(4).expand(2, 4), gate, alpha, weight, bias)
    assert y.isfinite().all()
    if scale and signs != "one-huge":
        assert_close(y[:, 4:], numpy_products(array(x.sign())))
    # Where alpha is 0 its true gradient, a product of huge values, is out of range.
    if scale:
        for gradient in torch.autograd.grad(y, (x, alpha, weight, bias, gate), torch.ones_like(y)):
            assert gradient.isfinite().all()


@every_dtype
@pytest.mark.parametrize("scale", [0.0, 0.5, 1e30], ids=lambda a: f"alpha={a:g}")
def test_dysoft_is_finite_for_every_finite_input(scale: float, dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    x = torch.tensor([[largest, -largest, 1.0]], dtype=dtype)
    x, alpha, weight, bias = differentiable(x, torch.tensor([scale]), torch.ones(3), torch.zeros(3))
    y = ops.dysoft(x, alpha, weight, bias)
    assert y.isfinite().all()
    if scale:
        assert_close(y[0, :2], [1.0, -1.0])
        for gradient in torch.autograd.grad(y, (x, alpha, weight, bias), torch.ones_like(y)):
            assert gradient.isfinite().all()


@every_operator
@every_dtype
def test_nan_propagates(operator, dtype: torch.dtype) -> None:
    x = torch.ones(2, 3, 4, dtype=dtype)
    x[1, 2, 3] = float("nan")
    y = operator(x)
    assert y[1, :, 3].isnan().any()
    assert y[0].isfinite().all()
    assert y[1, :, :3].isfinite().all()


def test_products_of_half_maps_do_not_pass_through_half() -> None:
    # 300 * 300 and 0.001 * 0.001 are outside float16's range; the fused operator must still see them.
    x = torch.tensor([[300.0, 300.0, 1e-4, 1e-4]], dtype=torch.float16)
    index = torch.arange(4).unsqueeze(0)
    y = ops.cross_hadamard_expand(x, index, None, torch.tensor([1e-5]), torch.ones(6), torch.zeros(6))
    assert_close(y[0, 4], 0.9 / 1.9)
    y = ops.cross_hadamard_expand(x, index, None, torch.tensor([1e8]), torch.ones(6), torch.zeros(6))
    assert_close(y[0, 9], 0.5, torch.float16)
