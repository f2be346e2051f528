"""Temperatures under any trainer: one line hooks them to the optimiser, and every step updates each once."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import shared_steps
import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from processes import forked
from tiny import TINY, tiny_config, trainer_of
from torch import Tensor, nn

from hadaptive.models import create_model
from hadaptive.nn import AdaptiveCrossHadamard, adapt_temperatures, expansions, update_temperatures

# The same network for all, and batches of it.
WIDTH, STEPS = 4, 3


def network() -> nn.Module:
    torch.manual_seed(0)
    first, last = (
        AdaptiveCrossHadamard(WIDTH, 3, selection="sample"),
        AdaptiveCrossHadamard(6, 2, selection="sample"),
    )
    return nn.Sequential(first, nn.Conv2d(7, 6, 1), last, nn.Flatten())


def loss_of(model: nn.Module, number: int) -> Tensor:
    torch.manual_seed(number)
    return model(torch.randn(4, WIDTH, 2, 2)).square().mean() * (1 + number % 2)


def temperatures(model: nn.Module) -> list[tuple[float, float]]:
    found = (layer.select for layer in expansions(model).values())
    return [(float(select.temperature), float(select.gradient_norm)) for select in found]


def by_hand(make: Callable[[nn.Module], Any], accumulate: int = 1) -> list[tuple[float, float]]:
    """The temperatures of a loop that updates them itself."""
    model = network()
    optimizer = make(model)
    for number in range(STEPS):
        optimizer.zero_grad()
        for part in range(accumulate):
            (loss_of(model, number * accumulate + part) / accumulate).backward()
        update_temperatures(model)
        optimizer.step()
    return temperatures(model)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def fused(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)


def lookahead(model: nn.Module) -> torch.optim.Optimizer:
    return timm.optim.create_optimizer_v2(model, "lookahead_sgd", lr=0.1)


@pytest.mark.parametrize("make", [sgd, adamw, lookahead])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_plain_loop(make, accumulate: int) -> None:
    model = network()
    optimizer = make(model)
    adapt_temperatures(optimizer, model)
    for number in range(STEPS):
        for part in range(accumulate):
            (loss_of(model, number * accumulate + part) / accumulate).backward()
        optimizer.step()
        optimizer.zero_grad()
    expected = by_hand(make, accumulate)
    assert temperatures(model) == expected
    assert len({temperature for temperature, _ in expected} - {4.0}) > 0


@pytest.mark.parametrize("how", ["positional", "named"])
def test_a_closure_that_computes_the_gradients(how: str) -> None:
    """As Lightning's do."""
    model = network()
    optimizer = sgd(model)
    adapt_temperatures(optimizer, model)
    for number in range(STEPS):

        def closure(number: int = number) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, number)
            loss.backward()
            return loss

        assert (optimizer.step(closure) if how == "positional" else optimizer.step(closure=closure)) > 0
    assert temperatures(model) == by_hand(sgd)


def test_a_closure_that_is_called_more_than_once() -> None:
    model, calls = network(), []
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    adapt_temperatures(optimizer, model)

    def closure() -> Tensor:
        optimizer.zero_grad()
        calls.append(temperatures(model))
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert len(calls) > 2
    assert calls[0] != calls[1] == calls[-1] == temperatures(model)


@pytest.mark.parametrize("make", [adamw, fused])
@pytest.mark.parametrize("unscaled", [False, True], ids=["by the step", "before"])
def test_scaled_gradients(make, unscaled: bool) -> None:
    model = network()
    optimizer, scaler = make(model), torch.amp.GradScaler("cpu", init_scale=2.0**12)
    adapt_temperatures(optimizer, model)
    for number in range(STEPS):
        scaler.scale(loss_of(model, number)).backward()
        if unscaled:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    torch.testing.assert_close(temperatures(model), by_hand(make), rtol=1e-6, atol=0)


@pytest.mark.parametrize("make", [adamw, fused])
def test_a_step_that_is_skipped(make) -> None:
    model = network()
    optimizer, scaler = make(model), torch.amp.GradScaler("cpu")
    adapt_temperatures(optimizer, model)
    before = temperatures(model)
    scaler.scale(loss_of(model, 0)).backward()
    model[1].bias.grad[0] = torch.inf  # the scores' own are finite
    scaler.step(optimizer)
    assert temperatures(model) == before


@pytest.mark.parametrize("first", [True, False], ids=["before prepare", "after prepare"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_accelerates_optimiser(first: bool, accumulate: int) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator, model = Accelerator(cpu=True, gradient_accumulation_steps=accumulate), network()
    optimizer = sgd(model)
    if first:
        adapt_temperatures(optimizer, model)
    prepared, wrapped = accelerator.prepare(model, optimizer)
    if not first:
        adapt_temperatures(wrapped, prepared)
    for number in range(STEPS * accumulate):
        with accelerator.accumulate(prepared):
            accelerator.backward(loss_of(prepared, number))
            wrapped.step()
            wrapped.zero_grad()
    assert temperatures(model) == by_hand(sgd, accumulate)


@pytest.mark.filterwarnings("ignore:.*create_graph:UserWarning")  # PyTorch says it once in a process
def test_an_optimiser_that_differentiates_twice() -> None:
    model = network()
    optimizer = timm.optim.create_optimizer_v2(model, "adahessian", lr=0.1)
    adapt_temperatures(optimizer, model)
    loss_of(model, 0).backward(create_graph=True)
    optimizer.step()
    assert temperatures(model) != temperatures(network())
    optimizer.zero_grad()


def test_each_optimiser_sees_to_the_layers_it_trains() -> None:
    model, whole = network(), network()
    parts = [sgd(model[0]), torch.optim.SGD([*model[1].parameters(), *model[2].parameters()], lr=0.1)]
    for optimizer in parts:
        adapt_temperatures(optimizer, model)
    optimizer = sgd(whole)
    adapt_temperatures(optimizer, whole)
    for number in range(2):
        for net, steps in ((model, parts), (whole, [optimizer])):
            net.zero_grad()
            loss_of(net, number).backward()
            for each in steps:
                each.step()
    assert temperatures(model) == temperatures(whole)


def test_the_handle_ends_it_and_a_copy_has_none() -> None:
    model = network()
    optimizer = sgd(model)
    handle = adapt_temperatures(optimizer, model)
    loss_of(model, 0).backward()
    copy.deepcopy(optimizer).step()
    handle.remove()
    optimizer.step()
    assert temperatures(model) == temperatures(network())


def test_networks_without_live_selections_are_let_be() -> None:
    fixed = network()
    for layer in expansions(fixed).values():
        layer.freeze(torch.arange(layer.k))
    for model in (fixed, nn.Linear(WIDTH, 2)):
        optimizer = sgd(model)
        adapt_temperatures(optimizer, model)
        model(torch.randn(4, WIDTH, *((2, 2) if model is fixed else ()))).sum().backward()
        optimizer.step()


def test_what_would_never_be_updated_is_refused() -> None:
    model = network()
    with pytest.raises(ValueError, match="trains none of the model's scores"):
        adapt_temperatures(sgd(nn.Linear(2, 2)), model)
    with pytest.raises(TypeError, match="Sequential is no optimiser whose steps PyTorch can watch"):
        adapt_temperatures(model, model)


def test_no_temperature_is_updated_twice_in_a_step() -> None:
    model = network()
    optimizer = sgd(model)
    handle = adapt_temperatures(optimizer, model)
    for part in (model, model[0]):
        with pytest.raises(ValueError, match="adapts these temperatures already"):
            adapt_temperatures(optimizer, part)
    handle.remove()
    for part in (model[0], model[2]):
        adapt_temperatures(optimizer, part)


def test_updating_between_the_passes_leaves_the_gradient_alone() -> None:
    """Whose temperature is that of the forward pass."""
    gradients = []
    for changed in (False, True):
        model = network()
        loss = loss_of(model, 0)
        if changed:
            for layer in expansions(model).values():
                layer.select.update_temperature(torch.tensor([-1.0]))
        loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert one.equal(other)


@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_our_trainer_learns_temperatures_from_gradients_as_they_are(clip: float, tmp_path) -> None:
    norms, changes = [], []
    for limit in (clip, 0.0):
        trainer = trainer_of(tiny_config(tmp_path, clip_grad=limit, train_size=64, opt="sgd", lr=1.0, warmup=0.0))
        images, targets, _ = next(iter(trainer.batches.train.loader))
        before = trainer.network.classifier.bias.detach().clone()
        trainer.micro_step(*trainer.ready(images, targets), 0)
        changes.append(float((trainer.network.classifier.bias.detach() - before).norm()))
        norms.append([norm for _, norm in temperatures(trainer.network)])
    assert all(norm > 0 for norm in norms[0])
    assert norms[0] == norms[1]
    assert (changes[0] < changes[1] / 10) == bool(clip)


def test_a_network_by_name_in_timms_manner() -> None:
    model = create_model(TINY, num_classes=3)
    optimizer = timm.optim.create_optimizer_v2(model, "adamw", lr=1e-3)
    adapt_temperatures(optimizer, model)
    model(torch.randn(4, 3, 16, 16)).square().mean().backward()
    optimizer.step()
    assert all(temperature != 4.0 or norm > 0 for temperature, norm in temperatures(model))


def test_processes_that_share_the_work_reach_the_same_temperatures(tmp_path: Path) -> None:
    """Under DDP each holds the whole gradient, under FSDP a shard of it."""
    ranks = tuple({"RANK": str(rank)} for rank in range(shared_steps.PROCESSES))
    done = forked(shared_steps.steps, tmp_path, environments=ranks)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank['RANK']}.json").read_text()) for rank in ranks)
    assert first == second
    alone = shared_steps.network()
    optimizer = shared_steps.optimiser(alone)
    adapt_temperatures(optimizer, alone)
    for step in range(shared_steps.STEPS):
        for rank in range(shared_steps.PROCESSES):
            (shared_steps.loss_of(alone, step, rank) / shared_steps.PROCESSES).backward()
        optimizer.step()
        optimizer.zero_grad()
    for kind in ("ddp", "fsdp"):
        assert first[kind] == pytest.approx(shared_steps.temperatures(alone), rel=1e-4)
