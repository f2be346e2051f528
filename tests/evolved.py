"""A small space whose networks evolve, and a latency table of it."""

from pathlib import Path
from typing import Any

from hadaptive.models import ConvSpec
from hadaptive.models.layer_spec import conv, inverted, poly, products
from hadaptive.search import (
    LatencyTable,
    SearchConfig,
    SearchSpace,
    Skip,
)

POSITION = (products(3, 4, 3, 8), products(2, 16, 5, 8, after=True), poly(3, 8), inverted(2, 3, 8), Skip())


def saved_space(folder: Path) -> SearchSpace:
    """Saved as tiny.json."""
    stages = (((conv(8),), POSITION, POSITION),)
    found = SearchSpace(
        "tiny", (ConvSpec(8, 3, 1),), (), stages, None, None, activation="relu6", widths=(1.0, 0.5)
    )
    found.save(folder / "tiny.json")
    return found


def config_of(tmp_path: Path, **changes: Any) -> SearchConfig:
    settings: dict[str, Any] = {"space": str(tmp_path / "tiny.json"), "method": "evolution", "population": 6}
    settings |= {"generations": 4, "epochs": 2, "image_size": 8, "train_size": 256, "cpu": True}
    return SearchConfig.from_recipe("quick", **{**settings, "output": tmp_path / "run", **changes})


def table_of(space: SearchSpace, config: SearchConfig, **changes: Any) -> LatencyTable:
    """Each block takes a millisecond at full width, half of it at half."""
    times = tuple(
        tuple(0.0 if isinstance(c, Skip) else 1.0 + n / 10 for n, c in enumerate(p)) for p in space.positions
    )
    half = tuple(tuple(ms / 2 for ms in own) for own in times)
    setting = config.setting(10, "cpu")
    values = {
        "references": {},
        "where": {"device": "another"},
        "networks": {"number": 3, "median_error": 0.0},
    }
    return LatencyTable(
        space.fingerprint, setting, times, 1.0, 1.0, 0.0, **values, others=((half, 0.5),), **changes
    )
