"""Scores, Gumbel top-k with its straight-through gate, and the adaptive temperature."""

import copy
import io
import itertools
import math

import numpy as np
import pytest
import torch
from tolerances import DTYPES, assert_close, dtype_id
from torch import Tensor

from hadaptive.nn import (
    AdaptiveCrossHadamard,
    ChannelScore,
    ChannelSelection,
    expansions,
    gumbel_noise,
    gumbel_top_k,
    top_k_channels,
    update_temperatures,
)

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
every_order = pytest.mark.parametrize("order", ["rank", "index"])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Scores


@pytest.mark.parametrize("spatial", [(), (7,), (3, 5), (2, 3, 2)], ids=lambda s: f"{len(s)}d")
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_score_slides_over_the_channels(kernel: int, spatial: tuple[int, ...]) -> None:
    score = ChannelScore(kernel).double()
    x = torch.randn(2, 6, *spatial, dtype=torch.float64)
    pooled = x.numpy().reshape(2, 6, -1).mean(2)
    weight = score.conv.weight.detach().numpy().ravel()
    expected = np.zeros((2, 6))
    for channel, tap in itertools.product(range(6), range(kernel)):
        source = channel + tap - kernel // 2
        if 0 <= source < 6:
            expected[:, channel] += weight[tap] * pooled[:, source]
    assert_close(score(x), expected)


def test_score_has_the_papers_kernel_and_no_bias() -> None:
    assert [(name, tuple(p.shape)) for name, p in ChannelScore().named_parameters()] == [
        ("conv.weight", (1, 1, 5))
    ]


@pytest.mark.parametrize("kernel", [2, 4, -1])
def test_score_rejects_kernels_without_a_centre(kernel: int) -> None:
    with pytest.raises(ValueError, match=f"must be odd and positive, or 0 for none, got {kernel}"):
        ChannelScore(kernel)


# Top-k


def test_ties_go_to_the_lower_channel() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0, 0.0, 3.0, 1.0], [0.0, 0.0, -1.0, 0.0, 5.0, 0.0]])
    assert top_k_channels(scores, 2).tolist() == [[1, 2], [4, 0]]
    assert top_k_channels(scores, 4).tolist() == [[1, 2, 4, 0], [4, 0, 1, 3]]
    assert top_k_channels(scores, 4, "index").tolist() == [[0, 1, 2, 4], [0, 1, 3, 4]]


@every_dtype
@every_order
def test_ties_among_many_channels(order: str, dtype: torch.dtype) -> None:
    # An unstable sort keeps short rows in order by luck; it does not keep a thousand equal ones.
    assert top_k_channels(torch.zeros(2, 1023, dtype=dtype), 64, order).tolist() == [list(range(64))] * 2


@every_dtype
@pytest.mark.parametrize("k", [1, 2, 5, 31])
def test_top_k_equals_a_stable_argsort(k: int, dtype: torch.dtype) -> None:
    scores = torch.randint(0, 9, (5, 31)).to(dtype)
    expected = np.argsort(-scores.double().numpy(), axis=1, kind="stable")[:, :k]
    assert top_k_channels(scores, k).tolist() == expected.tolist()
    assert top_k_channels(scores, k, "index").tolist() == np.sort(expected, axis=1).tolist()


# Noise


@every_dtype
def test_noise_is_float32(dtype: torch.dtype) -> None:
    noise = gumbel_noise(torch.zeros(3, 4, dtype=dtype))
    assert noise.dtype == torch.float32
    assert noise.shape == (3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert gumbel_noise(torch.zeros(3, 4, dtype=dtype)).dtype == torch.float32


def test_noise_is_standard_gumbel() -> None:
    noise = np.sort(gumbel_noise(torch.zeros(20_000), seeded()).numpy())
    empirical = (np.arange(noise.size) + 0.5) / noise.size
    # Kolmogorov-Smirnov distance; 1.95 / sqrt(n) is its 0.1 % quantile.
    assert np.abs(np.exp(-np.exp(-noise)) - empirical).max() < 1.95 / math.sqrt(noise.size)


@pytest.mark.parametrize("u", [0.0, 1e-45, 1 - 2**-24, 1.0], ids=["zero", "subnormal", "below-one", "one"])
def test_noise_is_finite_at_the_ends_of_the_uniform(u: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape[0], u))
    scores = torch.zeros(2, 3, requires_grad=True)
    noise = gumbel_noise(scores)
    assert noise.isfinite().all()
    assert (noise > 10).all() if u > 0.5 else (noise < -4).all()
    _, gate = gumbel_top_k(scores, 2, torch.tensor(0.01))
    gate.square().sum().backward()
    assert torch.equal(gate, torch.ones(2, 2))
    assert scores.grad.isfinite().all()


def test_generator_makes_the_noise_and_the_global_one_stays_untouched() -> None:
    scores = torch.randn(4, 9)
    before = torch.random.get_rng_state()
    first, again = (gumbel_top_k(scores, 4, torch.tensor(1.0), generator=seeded(3))[0] for _ in range(2))
    assert torch.equal(first, again)
    other = gumbel_top_k(scores, 4, torch.tensor(1.0), generator=seeded(4))[0]
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_without_a_generator_the_global_seed_decides() -> None:
    scores = torch.zeros(4, 9)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(gumbel_top_k(scores, 4, torch.tensor(1.0))[0])
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


# Gumbel top-k: the choice


@every_order
def test_choice_is_the_top_k_of_the_noisy_scores(order: str) -> None:
    scores = torch.randn(4, 9)
    index, _ = gumbel_top_k(scores, 4, torch.tensor(2.0), order, generator=seeded())
    assert torch.equal(index, top_k_channels(scores + gumbel_noise(scores, seeded()), 4, order))


@pytest.mark.parametrize("temperature", [0.01, 0.5, 4.0])
def test_choice_does_not_depend_on_the_temperature(temperature: float) -> None:
    scores = 30 * torch.randn(8, 40)  # peaked: at 0.01 most of the softmax underflows
    at_one = gumbel_top_k(scores, 20, torch.tensor(1.0), generator=seeded())[0]
    assert torch.equal(gumbel_top_k(scores, 20, torch.tensor(temperature), generator=seeded())[0], at_one)


def test_frequencies_are_plackett_luce() -> None:
    scores, draws = torch.tensor([1.0, 0.0, -0.5, 0.7]), 20_000
    p = torch.softmax(scores.double(), 0).tolist()
    index, _ = gumbel_top_k(scores.expand(draws, 4), 2, torch.tensor(4.0), generator=seeded())
    for i, j in itertools.permutations(range(4), 2):
        expected = p[i] * p[j] / (1 - p[i])  # first i, then j among the others
        seen = float(((index[:, 0] == i) & (index[:, 1] == j)).double().mean())
        assert abs(seen - expected) < 4 * math.sqrt(expected * (1 - expected) / draws), (i, j)
    for i in range(4):
        seen = float((index[:, 0] == i).double().mean())
        assert abs(seen - p[i]) < 4 * math.sqrt(p[i] * (1 - p[i]) / draws), i


# Gumbel top-k: the gate


@every_dtype
@pytest.mark.parametrize("surrogate", ["softmax", "softmax_k"])
@pytest.mark.parametrize("temperature", [0.01, 1.0, 4.0])
def test_gate_is_exactly_one(temperature: float, surrogate: str, dtype: torch.dtype) -> None:
    scores = torch.randn(5, 17, dtype=dtype)
    index, gate = gumbel_top_k(scores, 7, torch.tensor(temperature), surrogate=surrogate)
    assert index.dtype == torch.int64
    assert gate.dtype == torch.float32
    assert torch.equal(gate, torch.ones(5, 7))


def gate_gradient(scores: Tensor, cost: Tensor, temperature: float, **options) -> Tensor:
    """d(sum of cost times gate) / d scores, noise of seed 0."""
    scores = scores.detach().requires_grad_()
    _, gate = gumbel_top_k(scores, cost.shape[1], torch.tensor(temperature), generator=seeded(), **options)
    return torch.autograd.grad((cost * gate).sum(), scores)[0]


@every_order
@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_gate_gradient_is_that_of_the_softmax_and_not_its_negative(temperature: float, order: str) -> None:
    scores, cost = torch.randn(3, 6), torch.tensor([[1.0, -2.0, 5.0]])
    logits = (scores + gumbel_noise(scores, seeded())).double().numpy() / temperature
    soft = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    index = np.argsort(-logits, axis=1)[:, :3]
    if order == "index":
        index = np.sort(index, axis=1)
    expected = np.zeros((3, 6))
    for n, m, slot in itertools.product(range(3), range(6), range(3)):
        j = index[n, slot]
        expected[n, m] += cost[0, slot] * soft[n, j] * ((j == m) - soft[n, m]) / temperature
    assert np.abs(expected).max() > 0.02  # so that the reversed sign of the published code cannot pass
    assert_close(gate_gradient(scores, cost, temperature, order=order), expected)


def test_raising_a_score_raises_the_surrogate_of_its_own_gate() -> None:
    scores = torch.zeros(1, 4)
    index, _ = gumbel_top_k(scores, 2, torch.tensor(1.0), generator=seeded())
    gradient = gate_gradient(scores, torch.tensor([[1.0, 0.0]]), 1.0)[0]
    first = int(index[0, 0])
    assert gradient[first] > 0
    assert (gradient[torch.arange(4) != first] < 0).all()


def test_softmax_k_is_k_times_the_softmax() -> None:
    scores, cost = torch.randn(3, 8), torch.randn(3, 5)
    plain, scaled = (gate_gradient(scores, cost, 1.0, surrogate=s) for s in ("softmax", "softmax_k"))
    assert plain.abs().max() > 0.01
    assert_close(scaled, 5 * plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=dtype_id)
def test_low_precision_scores_are_computed_in_float32(dtype: torch.dtype) -> None:
    scores, cost = torch.randn(3, 8).to(dtype), torch.randn(3, 5)
    gradient = gate_gradient(scores, cost, 0.5)
    assert gradient.dtype == dtype
    assert torch.equal(gradient, gate_gradient(scores.float(), cost, 0.5).to(dtype))


def test_autocast_changes_nothing() -> None:
    scores, cost = torch.randn(3, 8), torch.randn(3, 5)
    expected = gate_gradient(scores, cost, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gate_gradient(scores, cost, 0.5), expected)


# ChannelSelection


def test_selection_in_eval_is_deterministic_top_k() -> None:
    select, scores = ChannelSelection(3).eval(), torch.randn(4, 7)
    before = torch.random.get_rng_state()
    index, gate = select(scores)
    assert gate is None
    assert torch.equal(index, top_k_channels(scores, 3))
    assert torch.equal(select(scores, seeded())[0], index)
    assert torch.equal(torch.random.get_rng_state(), before)


@every_order
def test_selection_in_training_is_gumbel_top_k(order: str) -> None:
    select = ChannelSelection(3, order, "softmax_k")
    select.temperature.fill_(0.5)
    cost, results = torch.randn(4, 3), []
    for call in (select, lambda s, g: gumbel_top_k(s, 3, torch.tensor(0.5), order, "softmax_k", g)):
        scores = torch.linspace(-1, 1, 28).view(4, 7).requires_grad_()
        index, gate = call(scores, seeded())
        results.append((index, torch.autograd.grad((cost * gate).sum(), scores)[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("option", ["order", "surrogate"])
def test_selection_rejects_unknown_options(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be one of .*; got 'best'"):
        ChannelSelection(3, **{option: "best"})


# Adaptive temperature


def test_temperature_follows_the_gradients_norm() -> None:
    select = ChannelSelection(2)
    assert select.temperature == 4.0
    expected, previous = 4.0, 0.0
    for norm in torch.rand(300, generator=seeded()).add(0.1).tolist():
        select.update_temperature(torch.tensor([[norm, 0.0]]))
        expected = min(4.0, max(0.01, expected * (1.005 if norm >= previous else 0.995)))
        previous = norm
        assert float(select.temperature) == pytest.approx(expected, rel=1e-4)
    assert float(select.temperature) < 4.0


def test_an_equal_norm_warms() -> None:
    select = ChannelSelection(2)
    for norm in (2.0, 1.0, 1.0):
        select.update_temperature(torch.tensor([norm]))
    assert float(select.temperature) == pytest.approx(4.0 * 0.995 * 1.005, rel=1e-6)


def test_the_norm_is_euclidean() -> None:
    select = ChannelSelection(2)
    select.update_temperature(torch.full((1, 1, 4), 1.0))  # norm 2
    select.update_temperature(torch.tensor([[[1.9, 0.0, 0.0, 0.0]]]))
    assert float(select.temperature) == pytest.approx(4.0 * 0.995, rel=1e-6)
    assert float(select.gradient_norm) == pytest.approx(1.9)


def test_temperature_stays_within_its_bounds() -> None:
    select = ChannelSelection(2)
    for step in range(1300):
        select.update_temperature(torch.tensor([2000.0 - step]))
    assert float(select.temperature) == pytest.approx(0.01)
    for step in range(1300):
        select.update_temperature(torch.tensor([2000.0 + step]))
    assert float(select.temperature) == 4.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(value: float) -> None:
    select = ChannelSelection(2)
    for norm in (3.0, 2.0):
        select.update_temperature(torch.tensor([norm]))
    before = copy.deepcopy(select.state_dict())
    select.update_temperature(torch.tensor([1.0, value]))
    assert all(torch.equal(before[name], tensor) for name, tensor in select.state_dict().items())


def test_temperature_resumes_exactly() -> None:
    select, norms = ChannelSelection(2), torch.rand(40, 1, generator=seeded())
    for norm in norms[:20]:
        select.update_temperature(norm)
    file = io.BytesIO()
    torch.save(select.state_dict(), file)
    file.seek(0)
    resumed = ChannelSelection(2)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for norm in norms[20:]:
        select.update_temperature(norm)
        resumed.update_temperature(norm)
        assert torch.equal(select.temperature, resumed.temperature)
        assert torch.equal(select.gradient_norm, resumed.gradient_norm)
    assert set(select.state_dict()) == {"temperature", "gradient_norm"}


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_forward_and_backward_leave_the_temperature_alone(training: bool) -> None:
    ach = AdaptiveCrossHadamard(5, 3, selection="sample").train(training)
    select = ach.cross_hadamard.select
    select.temperature.fill_(1.5)
    for _ in range(2):
        ach(torch.randn(2, 5, 3, 3)).square().sum().backward()
    assert float(select.temperature) == 1.5
    assert float(select.gradient_norm) == 0.0


def test_update_temperatures_steps_every_module_once() -> None:
    model = torch.nn.Sequential(
        AdaptiveCrossHadamard(4, 3, selection="sample"),
        torch.nn.Sequential(AdaptiveCrossHadamard(7, 2, selection="sample")),
    )
    model(torch.randn(2, 4, 3, 3)).square().sum().backward()
    update_temperatures(model)
    first, second = expansions(model).values()
    for expansion in (first, second):
        norm = expansion.score.conv.weight.grad.norm()
        assert norm > 0
        assert torch.equal(expansion.select.gradient_norm, norm)
        expansion.score.conv.weight.grad.mul_(0.5)
    update_temperatures(model)
    # One step down each: two would give 0.995 squared.
    assert float(first.select.temperature) == pytest.approx(4.0 * 0.995, rel=1e-6)
    assert float(second.select.temperature) == pytest.approx(4.0 * 0.995, rel=1e-6)


def test_no_gradient_no_step() -> None:
    model = AdaptiveCrossHadamard(5, 3, selection="sample")
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(2, 5, 3, 3)).square().sum().backward()
    update_temperatures(model)
    optimiser.zero_grad(set_to_none=True)
    before = copy.deepcopy(model.state_dict())
    update_temperatures(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
