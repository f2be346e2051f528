"""Subsets of k channels: exact marginals and samples, and the two estimators that are made of them."""

import copy
import dataclasses
import itertools
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import seeded
from test_selections import network
from tiny import TINY, tiny_config, trainer_of
from torch import Tensor

from hadaptive.models import HadaptiveNet
from hadaptive.nn import (
    CrossHadamardExpansion,
    learns_by_score_function,
    score_function_term,
    simple_top_k,
)
from hadaptive.nn.subsets import k_subset_marginals, log_probability, sample_k_subset

# ---------------------------------------------------------------- subsets


def by_enumeration(logits: Tensor, k: int) -> tuple[Tensor, dict[tuple[int, ...], float]]:
    """Marginals of one row (C,), and the probability of every k-subset."""
    subsets = list(itertools.combinations(range(len(logits)), k))
    probability = torch.stack([logits[list(subset)].sum() for subset in subsets]).softmax(0)
    marginals = torch.stack(
        [probability[[n for n, subset in enumerate(subsets) if c in subset]].sum() for c in range(len(logits))]
    )
    return marginals, dict(zip(subsets, probability.tolist(), strict=True))


@given(st.integers(1, 7), st.data())
def test_marginals_are_those_of_all_subsets_and_so_are_their_gradients(channels: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, channels))
    values = data.draw(st.lists(st.floats(-20, 20), min_size=channels, max_size=channels))
    logits = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    weight = torch.linspace(-1, 2, channels, dtype=torch.float64)
    found, expected = k_subset_marginals(logits.unsqueeze(0), k)[0], by_enumeration(logits, k)[0]
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    of_found, of_expected = (torch.autograd.grad((m * weight).sum(), logits)[0] for m in (found, expected))
    torch.testing.assert_close(of_found, of_expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 3000.0])
def test_marginals_of_many_channels_are_finite_sum_to_k_and_rise_with_the_logit(scale: float) -> None:
    logits = (scale * torch.randn(3, 512, generator=seeded())).requires_grad_()
    marginals = k_subset_marginals(logits, 48)
    torch.testing.assert_close(marginals.sum(1), torch.full((3,), 48.0), rtol=1e-4, atol=0)
    assert marginals.max() < 1 + 1e-3
    ordered = marginals.gather(1, logits.argsort(1))
    assert (ordered.diff(dim=1) > -1e-4).all()
    marginals[:, :48].sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_all_of_them_have_marginals_of_1() -> None:
    torch.testing.assert_close(k_subset_marginals(torch.randn(2, 5), 5), torch.ones(2, 5))


def test_samples_come_with_the_subsets_probabilities() -> None:
    logits, draws = torch.tensor([1.0, 0.0, -0.5, 2.0, 0.3]), 40_000
    taken = sample_k_subset(logits.expand(draws, -1), 2, seeded(1))
    assert (taken.sum(1) == 2).all()
    for subset, probability in by_enumeration(logits, 2)[1].items():
        share = taken[:, list(subset)].all(1).float().mean().item()
        assert abs(share - probability) < 4 * (probability * (1 - probability) / draws) ** 0.5 + 1e-4


def test_simple_at_a_temperature_of_its_noise_is_unbiased_for_a_linear_loss() -> None:
    """The gates' gradient is the marginals', so that a loss linear in the mask has its true expected gradient."""
    scores, weight = torch.tensor([[0.4, -1.0, 0.9, 0.1]]), torch.tensor([1.0, -2.0, 0.5, 3.0])
    leaf = scores.clone().requires_grad_()
    whole = (k_subset_marginals(leaf, 2) * weight).sum()
    expected = torch.autograd.grad(whole, leaf)[0]
    many = scores.expand(20_000, -1).clone().requires_grad_()
    index, gate = simple_top_k(many, 2, torch.tensor(1.0), generator=seeded())
    assert (gate == 1).all()
    share = torch.zeros(4).scatter_add(0, index.flatten(), torch.ones(index.numel())) / len(many)
    torch.testing.assert_close(share, k_subset_marginals(scores, 2)[0], rtol=0, atol=0.02)
    # What a gate passes on is the gradient of its own channel's marginal.
    (gate * weight[index]).sum().backward()
    assert many.grad is not None
    rows = torch.autograd.functional.jacobian(lambda s: k_subset_marginals(s, 2)[0], scores)[:, 0]
    torch.testing.assert_close(many.grad[0], (weight[index[0]].unsqueeze(1) * rows[index[0]]).sum(0))
    assert expected.isfinite().all()


# ---------------------------------------------------------------- score-function estimator


def test_log_probabilities_are_those_of_all_subsets() -> None:
    logits = torch.tensor([1.0, 0.0, -0.5, 2.0, 0.3])
    for subset, probability in by_enumeration(logits, 3)[1].items():
        found = log_probability(logits.unsqueeze(0), torch.tensor([subset]))
        assert float(found.exp()) == pytest.approx(probability, rel=1e-5)


class Judged(torch.nn.Module):
    """An expansion whose loss is any function of what is selected: no gate could tell it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = CrossHadamardExpansion(4, 2, "identity", surrogate="sfess", selection="sample")
        self.scores = torch.nn.Parameter(torch.tensor([0.3, -0.2, 0.5, 0.0]))
        self.worth = {(0, 1): 13.0, (0, 2): 9.0, (0, 3): 10.5, (1, 2): 12.0, (1, 3): 14.0, (2, 3): 8.0}

    def expected_loss(self) -> Tensor:
        subsets = list(itertools.combinations(range(4), 2))
        logits = torch.stack([self.scores[list(subset)].sum() for subset in subsets])
        return (logits.softmax(0) * torch.tensor([self.worth[subset] for subset in subsets])).sum()

    def losses(self, batch: int, generator: torch.Generator) -> Tensor:
        index, gate = self.layer.select(self.scores.expand(batch, -1), generator)
        assert gate is None
        return torch.tensor([self.worth[tuple(sorted(row))] for row in index.tolist()])


def test_the_score_function_estimate_is_unbiased_and_its_control_variate_lessens_its_spread() -> None:
    model, generator = Judged(), seeded(3)
    expected = torch.autograd.grad(model.expected_loss(), model.scores)[0]
    found, plain = [], []
    for _ in range(1500):
        losses = model.losses(16, generator)
        logs = model.layer.select.sampled.log_probability
        assert logs is not None
        plain.append(torch.autograd.grad((losses * logs).mean(), model.scores, retain_graph=True)[0])
        found.append(torch.autograd.grad(score_function_term(model, losses), model.scores)[0])
    mean, spread = torch.stack(found).mean(0), torch.stack(found).std(0) / len(found) ** 0.5
    assert ((mean - expected).abs() < 4 * spread).all()
    assert (torch.stack(found).var(0) < torch.stack(plain).var(0)).all()


def test_what_was_sampled_is_used_once_and_never_copied() -> None:
    torch.manual_seed(0)
    net = HadaptiveNet(dataclasses.replace(network("sample"), surrogate="sfess"), 3)
    x = torch.randn(4, 3, 8, 8)
    logits = net(x)
    twin, text = copy.deepcopy(net), pickle.dumps(net)
    assert score_function_term(twin, torch.ones(4)) == 0
    assert score_function_term(pickle.loads(text), torch.ones(4)) == 0
    losses = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0]), reduction="none")
    with pytest.raises(ValueError, match=r"losses must have shape \(4,\), one for each sample, got \(3,\)"):
        score_function_term(net, losses[:3])
    net(x)
    (losses.mean() + score_function_term(net, losses)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in net.named_parameters() if "score" in n)
    assert score_function_term(net, losses) == 0
    assert learns_by_score_function(net)
    assert not learns_by_score_function(HadaptiveNet(network("sample"), 3))


def test_a_training_adds_the_term(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(surrogate: str) -> dict[str, Tensor]:
        dataclasses.replace(TINY, surrogate=surrogate).save(tmp_path / "net.json")
        trainer = trainer_of(tiny_config(tmp_path, surrogate, epochs=1, model=str(tmp_path / "net.json")))
        before = {n: p.detach().clone() for n, p in trainer.network.named_parameters() if "score" in n}
        trainer.network.train()
        trainer.micro_step(torch.randn(8, 3, 8, 8), torch.arange(8) % 10, 0)
        return {n: p.detach() - before[n] for n, p in trainer.network.named_parameters() if n in before}

    assert all(moved.abs().sum() > 0 for moved in trained("sfess").values())
