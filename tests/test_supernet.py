"""The supernet: one path computed or every candidate, gradients of gates as GDAS defines them."""

import pytest
import torch

from hadaptive.models.layer_spec import ConvSpec, ach, ghost
from hadaptive.search import SearchSpace, Skip, Supernet, published_space


@pytest.fixture
def supernet() -> Supernet:
    stage = ((ghost(2, 3, 12), ach(4, 3, 12)), (ghost(2, 3, 12), ach(5, 3, 12), Skip()))
    space = SearchSpace("tiny", (ConvSpec(8, 2, 2), ConvSpec(8, 3, 2)), (), (stage,), 16, 16)
    return Supernet(space, num_classes=3, drop_rate=0.0)


def test_runs_one_candidate_of_each_position_or_every_one(supernet: Supernet) -> None:
    ran: list[tuple[int, int]] = []
    for p, candidates in enumerate(supernet.positions):
        for c, module in enumerate(candidates):
            module.register_forward_hook(lambda *_, place=(p, c): ran.append(place))
    sample = supernet.sample(1.0)
    assert supernet(torch.randn(2, 3, 16, 16), sample.choice).shape == (2, 3)
    assert ran == list(enumerate(sample.choice))
    ran.clear()
    supernet(torch.randn(2, 3, 16, 16), sample)
    assert ran == [(p, c) for p, candidates in enumerate(supernet.positions) for c in range(len(candidates))]


def test_only_the_paths_weights_learn_from_a_choice(supernet: Supernet) -> None:
    choice = (1, 0, 1)
    supernet(torch.randn(2, 3, 16, 16), choice).square().sum().backward()
    for p, candidates in enumerate(supernet.positions):
        for c, module in enumerate(candidates):
            reached = [parameter.grad is not None for parameter in module.parameters()]
            assert all(reached) if c == choice[p] else not any(reached)


def test_a_gate_sees_what_its_own_candidate_would_have_done(supernet: Supernet) -> None:
    """By hand: the slope of the loss at the path's map, times the map of each candidate."""
    supernet.eval()
    x, sample = torch.randn(2, 3, 16, 16), supernet.sample(1.0)
    for gate in sample.gates:
        gate.retain_grad()
    supernet(x, sample).square().sum().backward()
    for p, own in enumerate(supernet.positions):
        y = x
        for chosen, row in list(zip(sample.choice, supernet.positions, strict=True))[:p]:
            y = row[chosen](y)
        maps = [candidate(y).detach() for candidate in own]
        out = maps[sample.choice[p]].clone().requires_grad_()
        y = out
        for chosen, row in list(zip(sample.choice, supernet.positions, strict=True))[p + 1 :]:
            y = row[chosen](y)
        (slope,) = torch.autograd.grad(supernet.head(y).square().sum(), out)
        expected = torch.stack([(slope * m).sum() for m in maps])
        torch.testing.assert_close(sample.gates[p].grad, expected, rtol=1e-3, atol=1e-4)
        assert float(expected.std()) > 0  # not one gradient for all


def test_gates_are_one_in_value_and_softmax_in_gradient(supernet: Supernet) -> None:
    generator = torch.Generator().manual_seed(5)
    sample = supernet.sample(0.7, generator)
    for chosen, gate in zip(sample.choice, sample.gates, strict=True):
        assert gate.tolist() == [float(i == chosen) for i in range(len(gate))]
    # By hand, from the same noise.
    generator = torch.Generator().manual_seed(5)
    u = torch.rand(2, generator=generator).clamp(1e-38, 1 - 1.2e-7)
    alpha = supernet.alpha[0].detach().clone().requires_grad_()
    soft = torch.softmax((alpha.log_softmax(0) - torch.log(-torch.log(u))) / 0.7, 0)
    (expected,) = torch.autograd.grad(soft[0], alpha)
    (found,) = torch.autograd.grad(sample.gates[0][0], supernet.alpha[0])
    torch.testing.assert_close(found, expected)


def test_a_sample_and_its_choice_compute_the_same(supernet: Supernet) -> None:
    supernet.eval()
    x, sample = torch.randn(2, 3, 16, 16), supernet.sample(1.0)
    torch.testing.assert_close(supernet(x, sample), supernet(x, sample.choice))


def test_paths_are_drawn_as_often_as_alpha_says(supernet: Supernet) -> None:
    with torch.no_grad():
        supernet.alpha[1].copy_(torch.tensor([0.0, 1.0]))
    generator = torch.Generator().manual_seed(0)
    share = sum(supernet.sample(4.0, generator).choice[1] for _ in range(1000)) / 1000
    assert share == pytest.approx(float(torch.sigmoid(torch.tensor(1.0))), abs=0.05)  # whatever the temperature


def test_other_candidates_keep_their_statistics(supernet: Supernet) -> None:
    before = {name: value.clone() for name, value in supernet.named_buffers()}
    choice = (0, 1, 2)
    supernet(torch.randn(2, 3, 16, 16), choice)
    for name, value in supernet.named_buffers():
        parts = name.split(".")
        if parts[0] == "positions" and choice[int(parts[1])] != int(parts[2]):
            assert value.equal(before[name]), name


def test_best_and_confidence(supernet: Supernet) -> None:
    with torch.no_grad():
        for alpha in supernet.alpha:
            alpha.zero_()
        supernet.alpha[2][1] = 2.0
    assert supernet.best() == (0, 0, 1)
    assert float(supernet.confidence()[2].sum()) == pytest.approx(1)
    assert not {id(p) for p in supernet.weights()} & {id(p) for p in supernet.alpha}


def test_the_published_supernet_is_as_large_as_the_paper_says() -> None:
    count = sum(parameter.numel() for parameter in Supernet(published_space(), num_classes=100).weights())
    # 3.74 M there; the kernels of 3 that it took for kernels of 2 are a little larger.
    assert count == pytest.approx(3.74e6, rel=0.005)
