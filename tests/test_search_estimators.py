"""What the architecture learns from a batch: unbiased where it says so, and one path where it says one."""

import itertools
import math

import pytest
import torch

from hadaptive.models.layer_spec import ConvSpec, ach, ghost
from hadaptive.search import SearchSpace, Skip, Supernet
from hadaptive.search.estimators import common_noise, frozen_statistics, gdas, rloo, without_dropout


@pytest.fixture
def supernet() -> Supernet:
    stage = ((ghost(2, 3, 8), ach(4, 3, 8)), (ghost(2, 3, 8), Skip()))
    space = SearchSpace("tiny", (ConvSpec(8, 2, 2),), (), (stage,), 8, 8)
    supernet = Supernet(space, num_classes=3, drop_rate=0.0).eval()  # eval: the loss of a path is one number
    with torch.no_grad():
        for alpha in supernet.alpha:
            alpha.copy_(torch.linspace(0, 1, len(alpha)))
        for parameter in supernet.weights():
            parameter.mul_(3)  # so that paths differ
    return supernet


def test_rloo_is_the_gradient_of_the_expected_loss(supernet: Supernet) -> None:
    images, targets = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits, targets)

    probabilities = [alpha.softmax(0) for alpha in supernet.alpha]
    with torch.no_grad():
        every = list(itertools.product(*(range(len(p)) for p in probabilities)))
        losses = [loss(supernet(images, choice)) for choice in every]
    assert max(losses) > min(losses) + 1e-2
    expected = sum(
        value * math.prod(p[c] for p, c in zip(probabilities, choice, strict=True))
        for value, choice in zip(losses, every, strict=True)
    )
    exact = torch.cat(torch.autograd.grad(expected, list(supernet.alpha)))
    generator = torch.Generator().manual_seed(0)
    estimates = []
    for _ in range(800):
        surrogate, value = rloo(supernet, images, loss, 3, generator)
        assert min(losses) - 1e-5 <= value <= max(losses) + 1e-5
        estimates.append(torch.cat(torch.autograd.grad(surrogate, list(supernet.alpha))))
    found = torch.stack(estimates)
    error = found.std(0) / len(found) ** 0.5
    assert bool(((found.mean(0) - exact).abs() <= 4 * error + 1e-7).all()), (found.mean(0), exact, error)
    assert float(exact.norm()) > 4 * float(error.norm())  # else the comparison could not fail


def test_gdas_runs_the_head_once_and_rloo_several_times(supernet: Supernet) -> None:
    ran: list[int] = []
    supernet.head.register_forward_hook(lambda *_: ran.append(1))
    images, generator = torch.randn(2, 3, 8, 8), torch.Generator().manual_seed(0)
    surrogate, _ = gdas(supernet, images, lambda logits: logits.square().mean(), 1.0, generator)
    assert len(ran) == 1
    gradients = torch.autograd.grad(surrogate, list(supernet.alpha), allow_unused=True)
    assert all(g is not None for g in gradients)
    rloo(supernet, images, lambda logits: logits.square().mean(), 5, generator)
    assert len(ran) == 6


def test_equal_paths_leave_the_architecture_alone(supernet: Supernet) -> None:
    surrogate, _ = rloo(supernet, torch.randn(2, 3, 8, 8), lambda _: torch.tensor(1.0), 4, torch.Generator())
    for gradient in torch.autograd.grad(surrogate, list(supernet.alpha)):
        assert gradient.abs().max() == 0


def test_paths_of_one_step_meet_the_same_noise_and_no_dropout() -> None:
    """Paths differ in their candidates alone: what they have in common computes the same, whatever came before."""
    stage = ((ghost(2, 3, 8), ach(4, 3, 8)), (ach(3, 3, 8), ach(4, 3, 8)), (ach(5, 3, 8), Skip()))
    space = SearchSpace("tiny", (ConvSpec(8, 2, 2),), (), (stage,), 8, 8)
    supernet = Supernet(space, num_classes=3, drop_rate=0.5).train()
    images = torch.randn(4, 3, 8, 8)
    maps: dict[str, list[torch.Tensor]] = {"second": [], "logits": []}
    supernet.positions[2][0].register_forward_hook(lambda m, a, y: maps["second"].append(y))

    def twice() -> tuple[bool, bool]:
        for maps_of in maps.values():
            maps_of.clear()
        with torch.no_grad(), frozen_statistics(supernet):
            for choice in ((0, 1, 0, 0), (0, 0, 0, 1), (0, 1, 0, 0)):
                maps["logits"].append(supernet(images, choice))
        return torch.equal(maps["logits"][0], maps["logits"][2]), len(maps["second"]) == 3

    assert twice() == (False, True)
    with without_dropout(supernet):
        assert not twice()[0]  # the noise of selections
    with common_noise(supernet, 7), without_dropout(supernet):
        assert twice()[0]
        first = maps["logits"][0]
    assert supernet.training
    assert all(module.training for module in supernet.modules())
    with common_noise(supernet, 8), without_dropout(supernet):
        twice()
    assert not torch.equal(first, maps["logits"][0])  # another step, other noise


def test_candidates_of_a_position_share_its_noise() -> None:
    stage = ((ach(3, 3, 8), ach(4, 3, 8)),)
    supernet = Supernet(SearchSpace("tiny", (ConvSpec(8, 2, 2),), (), (stage,), 8, 8), num_classes=3).train()
    few, many = (candidate.expansion.cross_hadamard for candidate in supernet.positions[1])
    scores, found = torch.randn(5, 8), []
    for layer in (few, many):
        with common_noise(supernet, 3):
            found.append(layer.select(scores)[0])
    assert torch.equal(found[0], found[1][:, :3])  # in the order of ranks
