"""Training steps that several processes share, each for a process of its own (processes.forked)."""

import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from hadaptive.nn import AdaptiveCrossHadamard, adapt_temperatures, expansions

STEPS, PROCESSES = 3, 2


def network() -> nn.Module:
    torch.manual_seed(0)
    # It selects all there are: what is selected does not hang on the noise of a process.
    return nn.Sequential(
        nn.Conv2d(3, 4, 1), AdaptiveCrossHadamard(4, 4, norm="dyt", selection="sample"), nn.Conv2d(10, 4, 1)
    ).double()


def loss_of(model: nn.Module, step: int, rank: int) -> torch.Tensor:
    torch.manual_seed(10 * step + rank)
    return model(torch.randn(4, 3, 3, 3, dtype=torch.float64)).square().mean()


def optimiser(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def temperatures(model: nn.Module) -> list[float]:
    selects = (layer.select for layer in expansions(model).values())
    return [float(value) for select in selects for value in (select.temperature, select.gradient_norm)]


def steps(folder: Path) -> None:
    """Train under DDP and under FSDP, and write down the temperatures of each."""
    rank = int(os.environ["RANK"])
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(folder / "store"), PROCESSES), rank=rank, world_size=2
    )
    found = {}
    for kind in ("ddp", "fsdp"):
        model = network()
        if kind == "ddp":
            model = DistributedDataParallel(model)
        else:
            fully_shard(model)
        optimizer = optimiser(model)
        adapt_temperatures(optimizer, model)
        for step in range(STEPS):
            loss_of(model, step, rank).backward()
            optimizer.step()
            optimizer.zero_grad()
        found[kind] = temperatures(model)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()
