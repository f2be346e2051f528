"""ACH for maps: equality with the method, gradients, shapes, errors."""

import copy
import warnings

import numpy as np
import pytest
import torch
from networks import randomise, seeded
from tolerances import DTYPES, assert_close, dtype_id
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hadaptive.nn import (
    NORMS,
    AdaptiveCrossHadamard,
    CrossHadamardExpansion,
    CrossHadamardMlp,
    expansions,
    gumbel_noise,
)

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
every_norm = pytest.mark.parametrize("norm", NORMS)
every_order = pytest.mark.parametrize("order", ["rank", "index"])
both_modes = pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])


def numpy_ach(ach: AdaptiveCrossHadamard, x: Tensor, noise: np.ndarray | None = None) -> np.ndarray:
    """The table of method.md, section 1, for (B, C, H, W); training mode where there is noise."""
    w = {name: tensor.detach().double().numpy() for name, tensor in ach.state_dict().items()}
    k, select = ach.cross_hadamard.k, ach.cross_hadamard.select
    x = np.einsum("oi,bihw->bohw", w["mix.weight"][:, :, 0, 0], x.detach().double().numpy())
    mean, var = (
        (w["bn.running_mean"], w["bn.running_var"]) if noise is None else (x.mean((0, 2, 3)), x.var((0, 2, 3)))
    )
    scale = w["bn.weight"] / np.sqrt(var + 1e-5)
    x = (x - mean[:, None, None]) * scale[:, None, None] + w["bn.bias"][:, None, None]
    pooled = np.pad(x.mean((2, 3)), ((0, 0), (2, 2)))
    score = sum(w["cross_hadamard.score.conv.weight"][0, 0, t] * pooled[:, t : t + x.shape[1]] for t in range(5))
    top = np.argsort(-(score if noise is None else score + noise), axis=1, kind="stable")[:, :k]
    top = np.sort(top, axis=1) if select.order == "index" else top
    z = np.take_along_axis(x, top[:, :, None, None], axis=1)
    q = np.stack([z[:, i] * z[:, j] for i in range(k) for j in range(i + 1, k)], axis=1)
    u = w["cross_hadamard.norm.alpha"] * q
    affine = [w[f"cross_hadamard.norm.{name}"][:, None, None] for name in ("weight", "bias")]
    return np.concatenate([x, affine[0] * u / (1 + np.abs(u)) + affine[1]], axis=1)


# AdaptiveCrossHadamard: values


@every_order
@pytest.mark.parametrize(("channels", "k"), [(2, 2), (5, 3), (7, 7), (33, 16)], ids=lambda v: str(v))
def test_ach_in_eval_equals_the_transcription(channels: int, k: int, order: str) -> None:
    ach = randomise(AdaptiveCrossHadamard(channels, k, order=order, selection="sample")).double().eval()
    x = torch.randn(3, channels, 3, 5, dtype=torch.float64)
    y = ach(x)
    assert y.shape == (3, ach.out_channels, 3, 5)
    assert ach.out_channels == channels + k * (k - 1) // 2
    assert_close(y, numpy_ach(ach, x))
    assert torch.equal(ach(x), y)


@every_order
def test_ach_in_training_equals_the_transcription(order: str) -> None:
    ach = randomise(AdaptiveCrossHadamard(7, 4, order=order, selection="sample")).double()
    x = torch.randn(3, 7, 3, 5, dtype=torch.float64)
    expected = numpy_ach(ach, x, noise=gumbel_noise(x[:, :, 0, 0], seeded(5)).double().numpy())
    assert_close(ach(x, seeded(5)), expected)


def test_ach_selects_for_each_sample_alone() -> None:
    ach = randomise(AdaptiveCrossHadamard(9, 4, selection="sample")).double().eval()
    x = torch.randn(4, 9, 3, 3, dtype=torch.float64)
    assert_close(ach(x), torch.cat([ach(sample) for sample in x.split(1)]))
    index, _ = ach.cross_hadamard.select(ach.cross_hadamard.score(ach.bn(ach.mix(x))))
    assert len({tuple(row) for row in index.tolist()}) > 1  # or the equality above would show nothing


@every_norm
@both_modes
def test_ach_with_every_norm(norm: str, training: bool) -> None:
    ach = randomise(AdaptiveCrossHadamard(6, 4, norm=norm, selection="sample")).double().train(training)
    x, mode = torch.randn(3, 6, 2, 3, dtype=torch.float64), copy.deepcopy(ach.cross_hadamard.norm)
    y = ach(x, seeded())
    mixed = y[:, :6]
    index, _ = ach.cross_hadamard.select(ach.cross_hadamard.score(mixed), seeded())
    z = torch.stack([sample[row] for sample, row in zip(mixed, index, strict=True)])
    i, j = torch.triu_indices(4, 4, 1)
    assert_close(y[:, 6:], mode(z[:, i] * z[:, j]))


@both_modes
@pytest.mark.parametrize("spatial", [(), (12,), (2, 3, 2)], ids=["0d", "1d", "3d"])
def test_ach_treats_all_spatial_dims_as_one(spatial: tuple[int, ...], training: bool) -> None:
    ach = randomise(AdaptiveCrossHadamard(5, 3, selection="sample")).double().train(training)
    x = torch.randn(4, 5, *spatial, dtype=torch.float64)
    flat = x.reshape(4, 5, -1, 1)
    assert_close(ach(x, seeded()), ach(flat, seeded()).reshape(4, 8, *spatial))


def test_ach_of_an_empty_batch() -> None:
    assert AdaptiveCrossHadamard(5, 3, selection="sample").eval()(torch.randn(0, 5, 4, 4)).shape == (0, 8, 4, 4)


@both_modes
@every_norm
@every_dtype
def test_ach_keeps_the_dtype(dtype: torch.dtype, norm: str, training: bool) -> None:
    ach = AdaptiveCrossHadamard(5, 3, norm=norm, selection="sample").to(dtype).train(training)
    x = torch.randn(4, 5, 3, 3, dtype=dtype, requires_grad=True)
    y = ach(x)
    y.float().square().mean().backward()
    assert y.dtype == dtype
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=dtype_id)
def test_ach_tracks_float64(dtype: torch.dtype) -> None:
    ach = AdaptiveCrossHadamard(8, 4, order="index", selection="sample").eval()
    with torch.no_grad():  # scores far apart, so that rounding cannot change who is selected
        ach.mix.weight.copy_(torch.eye(8).view(8, 8, 1, 1))
    x = torch.arange(8).view(1, 8, 1, 1) / 4 + 0.1 * torch.rand(2, 8, 3, 3)
    x = x.to(dtype)
    assert_close(ach.to(dtype)(x), numpy_ach(ach, x), dtype)


def test_ach_under_autocast() -> None:
    ach, x = AdaptiveCrossHadamard(5, 3, selection="sample"), torch.randn(4, 5, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        y = ach(x, seeded())
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ach.parameters())


def test_ach_keeps_channels_last() -> None:
    ach = AdaptiveCrossHadamard(5, 3, selection="sample").eval().to(memory_format=torch.channels_last)
    x = torch.randn(2, 5, 3, 4)
    y = ach(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_close(y, ach(x))


# AdaptiveCrossHadamard: gradients


@every_norm
@pytest.mark.parametrize("surrogate", ["softmax", "softmax_k"])
def test_every_parameter_learns(norm: str, surrogate: str) -> None:
    ach = AdaptiveCrossHadamard(6, 4, norm=norm, surrogate=surrogate, selection="sample")
    x = torch.randn(4, 6, 3, 3, requires_grad=True)
    (ach(x, seeded()) * torch.randn(4, ach.out_channels, 3, 3)).sum().backward()
    for name, tensor in (("x", x), *ach.named_parameters()):
        assert tensor.grad is not None, name
        assert tensor.grad.isfinite().all(), name
        assert tensor.grad.abs().max() > 0, name


def differentiable_call(module: nn.Module, x: Tensor) -> tuple:
    """A function of (x, parameters...) for gradcheck, its arguments, and the parameters' names."""
    names, parameters = zip(*module.named_parameters(), strict=True)

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), x)

    return function, (x.detach().requires_grad_(), *parameters), names


def test_ach_in_eval_passes_gradcheck() -> None:
    ach = randomise(AdaptiveCrossHadamard(4, 3, selection="sample")).double().eval()
    x = torch.randn(2, 4, 2, 2, dtype=torch.float64)
    scores = ach.cross_hadamard.score(ach.bn(ach.mix(x))).sort(dim=1)[0]
    assert scores.diff(dim=1).min() > 1e-3  # no tie within gradcheck's step
    function, inputs, _ = differentiable_call(ach, x)
    assert torch.autograd.gradcheck(function, inputs)


class SurrogateSelection(nn.Module):
    """What the straight-through gate stands for, as a true function in float64: 1 + soft(scores) - soft at x0."""

    def __init__(self, scores: Tensor, noise: Tensor, k: int, scale: float) -> None:
        super().__init__()
        self.noise, self.scale = noise.double(), scale
        self.index = (scores + self.noise).topk(k, dim=1)[1]
        self.offset = self.soft(scores).detach()

    def soft(self, scores: Tensor) -> Tensor:
        return self.scale * torch.softmax((scores + self.noise) / 4.0, dim=1).gather(1, self.index)

    def forward(self, scores: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        return self.index, 1 + self.soft(scores) - self.offset


@pytest.mark.parametrize("surrogate", ["softmax", "softmax_k"])
def test_ach_in_training_has_the_surrogates_gradient(surrogate: str) -> None:
    ach = randomise(AdaptiveCrossHadamard(4, 3, surrogate=surrogate, selection="sample")).double()
    ach.bn.track_running_stats = False  # gradcheck calls many times: no state may move
    x = torch.randn(3, 4, 2, 2, dtype=torch.float64)
    scores = ach.cross_hadamard.score(ach.bn(ach.mix(x)))
    smooth = copy.deepcopy(ach)
    smooth.cross_hadamard.select = SurrogateSelection(
        scores, gumbel_noise(scores, seeded(2)), k=3, scale=3.0 if surrogate == "softmax_k" else 1.0
    )
    function, inputs, names = differentiable_call(smooth, x)
    assert torch.autograd.gradcheck(function, inputs)

    weights = torch.linspace(-1, 1, 3 * 7 * 4, dtype=torch.float64).view(3, 7, 2, 2)
    expected = torch.autograd.grad((function(*inputs) * weights).sum(), inputs)
    x = x.requires_grad_()
    actual = torch.autograd.grad((ach(x, seeded(2)) * weights).sum(), (x, *ach.parameters()))
    for name, a, e in zip(("x", *names), actual, expected, strict=True):
        assert e.abs().max() > 1e-3, name
        assert_close(a, e, torch.float32)  # the gate is float32


# AdaptiveCrossHadamard: state and construction


def test_ach_starts_as_in_the_paper() -> None:
    ach = AdaptiveCrossHadamard(6, 4, selection="sample")
    shapes = {name: tuple(p.shape) for name, p in ach.named_parameters()}
    assert shapes == {
        "mix.weight": (6, 6, 1, 1),
        "bn.weight": (6,),
        "bn.bias": (6,),
        "cross_hadamard.score.conv.weight": (1, 1, 5),
        "cross_hadamard.norm.alpha": (1,),
        "cross_hadamard.norm.weight": (6,),
        "cross_hadamard.norm.bias": (6,),
    }
    assert float(ach.cross_hadamard.select.temperature) == 4.0
    assert (ach.cross_hadamard.select.order, ach.cross_hadamard.select.surrogate) == ("rank", "softmax")


@both_modes
def test_a_copy_and_a_reload_give_equal_outputs(training: bool) -> None:
    ach, x = randomise(AdaptiveCrossHadamard(6, 4, selection="sample")), torch.randn(3, 6, 2, 2)
    ach.cross_hadamard.select.temperature.fill_(0.7)
    reloaded = AdaptiveCrossHadamard(6, 4, selection="sample")
    reloaded.load_state_dict(ach.state_dict())
    modules = [module.train(training) for module in (ach, copy.deepcopy(ach), reloaded)]
    outputs = [module(x, seeded()) for module in modules]
    for module, y in zip(modules[1:], outputs[1:], strict=True):
        assert torch.equal(y, outputs[0])
        assert float(module.cross_hadamard.select.temperature) == pytest.approx(0.7)


def test_a_copy_is_independent() -> None:
    ach = AdaptiveCrossHadamard(6, 4, selection="sample")
    before = copy.deepcopy(ach.state_dict())
    randomise(copy.deepcopy(ach))
    assert all(torch.equal(before[name], tensor) for name, tensor in ach.state_dict().items())


WRONG_ACH = {
    "k-1": ({"k": 1}, "k must be at least 2, because products are of channel pairs; got 1"),
    "k-negative": ({"k": -3}, "k must be at least 2"),
    "k-too-large": ({"k": 7}, "k = 7 channels cannot be selected out of only 6"),
    "norm": ({"norm": "layernorm"}, "norm must be one of dysoft, .*; got 'layernorm'"),
    "order": ({"order": "random"}, "order must be one of rank, index; got 'random'"),
    "surrogate": (
        {"surrogate": "nonsense"},
        "surrogate must be one of softmax, softmax_k, simple, sfess; got 'nonsense'",
    ),
    "score-kernel": ({"score_kernel": 4}, "score_kernel must be odd and positive, or 0 for none, got 4"),
}


@pytest.mark.parametrize(("change", "message"), WRONG_ACH.values(), ids=WRONG_ACH.keys())
@pytest.mark.parametrize("kind", [AdaptiveCrossHadamard, CrossHadamardExpansion, CrossHadamardMlp])
def test_ach_rejects(kind: type[nn.Module], change: dict, message: str) -> None:
    arguments = {"k": 3, **change}
    with pytest.raises(ValueError, match=message):
        kind(6, **arguments)


@pytest.mark.parametrize("shape", [(2, 4, 3, 3), (2, 6, 3, 3), (5,), (2, 3, 5)], ids=str)
def test_ach_rejects_the_wrong_channels(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(B, 5, S...\), got \["):
        AdaptiveCrossHadamard(5, 3, selection="sample")(torch.randn(shape))


def test_ach_scripts_and_compiles() -> None:
    ach, x = randomise(AdaptiveCrossHadamard(5, 3, selection="sample")).eval(), torch.randn(2, 5, 3, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this PyTorch deprecates torch.jit
        assert_close(torch.jit.script(ach)(x), ach(x))
    torch.compiler.reset()
    assert_close(torch.compile(ach, fullgraph=True, backend="eager")(x), ach(x))
    torch.compiler.reset()


def test_expansions_lists_them_by_name_in_order() -> None:
    model = nn.ModuleDict(
        {
            "a": AdaptiveCrossHadamard(4, 2, selection="sample"),
            "b": nn.Conv2d(1, 1, 1),
            "c": CrossHadamardMlp(4, selection="sample"),
        }
    )
    found = expansions(model)
    assert list(found) == ["a.cross_hadamard", "c.cross_hadamard"]
    assert found["a.cross_hadamard"] is model["a"].cross_hadamard
    assert expansions(nn.Linear(2, 2)) == {}


@pytest.mark.filterwarnings("ignore")  # dynamo warns about what it imports
def test_training_compiles_for_batches_of_any_size() -> None:
    layer = CrossHadamardExpansion(6, 3, selection="sample")
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="eager", fullgraph=True, dynamic=True)
    for batch in (2, 3):
        x = torch.randn(batch, 6, 2, 2, requires_grad=True)
        torch.manual_seed(0)
        expected = layer(x)
        torch.manual_seed(0)
        torch.testing.assert_close(compiled(x), expected)
    torch.compiler.reset()


@every_norm
def test_checkpointing_computes_the_same_gradients(norm: str) -> None:
    layer = CrossHadamardExpansion(6, 3, norm, selection="sample")
    x = torch.randn(2, 6, 3, 3, requires_grad=True)
    gradients = []
    for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
        torch.manual_seed(0)
        gradients.append(torch.autograd.grad(run(x).square().sum(), (x, layer.score.conv.weight)))
    torch.testing.assert_close(*gradients)
