"""Training step and eval latency of whole networks in eager PyTorch, side by side."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hadaptive.bench.config import NetworksConfig
from hadaptive.console import console
from hadaptive.files import append_csv
from hadaptive.measure.timing import interleaved, quartiles, threads
from hadaptive.models import create_model
from hadaptive.nn import learns_by_score_function, score_function_term
from hadaptive.nn.reparam import reparameterized
from hadaptive.provenance import provenance

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


def _model_and_images(
    name: str, batch: int, config: NetworksConfig, memory_format: torch.memory_format
) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = create_model(name, num_classes=1000, image_size=config.image_size)
    model.to(config.device, memory_format=memory_format)  # pyright: ignore[reportCallIssue]
    x = torch.randn(batch, 3, config.image_size, config.image_size, device=config.device)
    return model, x.contiguous(memory_format=memory_format)


def _training_step(name: str, config: NetworksConfig, memory_format: torch.memory_format) -> Callable[[], None]:
    model, x = _model_and_images(name, config.batch, config, memory_format)
    model.train()
    by_score_function = learns_by_score_function(model)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    y = torch.randint(0, 1000, (config.batch,), device=config.device)

    def run() -> None:
        optimiser.zero_grad()
        losses = F.cross_entropy(model(x), y, reduction="none")
        loss = losses.mean() + score_function_term(model, losses) if by_score_function else losses.mean()
        loss.backward()
        optimiser.step()

    return run


def _latency(name: str, config: NetworksConfig, memory_format: torch.memory_format) -> Callable[[], None]:
    model, x = _model_and_images(name, 1, config, memory_format)
    model = reparameterized(model.eval())

    def run() -> None:
        with torch.inference_mode():
            model(x)

    return run


def bench_networks(config: NetworksConfig) -> list[dict[str, Any]]:
    """Time, print and append the rows; returns them.

    Raises:
        UserError: there is no such model.
    """
    for name in config.models:
        create_model(name, num_classes=1000, image_size=config.image_size)  # mistakes show here
    rows: list[dict[str, Any]] = []
    with threads(config.threads):
        for what, make, rounds in (
            ("training step", _training_step, config.rounds),
            ("eval latency", _latency, 4 * config.rounds),
        ):
            for layout, memory_format in LAYOUTS.items():
                variants = {name: make(name, config, memory_format) for name in config.models}
                times = interleaved(variants, max(3, rounds // 4), rounds, config.device)
                batch = config.batch if what == "training step" else 1
                rows += [
                    {
                        "what": what,
                        "model": name,
                        "image_size": config.image_size,
                        "batch": batch,
                        "layout": layout,
                        **quartiles(ms),
                        **provenance(config.device),
                    }
                    for name, ms in times.items()
                ]
    config.results.parent.mkdir(parents=True, exist_ok=True)
    append_csv(config.results, rows)
    print_networks(rows)
    return rows


def print_networks(rows: list[dict[str, Any]]) -> None:
    """A table of times, and of each network's ratio to the first one's."""
    from rich.table import Table

    table = Table()
    for column in ("what", "layout", "model"):
        table.add_column(column)
    for column in ("ms", "quartiles", "ratio"):
        table.add_column(column, justify="right")
    first: dict[tuple[str, str], float] = {}
    for row in rows:
        base = first.setdefault((row["what"], row["layout"]), row["median_ms"])
        spread = f"{row['lower_quartile_ms']:.2f} to {row['upper_quartile_ms']:.2f}"
        ratio = f"{row['median_ms'] / base:.2f}"
        table.add_row(row["what"], row["layout"], row["model"], f"{row['median_ms']:.2f}", spread, ratio)
    console().print(table)
