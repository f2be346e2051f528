"""DySoft and its rivals against their formulas in float64."""

import copy

import numpy as np
import pytest
import torch
from tolerances import DTYPES, assert_close, dtype_id
from torch import nn

from hadaptive.nn import NORMS, AdaptiveCrossHadamard, BatchNorm, create_norm

FORMULAS = {
    "dysoft": lambda u: u / (1 + np.abs(u)),
    "dysig": lambda u: 1 / (1 + np.exp(-u)) - 0.5,
    "dyalge": lambda u: u / np.sqrt(1 + u**2),
    "dyt": np.tanh,
}
ALPHA_AND_WEIGHT = {"dysoft": (0.5, 1.0), "dysig": (0.35, 2.0), "dyalge": (0.5, 1.0), "dyt": (0.5, 1.0)}

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
every_norm = pytest.mark.parametrize("name", NORMS)
every_space = pytest.mark.parametrize("spatial", [(), (7,), (3, 5), (2, 3, 2)], ids=lambda s: f"{len(s)}d")


def column(parameter: torch.Tensor, like: np.ndarray) -> np.ndarray:
    return parameter.detach().numpy().reshape(-1, *[1] * (like.ndim - 2))


def randomised(name: str, channels: int) -> nn.Module:
    """A norm in float64 whose parameters are not the initial ones."""
    norm = create_norm(name, channels).double()
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.3, 1.7)
    return norm


@every_space
@pytest.mark.parametrize("name", FORMULAS)
def test_dynamic_norms_equal_their_formulas(name: str, spatial: tuple[int, ...]) -> None:
    norm, x = randomised(name, 5), 3 * torch.randn(2, 5, *spatial, dtype=torch.float64)
    u = norm.alpha.item() * x.numpy()
    weight, bias = column(norm.weight, u), column(norm.bias, u)
    assert_close(norm(x), weight * FORMULAS[name](u) + bias)


@every_space
def test_rmsnorm_equals_its_formula(spatial: tuple[int, ...]) -> None:
    norm, x = randomised("rmsnorm", 5), torch.randn(2, 5, *spatial, dtype=torch.float64)
    u = x.numpy()
    expected = u / np.sqrt((u**2).mean(1, keepdims=True) + 1e-6) * column(norm.weight, u)
    assert_close(norm(x), expected)


@every_space
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_batchnorm_equals_its_formula(training: bool, spatial: tuple[int, ...]) -> None:
    norm, x = randomised("batchnorm", 5).train(training), torch.randn(4, 5, *spatial, dtype=torch.float64)
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    axes = (0, *range(2, x.dim()))
    u, old_mean, old_var = x.numpy(), norm.running_mean.numpy().copy(), norm.running_var.numpy().copy()
    mean, var = (u.mean(axes), u.var(axes)) if training else (old_mean, old_var)
    mean_column, var_column = column(torch.tensor(mean), u), column(torch.tensor(var), u)
    expected = (u - mean_column) / np.sqrt(var_column + 1e-5) * column(norm.weight, u) + column(norm.bias, u)
    assert_close(norm(x), expected)
    if training:
        assert_close(norm.running_mean, 0.9 * old_mean + 0.1 * mean)
        assert_close(norm.running_var, 0.9 * old_var + 0.1 * u.var(axes, ddof=1))


def test_identity_is_the_identity() -> None:
    x = torch.randn(2, 5, 3)
    assert create_norm("identity", 5)(x) is x


@pytest.mark.parametrize("name", FORMULAS)
def test_dynamic_norms_start_as_in_the_paper(name: str) -> None:
    alpha, weight = ALPHA_AND_WEIGHT[name]
    state = create_norm(name, 5).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        "alpha": (1,),
        "weight": (5,),
        "bias": (5,),
    }
    assert torch.equal(state["alpha"], torch.tensor([alpha]))
    assert torch.equal(state["weight"], torch.full((5,), weight))
    assert torch.equal(state["bias"], torch.zeros(5))


def test_rmsnorm_starts_with_ones() -> None:
    state = create_norm("rmsnorm", 5).state_dict()
    assert list(state) == ["weight"]
    assert torch.equal(state["weight"], torch.ones(5))


@pytest.mark.parametrize("name", [*FORMULAS, "rmsnorm"])
def test_gradients(name: str) -> None:
    norm, x = randomised(name, 3), torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*norm.named_parameters(), strict=True)

    def function(x, *parameters):
        return torch.func.functional_call(norm, dict(zip(names, parameters, strict=True)), x)

    assert torch.autograd.gradcheck(function, (x, *parameters))


@every_dtype
@every_norm
def test_dtype_is_kept_and_arithmetic_is_wide(name: str, dtype: torch.dtype) -> None:
    norm, x = create_norm(name, 5), (20 * torch.randn(4, 5, 3)).to(dtype)
    if dtype == torch.float64:
        norm = norm.double()
    y = norm(x)
    assert y.dtype == dtype
    assert_close(y, create_norm(name, 5).double()(x.double()), dtype)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=dtype_id)
@every_norm
def test_wide_products_meet_a_converted_norm(name: str, dtype: torch.dtype, training: bool) -> None:
    # In a half-precision model the products arrive in float32 while the norm's own parameters are half.
    norm, x = create_norm(name, 5).to(dtype).train(training), torch.randn(4, 5, 3)
    y = norm(x)
    assert y.dtype == torch.float32
    assert_close(y, create_norm(name, 5).train(training)(x), dtype)
    if name == "batchnorm" and training:
        assert_close(norm.running_mean, 0.1 * x.mean((0, 2)), dtype)
        assert norm.running_mean.dtype == dtype
        assert int(norm.num_batches_tracked) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=dtype_id)
@pytest.mark.parametrize("name", [*FORMULAS, "rmsnorm"])
def test_huge_inputs_stay_finite(name: str, dtype: torch.dtype) -> None:
    norm, largest = create_norm(name, 3), torch.finfo(dtype).max
    x = torch.tensor([[largest], [-largest], [largest]], dtype=dtype).expand(2, 3, 4).requires_grad_()
    y = norm(x)
    assert_close(y, x.sign())
    for gradient in torch.autograd.grad(y, (x, *norm.parameters()), torch.ones_like(y)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", [*FORMULAS, "rmsnorm"])
def test_products_that_overflow_stay_finite(name: str) -> None:
    # Maps of 1e20 have products of 1e40: inf in float32.
    ach = AdaptiveCrossHadamard(4, 3, norm=name, selection="sample")
    expansion, x = ach.cross_hadamard, torch.full((2, 4, 3), 1e20, requires_grad=True)
    with torch.no_grad():
        expansion.score.conv.weight.mul_(1e-20)
    y = expansion(x)
    assert_close(y[:, 4:], np.ones((2, 3, 3)))
    for gradient in torch.autograd.grad(y, (x, *expansion.parameters()), torch.ones_like(y)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", [*FORMULAS, "rmsnorm"])
def test_nan_propagates(name: str) -> None:
    x = torch.ones(2, 3, 4)
    x[1, 2, 3] = float("nan")
    y = create_norm(name, 3)(x)
    assert y[1, 2, 3].isnan()
    assert y[0].isfinite().all()


def test_unknown_norm_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"norm must be one of dysoft, .*; got 'layernorm'"):
        create_norm("layernorm", 3)


def test_batchnorm_rejects_input_without_channels() -> None:
    with pytest.raises(ValueError, match=r"expected \(B, C, S...\), got 1 dims"):
        create_norm("batchnorm", 3)(torch.ones(3))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::FutureWarning:torch")
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None])
@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (4, 3, 5, 5), (2, 3, 2, 3, 4)], ids=str)
def test_batchnorm_keeps_the_contract_of_its_name(affine, track, momentum, shape):
    """Outputs, gradients and state are PyTorch's, in training and after, whatever its options."""
    original = nn.BatchNorm1d if len(shape) < 4 else {4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)]
    options = {"affine": affine, "track_running_stats": track, "momentum": momentum, "eps": 1e-3}
    ours, theirs = BatchNorm(3, **options), original(3, **options)
    for step, training in enumerate((True, True, False, True, False)):
        x = torch.randn(shape) * 2 + step
        outcome = []
        for norm in (ours.train(training), theirs.train(training)):
            u = x.clone().requires_grad_()
            y = norm(u)
            y.square().sum().backward()
            outcome.append([y, u.grad, *[p.grad for p in norm.parameters()]])
        for mine, other in zip(*outcome, strict=True):
            torch.testing.assert_close(mine, other)
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        for key, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[key], value, msg=key)
    scripted = torch.jit.script(ours)
    torch.testing.assert_close(scripted(x), theirs(x))


def test_batchnorm_takes_attributes_set_later():
    """As a search does, to take the statistics of one network anew."""
    ours, theirs, x = BatchNorm(3), nn.BatchNorm2d(3), torch.randn(4, 3, 5, 5)
    for norm in (ours, theirs):
        norm.momentum = None
        norm.reset_running_stats()
        norm(x), norm(2 * x)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    for norm in (ours, theirs):
        norm.eval()
        norm.running_mean = norm.running_var = None
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(copy.deepcopy(ours)(x), theirs(x))
