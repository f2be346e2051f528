"""Every optimiser and schedule of timm's trains, goes on exactly, or is refused in one sentence."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from timm.optim import create_optimizer_v2, list_optimizers
from tiny import tiny_config, trainer_of
from torch import Tensor, nn

import hadaptive.train.launch as launch
from hadaptive.engine.config import Optimisation
from hadaptive.engine.optimiser import SCHEDULES, create_optimiser, is_second_order, take_step
from hadaptive.errors import UserError
from hadaptive.runs import RunFolder
from hadaptive.train import NonFiniteLossError, TrainConfig, Trainer, TrainingInterruptedError, resume, train
from hadaptive.train.launch import new_trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore:It is highly recommended to have 'opt_einsum'", "ignore:Using backward:UserWarning"
)


def steps(net: nn.Module, optimizer: Any, first: int, last: int) -> None:
    for number in range(first, last):
        torch.manual_seed(number)
        x = torch.randn(4, 1, 4, 4)
        net(x).square().mean().backward(create_graph=is_second_order(optimizer))
        take_step(optimizer, number)
        optimizer.zero_grad()


@pytest.mark.parametrize("name", list_optimizers())
def test_every_optimiser_trains_and_goes_on_exactly_or_is_one_sentence(name: str) -> None:
    torch.manual_seed(0)
    start = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 2))
    net, how = copy.deepcopy(start), Optimisation(opt=name, epochs=1)
    if name.startswith(("bnb", "fused")):
        with pytest.raises(UserError, match=f"^opt '{name}' cannot be used here .*choose another, such as adamw$"):
            create_optimiser(net, how, 4)
        return
    optimizer, _ = create_optimiser(net, how, 4)
    steps(net, optimizer, 0, 2)
    other = copy.deepcopy(net)
    again, _ = create_optimiser(other, how, 4)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(net, optimizer, 2, 4)
    steps(other, again, 2, 4)
    assert any(not torch.equal(a, b) for a, b in zip(start.parameters(), net.parameters(), strict=True))
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.isfinite(a).all()
        assert torch.equal(a, b)


def rates(sched: str, epochs: int = 10, per_epoch: int = 4, loss: float = 1.0, **how: Any) -> list[float]:
    net = nn.Linear(2, 2)
    optimizer, schedule = create_optimiser(
        net, Optimisation(opt="sgd", sched=sched, lr=1.0, epochs=epochs, **how), per_epoch
    )
    seen = []
    for step in range(1, epochs * per_epoch + 1):
        seen.append(optimizer.param_groups[0]["lr"])
        schedule.after_step(step)
        if step % per_epoch == 0:
            schedule.after_epoch(step, loss)
    return seen


@pytest.mark.parametrize("epochs", [1, 2, 10])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("sched", SCHEDULES)
def test_every_schedule_gives_rates_or_one_sentence(sched: str, warmup: float, epochs: int) -> None:
    if sched in ("wsd", "rsqrt") and warmup == 1:
        with pytest.raises(UserError, match="does not fit the other settings"):
            rates(sched, epochs, warmup=warmup)
        return
    seen = rates(sched, epochs, warmup=warmup)
    assert all(0 <= rate <= 1 + 1e-9 for rate in seen)
    assert max(seen) > 0


def test_schedules_in_steps_decay_within_the_run() -> None:
    assert {round(rate, 4) for rate in rates("step", warmup=0.0)} == {1.0, 0.1, 0.01}
    assert {round(rate, 4) for rate in rates("multistep", warmup=0.0)} == {1.0, 0.1, 0.01}
    assert {round(rate, 4) for rate in rates("step", 1, warmup=0.0)} == {1.0, 0.1, 0.01}
    assert set(rates("none")) == {1.0}
    plateau = rates("plateau")
    assert plateau[0] == pytest.approx(8e-5)
    assert plateau[5] == 1
    assert plateau[-1] < 0.2


def test_no_such_schedule_or_optimiser_names_those_there_are() -> None:
    with pytest.raises(UserError, match="choose one of cosine"):
        create_optimiser(nn.Linear(2, 2), Optimisation(sched="cosin"), 4)
    with pytest.raises(UserError, match="adamw"):
        create_optimiser(nn.Linear(2, 2), Optimisation(opt="adamx"), 4)


@pytest.mark.parametrize(("opt", "sched"), [("adahessian", "plateau"), ("kron", "none"), ("muon", "step")])
def test_a_run_of_them_stopped_and_resumed_has_the_same_weights(
    tmp_path: Path, opt: str, sched: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"opt": opt, "sched": sched, "epochs": 2, "train_size": 32, "clip_grad": float(opt != "adahessian")}
    whole = train(tiny_config(tmp_path, "whole", **how), quiet=True, test=False)
    stop = Trainer.save_epoch

    def end(self: Trainer, folder: RunFolder) -> None:
        stop(self, folder)
        self.stopping.requested = self.epoch == 1

    monkeypatch.setattr(Trainer, "save_epoch", end)
    with pytest.raises(TrainingInterruptedError):
        train(tiny_config(tmp_path, "cut", **how), quiet=True, test=False)
    monkeypatch.setattr(Trainer, "save_epoch", stop)
    again = resume(tmp_path / "cut", quiet=True, test=False)
    assert again["validation_accuracy"] == whole["validation_accuracy"]
    first, second = (tmp_path / name / "last.safetensors" for name in ("whole", "cut"))
    assert first.read_bytes() == second.read_bytes()


def test_second_derivatives_are_refused_where_there_are_none(tmp_path: Path) -> None:
    for flag, how in (("--compile", {"compile": True}), ("--clip-grad", {"clip_grad": 1.0})):
        with pytest.raises(UserError, match=f"second derivatives, which do not go with {flag}"):
            trainer_of(tiny_config(tmp_path, opt="adahessian", **how))


@pytest.mark.parametrize("rate", [1.5, 1.0, -0.1, float("nan")])
@pytest.mark.parametrize("name", ["drop_rate", "drop_path_rate"])
def test_rates_of_dropping_are_shares(tmp_path: Path, name: str, rate: float) -> None:
    with pytest.raises(UserError, match=f"{name} must be at least 0 and below 1"):
        tiny_config(tmp_path, **{name: rate})


# -- fp16, with a scaler of the CPU -------------------------------------------------------------------------------


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Trainings scale their losses, from the first number of the list."""
    create, scale = launch.create_accelerator, [2.0**10]

    def with_scaler(*args: Any, **how: Any) -> Accelerator:
        accelerator = create(*args, **how)
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale[0])
        accelerator.state._mixed_precision = "fp16"
        return accelerator

    monkeypatch.setattr(launch, "create_accelerator", with_scaler)
    return scale


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_scaled_losses_with_clipping_accumulation_and_averages(
    tmp_path: Path, scaled: list[float], accumulate: int, clip: float, ema: float
) -> None:
    how = {"accumulate": accumulate, "clip_grad": clip, "ema": ema, "epochs": 1, "train_size": 64}
    summary = train(tiny_config(tmp_path, **how), quiet=True, test=False)
    assert 0 <= summary["validation_accuracy"] <= 1


def scaled_trainer(config: TrainConfig) -> Trainer:
    return new_trainer(config, launch.create_accelerator(config.execution), quiet=True)[0]


def some_batch(trainer: Trainer) -> tuple[Tensor, Tensor]:
    images, targets, _ = next(iter(trainer.batches.train.loader))
    return trainer.ready(images, targets)


def test_a_step_that_the_scaler_skips_changes_nothing_but_the_scale(tmp_path: Path, scaled: list[float]) -> None:
    scaled[0] = 2.0**120
    trainer = scaled_trainer(tiny_config(tmp_path, ema=0.9, clip_grad=1.0))
    trainer.model.train()
    assert trainer.ema is not None
    before = {k: v.clone() for k, v in trainer.network.state_dict().items() if "running" not in k}
    averaged = {k: v.clone() for k, v in trainer.ema.module.state_dict().items()}
    trainer.micro_step(*some_batch(trainer), 0)
    trainer.after_step()
    assert trainer.skipped
    after = trainer.network.state_dict()
    assert not [k for k, v in before.items() if "num_batches" not in k and not torch.equal(v, after[k])]
    assert not [k for k, v in averaged.items() if not torch.equal(v, trainer.ema.module.state_dict()[k])]
    assert trainer.accelerator.scaler.get_scale() == 2.0**119


def test_gradients_that_no_scale_holds_end_the_run(tmp_path: Path, scaled: list[float]) -> None:
    scaled[0] = 2.0**-14
    trainer = scaled_trainer(tiny_config(tmp_path, clip_grad=1.0))
    weight = next(trainer.network.parameters())
    weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteLossError, match="the gradients are not finite") as caught:
        trainer.micro_step(*some_batch(trainer), 0)
    assert "--clip-grad" not in str(caught.value)  # it is there already


def test_a_resumed_run_has_the_scale_it_had(
    tmp_path: Path, scaled: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    scaled[0] = 2.0**7
    stop = Trainer.save_epoch

    def end(self: Trainer, folder: RunFolder) -> None:
        stop(self, folder)
        self.stopping.requested = True

    how = {"epochs": 2, "train_size": 64, "clip_grad": 1.0}
    monkeypatch.setattr(Trainer, "save_epoch", end)
    with pytest.raises(TrainingInterruptedError):
        train(tiny_config(tmp_path, **how), quiet=True, test=False)
    monkeypatch.setattr(Trainer, "save_epoch", stop)
    saved = RunFolder(tmp_path / "run").load_checkpoint()
    assert saved["scaler"]["scale"] == 2.0**7
    scaled[0] = 2.0**3
    seen = []
    monkeypatch.setattr(
        Trainer, "greet", lambda self, folder: seen.append(self.accelerator.scaler.get_scale()) or ""
    )
    resume(tmp_path / "run", quiet=True, test=False)
    assert seen == [2.0**7]


def test_half_of_torchruns_environment_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UserError, match=r"LOCAL_RANK is set .* not RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT"):
        train(tiny_config(tmp_path), quiet=True)
    assert not (tmp_path / "run").exists()


# Every pair of values of two settings is in one of the rows.
PAIRS = [
    ("no", 1, 0.0, 0.0),
    ("no", 2, 1.0, 0.9),
    ("bf16", 1, 1.0, 0.9),
    ("bf16", 2, 0.0, 0.9),
    ("bf16", 2, 1.0, 0.0),
    ("no", 1, 1.0, 0.0),
    ("no", 1, 0.0, 0.9),
    ("no", 2, 0.0, 0.0),
    ("fp16", 1, 1.0, 0.9),
    ("fp16", 2, 0.0, 0.0),
]


@pytest.mark.parametrize(("precision", "accumulate", "clip", "ema"), PAIRS)
def test_precision_accumulation_clipping_and_averages_go_together(
    tmp_path: Path, precision: str, accumulate: int, clip: float, ema: float
) -> None:
    how = {"mixed_precision": precision, "accumulate": accumulate, "clip_grad": clip, "ema": ema}
    summary = train(tiny_config(tmp_path, epochs=1, train_size=64, **how), quiet=True, test=False)
    assert 0 <= summary["validation_accuracy"] <= 1


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_all_weights_at_once_on_a_cpu_as_one_by_one(name: str) -> None:
    torch.manual_seed(0)
    net, how = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 2)), Optimisation(opt=name, epochs=1)
    other = copy.deepcopy(net)
    optimizer, _ = create_optimiser(net, how, 4)
    assert all(group["fused"] for group in optimizer.param_groups)
    assert not any(group["fused"] for group in create_optimiser(net, how, 4, scaled=True)[0].param_groups)
    singly = create_optimizer_v2(other, opt=name, lr=how.lr, weight_decay=how.weight_decay)
    # A run that an older version saved goes on as it began.
    resumed, _ = create_optimiser(copy.deepcopy(other), how, 4)
    resumed.load_state_dict(singly.state_dict())
    assert not any(group["fused"] for group in resumed.param_groups)
    for group in (*optimizer.param_groups, *singly.param_groups):
        group["lr"] = how.lr  # not where a schedule begins
    steps(net, optimizer, 0, 4)
    steps(other, singly, 0, 4)
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)
